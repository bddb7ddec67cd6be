"""What callers write for an agent, in bodies and in paths; raw sockets, since clients tidy paths up."""

from __future__ import annotations

import asyncio
import json

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control.errors import ApiError
from haltwire_control.selecting import with_instance


async def raw(control, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
    """A request whose path nobody touches."""
    host, port = control.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    text = json.dumps(body or {})
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {control.admin_key}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    )
    head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(content)


MAILER = "agent://acme/prod/mailer"
SPELLINGS = {
    "percent-encoded": ("agent%3A%2F%2Facme%2Fprod%2Fmailer", MAILER),
    "raw, as AXME's client sends it": ("agent://acme/prod/mailer", MAILER),
    "one slash lost on the way": ("agent:/acme/prod/mailer", MAILER),
    "a dotted label": ("acme.prod.mailer", MAILER),
    "without the scheme": ("acme/prod/mailer", MAILER),
    "a bare name": ("mailer", MAILER),
    "an instance": ("acme.prod.mailer~i-1", f"{MAILER}~i-1"),
    "an encoded instance": ("agent%3A%2F%2Facme%2Fprod%2Fmailer%7Ei-1", f"{MAILER}~i-1"),
    "an agent called kill": ("agent://acme/prod/kill", "agent://acme/prod/kill"),
    "an agent called resume": ("acme/prod/resume", "agent://acme/prod/resume"),
}


@pytest.mark.parametrize(("spelling", "meant"), SPELLINGS.values(), ids=SPELLINGS)
async def test_an_agent_in_a_path(control, spelling, meant):
    await control.token(MAILER)
    status, receipt = await raw(control, "POST", f"/v1/mesh/agents/{spelling}/kill", {"wait_s": 0})
    assert (status, receipt["selector"]) == (200, meant)
    status, receipt = await raw(
        control, "POST", f"/v1/mesh/agents/{spelling}/resume", {"wait_s": 0}
    )
    assert (status, receipt["selector"]) == (200, meant)
    assert len(receipt["lifted"]) == 1


@pytest.mark.parametrize("spelling", ["agent://acme/prod/mailer", "acme.prod.mailer", "mailer"])
async def test_an_agent_that_is_shown(control, spelling):
    await control.beat(await control.token(MAILER))
    status, document = await raw(control, "GET", f"/v1/mesh/agents/{spelling}")
    assert (status, document["agent"]["agent_uri"]) == (200, MAILER)


REFUSED = {
    "a glob": ("agent://acme/prod/*", 422, "invalid_field"),
    "everybody": ("agent://**", 422, "invalid_field"),
    "capitals": ("agent://Acme/prod", 422, "invalid_field"),
    "nobody's name": ("mailr", 422, "unknown_name"),
    "not text": ("%ff", 422, "invalid_field"),
}


@pytest.mark.parametrize(("spelling", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_a_path_that_names_no_agent(control, spelling, status, code):
    found, document = await raw(control, "POST", f"/v1/mesh/agents/{spelling}/kill")
    assert (found, document["error"]["code"]) == (status, code)


async def test_a_name_that_two_agents_have_lists_both(control):
    await control.token(MAILER)
    await control.token("agent://acme/dev/mailer")
    reply = await control.kill("mailer")
    assert (reply.status, reply.body["error"]["code"]) == (422, "ambiguous_name")
    assert "agent://acme/dev/mailer" in reply.body["error"]["message"]


def test_an_instance_narrows_a_selector():
    mailer = Selector.parse(MAILER)
    assert with_instance(mailer, None) == mailer
    assert str(with_instance(mailer, "ip:192.0.2.7")) == f"{MAILER}~ip:192.0.2.7"
    for selector, instance in ((Selector.parse(f"{MAILER}~i-1"), "i-2"), (mailer, "i 2")):
        with pytest.raises(ApiError, match="instance"):
            with_instance(selector, instance)
