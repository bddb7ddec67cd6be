"""Every answer has exactly the fields that its model, and so the OpenAPI document, says."""

from __future__ import annotations

import jsonschema
import pytest
from haltwire.wire import receipts
from haltwire.wire.receipts import InFlight
from haltwire_control import answers
from support.control import Worker, cut, usage, utc_now

MAILER = "agent://acme/prod/mailer"


async def fits(control, reply, method: str, path: str) -> None:
    """Hold an answer against the document."""
    document = (await control.call("GET", "/openapi.json", key=None)).body
    response = document["paths"][path][method.lower()]["responses"][str(reply.status)]
    schema = response["content"]["application/json"]["schema"]
    jsonschema.validate(reply.body, {**schema, "components": document["components"]})


@pytest.fixture
async def busy(control, worker):
    agent = await control.token(MAILER)
    control.agent = agent
    await control.beat(agent, instance="i-1", metadata={"sent": 1}, metrics={"n": 1})
    await worker.use(usage(MAILER, "i-1"))
    flight = InFlight("POST", "api.mail.test", None, utc_now(), 5, None, 0, "partly")
    worker.instances = (cut(MAILER, "i-1", in_flight=(flight,)),)
    await Worker(control, "w-2", pid=2**22 + 1).join()
    return control


async def test_a_tour_of_all_routes(busy):
    kill = await busy.kill(MAILER)
    await fits(busy, kill, "POST", "/v1/mesh/kill")
    kill_id = kill.body["kill_id"]
    token = await busy.call("POST", "/v1/tokens", {"selector": "agent://a/*"})
    key = await busy.call("POST", "/v1/keys", {"name": "bob", "role": "viewer"})
    await fits(busy, token, "POST", "/v1/tokens")
    await fits(busy, key, "POST", "/v1/keys")
    await fits(busy, await busy.beat(busy.agent), "POST", "/v1/mesh/heartbeat")
    for path, template in {
        "/v1/mesh/agents": "",
        "/v1/mesh/agents/mailer": "/v1/mesh/agents/{agent}",
        "/v1/mesh/kills?all=1": "/v1/mesh/kills",
        f"/v1/mesh/kills/{kill_id}": "/v1/mesh/kills/{kill_id}",
        "/v1/mesh/events": "",
        "/v1/mesh/audit/verify": "",
        "/v1/tokens": "",
        "/v1/keys": "",
        "/v1/proxies": "",
        "/healthz": "",
        "/readyz": "",
        "/health": "",
        "/ca.pem": "",
    }.items():
        await fits(busy, await busy.call("GET", path), "GET", template or path)
    note = await busy.call("POST", f"/v1/mesh/kills/{kill_id}/notes", {"text": "why"})
    await fits(busy, note, "POST", "/v1/mesh/kills/{kill_id}/notes")
    for body in ({"dry_run": True}, {"mode": "drain", "wait_s": 0}, {"mode": "hold", "wait_s": 0}):
        other = await busy.kill("agent://acme/dev/*", **body)
        await fits(busy, other, "POST", "/v1/mesh/kill")
    resume = await busy.resume("agent://**", wait_s=0)
    lifted = await busy.call("GET", f"/v1/mesh/kills/{kill_id}")
    assert lifted.body["resume"]["instances"]
    await fits(busy, lifted, "GET", "/v1/mesh/kills/{kill_id}")
    await fits(busy, resume, "POST", "/v1/mesh/resume")
    for path, template in {
        f"/v1/tokens/{token.body['token_id']}": "/v1/tokens/{token_id}",
        "/v1/keys/bob": "/v1/keys/{key}",
        "/v1/keys/nobody": "/v1/keys/{key}",
    }.items():
        await fits(busy, await busy.call("DELETE", path), "DELETE", template)
    await fits(busy, await busy.call("POST", "/v1/mesh/kill", {}), "POST", "/v1/mesh/kill")
    await fits(busy, await busy.call("GET", "/v1/keys", key=None), "GET", "/v1/keys")


WIRE = {
    receipts.Receipt: answers.ReceiptAnswer,
    receipts.ProxyState: answers.ProxyStateDocument,
    receipts.InstanceState: answers.ReceiptInstance,
    receipts.InFlight: answers.InFlightDocument,
    receipts.SinceMetadata: answers.SinceMetadataDocument,
    receipts.Matched: answers.MatchedDocument,
    receipts.Totals: answers.TotalsDocument,
}


@pytest.mark.parametrize("value", WIRE)
def test_receipts_are_documented_as_they_are_on_the_wire(value):
    assert list(value.__dataclass_fields__) == list(WIRE[value].model_fields)
