"""Identity that cannot be forged, on a real `haltwire up`: rows I01 to I15, each a named case.

Elsewhere: I01 and I02 with real clients are tests/e2e/test_clients.py and test_challenge.py; the whole table
of what is read from a head, I06 and I07 among it, is tests/proxy/test_identity.py; what stays on this hop is
tests/proxy/test_hops.py.

Seen to fail with a protection removed (each put back):
- identify without its `selector.matches_agent`: the rows `I05 label forged`, `I05 beyond the selector`
  and `Connection hides no credentials` are no longer refused
- agrees without its comparison of secrets: I12, `another agent's bearer` gets 200
- hops._dashed that leaves underscores: all four I10, `x_agent_trace` and `proxy_authorization` at the origin
- Guesses.failed that always says 0.0: I04, the wait that should be 0.8 s takes 0.4 ms
- Mismatches._is_full that is never true: no row of `others` comes
- Tallies.room that always has room: the 1,001st instance gets 200
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import ssl
import time
from pathlib import Path

import h2.config
import h2.connection
import pytest
import pytest_asyncio
from haltwire_control.mismatches import KINDS_KEPT
from haltwire_proxy.guesses import FREE
from support.client import Answer, Wire
from support.origin import Origin
from support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = "hwa_" + "x" * 43
SENTINEL = "agent-says-this"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory, authority):
    """One for all; tests name agents of their own."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    async with System(folder, "--workers", "1", "--upstream-ca", str(authority.ca_file)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origins(authority):
    """In the open, and under TLS."""
    async with Origin() as http, Origin(authority.server_context("localhost")) as https:
        yield http, https


@pytest.fixture(autouse=True)
def fresh(origins):
    for origin in origins:
        origin.connections.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secrets(system):
    """Of agents a and b, of a's instance i-1, of everyone in acme/many, and of a as it is read inside TLS."""
    selectors = {
        "a": "agent://acme/prod/a",
        "b": "agent://acme/prod/b",
        "bound": "agent://acme/prod/a~i-1",
        "many": "agent://acme/many/*",
    }
    made = {}
    for name, selector in selectors.items():
        made[name] = (await new_token(system, selector))["secret"]
    made["read"] = (await new_token(system, "agent://acme/prod/read", "intercept"))["secret"]
    return made


async def new_token(system, selector: str, tls: str | None = None) -> dict:
    """What `POST /v1/tokens` says."""
    status, made = await system.api("POST", "/v1/tokens", {"selector": selector, "tls": tls})
    assert status == 201, made
    return made


_sources = itertools.count(2)


async def connect(system, source: str | None = None) -> Wire:
    """From an address of its own, since failures of one address are answered ever later."""
    number = next(_sources)
    local = source or f"127.1.{number // 256}.{number % 256}"
    return Wire(*await asyncio.open_connection("127.0.0.1", system.port, local_addr=(local, 0)))


def basic(label: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{label}:{secret}".encode()).decode()


def proxy_authorization(label: str, secret: str) -> str:
    return f"Proxy-Authorization: {basic(label, secret)}"


ROWS = {
    "I03 nothing": ([], 407, "proxy_credentials_required"),
    "I03 what is for the origin": (
        ["Authorization: Bearer {a}"],
        407,
        "proxy_credentials_required",
    ),
    "I04 wrong secret, right name": (["{acme.prod.a|wrong}"], 407, "proxy_credentials_invalid"),
    "I04 wrong bearer": (["Proxy-Authorization: Bearer {wrong}"], 407, "proxy_credentials_invalid"),
    "I05 label forged": (["{acme.prod.b|a}"], 407, "identity_mismatch"),
    "I05 header forged": (
        ["{acme.prod.a|a}", "X-Agent-URI: agent://acme/prod/b"],
        407,
        "identity_mismatch",
    ),
    "I05 another instance than the bound one": (
        ["{acme.prod.a~i-2|bound}"],
        407,
        "identity_mismatch",
    ),
    "I05 instance header forged": (
        ["{acme.prod.a|bound}", "X-Agent-Instance: i-2"],
        407,
        "identity_mismatch",
    ),
    "I05 beyond the selector": (["{acme.prod.b|many}"], 407, "identity_mismatch"),
    "I05 a selector, and nobody named": (
        ["Proxy-Authorization: Bearer {many}"],
        407,
        "agent_required",
    ),
    "I06 axios": (["{agent%3A%2F%2Facme%2Fprod%2Fa|a}"], 200, None),
    "I06 encoded twice": (["{acme%252Eprod%252Ea|a}"], 407, "proxy_credentials_invalid"),
    "I07 the last colon splits": (["{agent://acme/prod/a|a}"], 200, None),
    "I07 no colon": (["{a}"], 407, "proxy_credentials_invalid"),
    "I08 two credentials": (["{acme.prod.a|a}", "{acme.prod.b|b}"], 400, "malformed_request"),
    "I08 the same twice": (["{acme.prod.a|a}", "{acme.prod.a|a}"], 400, "malformed_request"),
    "I08 comma-joined": (["Proxy-Authorization: Bearer {a}, Bearer {b}"], 400, "malformed_request"),
    "I08 two names": (
        [
            "{acme.many.c|many}",
            "X-Agent-URI: agent://acme/many/c",
            "X-Agent-URI: agent://acme/many/d",
        ],
        400,
        "malformed_request",
    ),
    "I09 not Base64": (["Proxy-Authorization: Basic !!!!"], 407, "proxy_credentials_invalid"),
    "I09 Base64 without padding": (
        ["Proxy-Authorization: Basic YWNtZS5wcm9kLmE6eA"],
        407,
        "proxy_credentials_invalid",
    ),
    "I09 ten kilobytes": (
        ["Proxy-Authorization: Bearer " + "x" * 10_000],
        407,
        "proxy_credentials_invalid",
    ),
    "I09 NUL": (["Proxy-Authorization: Bearer {a}\0"], 400, "malformed_request"),
    "I09 non-ASCII": (["Proxy-Authorization: Bearer hwa_\xe9"], 407, "proxy_credentials_invalid"),
    "I09 non-ASCII name": (
        ["{acme.prod.a|a}", "X-Agent-URI: agent://acme/prod/\xe9"],
        400,
        "malformed_request",
    ),
    "I09 another scheme": (
        ["Proxy-Authorization: Digest username=a"],
        407,
        "proxy_credentials_invalid",
    ),
    "Bearer": (["Proxy-Authorization: Bearer {a}"], 200, None),
    "X-Agent-URI within the selector": (
        ["Proxy-Authorization: Bearer {many}", "X-Agent-URI: agent://acme/many/c"],
        200,
        None,
    ),
    "an underscore twin names nobody": (
        ["Proxy-Authorization: Bearer {many}", "X_Agent_URI: agent://acme/many/c"],
        407,
        "agent_required",
    ),
    "an underscore twin is no credential": (
        ["Proxy_Authorization: Bearer {a}"],
        407,
        "proxy_credentials_required",
    ),
    "Connection hides no credentials": (
        ["{acme.prod.b|a}", "Connection: Proxy-Authorization, X-Agent-URI"],
        407,
        "identity_mismatch",
    ),
    "Connection takes no credentials away": (
        ["{acme.prod.a|a}", "Connection: Proxy-Authorization"],
        200,
        None,
    ),
}


def spelled(line: str, secrets: dict[str, str]) -> str:
    """`{label|name}` is Basic credentials, `{name}` a secret; a lone `{name}` is Basic without a colon."""
    known = {**secrets, "wrong": WRONG}
    if line.startswith("{"):
        label, _, name = line.strip("{}").rpartition("|")
        secret = known[name]
        if not label:
            return "Proxy-Authorization: Basic " + base64.b64encode(secret.encode()).decode()
        return proxy_authorization(label, secret)
    for name, secret in known.items():
        line = line.replace("{" + name + "}", secret)
    return line


@pytest.mark.parametrize("way", ["CONNECT", "GET"])
@pytest.mark.parametrize("name", ROWS)
async def test_who_is_let_in(system, origins, secrets, name, way):
    headers, status, code = ROWS[name]
    lines = [spelled(line, secrets) for line in headers]
    origin = origins[0]
    target = origin.host if way == "CONNECT" else f"{origin.url}/echo"
    wire = await connect(system)
    answer = await wire.request(way, target, f"Host: {origin.host}", *lines)
    assert (answer.status, json.loads(answer.body)["error"] if code else None) == (status, code)
    if status == 407:
        assert answer.headers["proxy-authenticate"] == 'Basic realm="haltwire"'
    if code:
        assert origin.connections == []
        assert not any(word in answer.body.decode() for word in (WRONG, *secrets.values()))


# What must not come out: names that an origin must never see, and values that show what was passed on.
OURS = (
    "Proxy-Connection: keep-alive",
    "X-Agent-Instance: i-1",
    f"X-Agent-Id: {SENTINEL}",
    f"X_Agent_Trace: {SENTINEL}",
    f"x-agent_role: {SENTINEL}",
    f"Proxy_Authorization: {SENTINEL}",
    "Connection: X-Agent-Id, X-Hop, Host, Authorization, close",
    f"X-Hop: {SENTINEL}",
    "Authorization: Bearer for-the-origin",
    "X-Other: kept",
)


def assert_clean(headers: dict[str, str], host: str) -> None:
    """Nothing of ours or of this hop, and all that is for the origin."""
    assert SENTINEL not in json.dumps(headers)
    names = {name.replace("_", "-") for name in headers}
    assert not [name for name in names if name.startswith(("x-agent", "proxy-"))], headers
    assert headers["host"] == host
    assert headers["authorization"] == "Bearer for-the-origin"
    assert headers["x-other"] == "kept"
    assert headers.get("connection", "close") == "close"


async def test_i10_nothing_of_ours_in_the_open(system, origins, secrets):
    origin = origins[0]
    wire = await connect(system)
    own = proxy_authorization("acme.prod.a~i-1", secrets["a"])
    answer = await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", own, *OURS)
    assert answer.status == 200
    assert_clean(answer.json()["headers"], origin.host)


async def inside(system, origin, secrets, *alpn: str) -> tuple[Wire, str]:
    """A connection that is read inside TLS, as instance i-1 of acme/prod/read."""
    target = f"localhost:{origin.port}"
    wire = await connect(system)
    own = proxy_authorization("acme.prod.read~i-1", secrets["read"])
    assert (await wire.request("CONNECT", target, own)).status == 200
    trust = ssl.create_default_context(cafile=str(system.ca_file))
    trust.set_alpn_protocols(list(alpn or ("http/1.1",)))
    await wire.start_tls(trust, "localhost")
    return wire, target


async def test_i10_nothing_of_ours_inside_tls_and_i11_the_inner_word_counts_for_nothing(
    system, origins, secrets
):
    wire, target = await inside(system, origins[1], secrets)
    own = proxy_authorization("acme.prod.read~i-1", secrets["read"])
    answer = await wire.request("GET", "/echo", f"Host: {target}", own, *OURS)
    assert answer.status == 200
    assert_clean(answer.json()["headers"], target)


async def test_i10_nothing_of_ours_in_a_websocket_upgrade(system, origins, secrets):
    wire, target = await inside(system, origins[1], secrets)
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    ours = [line for line in OURS if not line.startswith("Connection")]
    answer = await wire.request(
        "GET", "/echo", f"Host: {target}", *upgrade, *ours, "Connection: X-Hop, X-Agent-Id"
    )
    headers = answer.json()["headers"]
    assert SENTINEL not in json.dumps(headers)
    assert (headers["upgrade"], headers["connection"]) == ("websocket", "Upgrade")


class Http2Client:
    """An HTTP/2 client that sends what it is told, well-formed or not."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                header_encoding="utf-8",
            )
        )
        self._connection.initiate_connection()

    async def request(self, headers, target: str, number: int = 1, trailers=()) -> Answer | None:
        """The answer; None when the stream or the connection was reset."""
        pseudo = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", target),
            (":path", "/echo"),
        ]
        self._connection.send_headers(number, [*pseudo, *headers])
        self._connection.send_data(number, b"0123", end_stream=not trailers)
        if trailers:
            self._connection.send_headers(number, list(trailers), end_stream=True)
        await self._wire.send(self._connection.data_to_send())
        status, body = 0, b""
        async with asyncio.timeout(5):
            while data := await self._wire.reader.read(65536):
                for event in self._connection.receive_data(data):
                    match type(event).__name__:
                        case "ResponseReceived":
                            status = int(dict(event.headers)[":status"])
                        case "DataReceived":
                            body += event.data
                        case "StreamReset" | "ConnectionTerminated":
                            return None
                        case "StreamEnded":
                            return Answer(status, {}, body)
        return None


async def test_i10_nothing_of_ours_over_http2_nor_in_its_trailers(system, origins, secrets):
    wire, target = await inside(system, origins[1], secrets, "h2")
    ours = [tuple(part.strip() for part in line.lower().split(":", 1)) for line in OURS]
    sent = [field for field in ours if field[0] not in ("connection", "proxy-connection", "x-hop")]
    client, answer = Http2Client(wire), None
    # To an origin of HTTP/1.1 trailers are not passed on, and the request may end by that.
    with contextlib.suppress(ConnectionError):
        answer = await client.request(
            sent,
            target,
            trailers=[("x-agent-id", SENTINEL), ("x_agent_id", SENTINEL), ("x-sum", "1")],
        )
    assert answer is None or answer.status in (200, 400)
    assert SENTINEL.encode() not in b"".join(bytes(seen.raw) for seen in origins[1].connections)


@pytest.mark.parametrize(
    "field",
    [
        ("connection", "x-agent-id"),
        ("connection", "host"),
        ("keep-alive", "5"),
        ("transfer-encoding", "chunked"),
    ],
    ids=str,
)
async def test_fields_of_one_hop_make_an_http2_request_malformed(system, origins, secrets, field):
    """RFC 9113, section 8.2.2."""
    wire, target = await inside(system, origins[1], secrets, "h2")
    answer = await Http2Client(wire).request([field], target)
    assert answer is None or answer.status == 400
    assert origins[1].requests == []


SWITCHES = {
    "another agent's secret": ("{acme.prod.b|b}", 421, "identity_switched"),
    "another agent's bearer": ("Proxy-Authorization: Bearer {b}", 421, "identity_switched"),
    "another instance": ("{acme.prod.a~i-2|a}", 421, "identity_switched"),
    "another token of the agent": ("{acme.prod.a~i-1|bound}", 421, "identity_switched"),
    "a wrong secret": ("{acme.prod.a|wrong}", 407, "proxy_credentials_invalid"),
    "none any more": ("X-Nothing: 1", 407, "proxy_credentials_required"),
    "its own, in another form": ("Proxy-Authorization: Bearer {a}", 200, None),
}


@pytest.mark.parametrize("name", SWITCHES)
async def test_i12_a_connection_stays_its_first_callers(system, origins, secrets, name):
    """Amended by CONTRACT.md, section 3: the first head decides, later ones must agree."""
    line, status, code = SWITCHES[name]
    origin = origins[0]
    wire = await connect(system)
    target, host = f"{origin.url}/echo", f"Host: {origin.host}"
    first = await wire.request(
        "GET", target, host, proxy_authorization("acme.prod.a", secrets["a"])
    )
    assert first.status == 200
    answer = await wire.request("GET", target, host, spelled(line, secrets))
    assert (answer.status, answer.json().get("error")) == (status, code)
    if code:
        assert await wire.ended() == b""
        assert len(origin.requests) == 1


async def test_i11_another_identity_inside_a_tunnel_is_refused(system, origins, secrets):
    wire, target = await inside(system, origins[1], secrets)
    answer = await wire.request(
        "GET", "/echo", f"Host: {target}", "X-Agent-URI: agent://acme/prod/b"
    )
    assert (answer.status, answer.json()["error"]) == (421, "identity_switched")
    assert origins[1].requests == []


async def test_other_secrets_cannot_be_tried_unseen_over_http2(system, origins, secrets):
    """One connection could else try thousands of them, with nobody told."""
    wire, target = await inside(system, origins[1], secrets, "h2")
    source = wire.writer.get_extra_info("sockname")[0]
    client = Http2Client(wire)
    guess = [("proxy-authorization", f"Bearer {WRONG}")]
    answer = await client.request(guess, target)
    assert (answer.status, answer.json()["error"]) == (407, "proxy_credentials_invalid")
    (event,) = await mismatches(system, source)
    assert event["details"]["kind"] == "proxy_credentials_invalid"


async def fails(system, source: str) -> tuple[Answer | None, float]:
    """One wrong secret from this address: the answer, None for none, and how long it took."""
    started = time.monotonic()
    wire = await connect(system, source)
    try:
        answer = await wire.request(
            "CONNECT", "a.test:443", proxy_authorization("acme.prod.a", WRONG)
        )
    except (ConnectionError, asyncio.IncompleteReadError):
        answer = None
    wire.close()
    return answer, time.monotonic() - started


async def test_i04_failing_answers_wait_and_a_valid_secret_never_does(system, origins, secrets):
    """All from one address, as behind a NAT: who fails is slowed, and only he."""
    source = "127.2.0.1"
    for _ in range(FREE):
        assert (await fails(system, source))[0].status == 407
    waits = [(await fails(system, source))[1] for _ in range(5)]
    assert waits[-1] >= 0.8
    async with asyncio.TaskGroup() as tasks:
        failing = [tasks.create_task(fails(system, source)) for _ in range(60)]
        for _ in range(10):
            started = time.monotonic()
            wire = await connect(system, source)
            own = proxy_authorization("acme.prod.a", secrets["a"])
            assert (await wire.request("CONNECT", origins[0].host, own)).status == 200
            assert time.monotonic() - started < 0.8
            wire.close()
    answers = [task.result() for task in failing]
    statuses = {answer.status if answer else None for answer, _ in answers}
    assert statuses == {407, None}, "some wait, and those that are too many are closed"
    assert all(took >= 0.8 for answer, took in answers if answer)


async def test_a_missing_credential_never_waits(system):
    """Challenge-first clients fail once each time."""
    source = "127.2.0.2"
    for _ in range(FREE + 3):
        await fails(system, source)
    wire = await connect(system, source)
    started = time.monotonic()
    assert (await wire.request("CONNECT", "a.test:443")).status == 407
    assert time.monotonic() - started < 0.8


async def mismatches(system, source: str | None = None, at_least: int = 1) -> list[dict]:
    """The audited ones, once there are some."""
    async with asyncio.timeout(10):
        while True:
            status, body = await system.api(
                "GET", "/v1/mesh/events?event_type=identity.mismatch&limit=1000"
            )
            assert status == 200
            found = [
                event for event in body["events"] if source in (None, event["details"]["source"])
            ]
            if len(found) >= at_least:
                return found
            await asyncio.sleep(0.05)


async def test_mismatches_are_audited_by_source_and_kind_and_never_with_the_secret(system, secrets):
    source = "127.2.0.3"
    wire = await connect(system, source)
    forged = proxy_authorization("acme.prod.b", secrets["a"])
    assert (await wire.request("CONNECT", "a.test:443", forged)).status == 407
    (event,) = await mismatches(system, source)
    assert event["details"] == {
        "source": source,
        "kind": "identity_mismatch",
        "claimed": "agent://acme/prod/a",
        "count": 1,
    }
    assert secrets["a"] not in json.dumps(event)


async def test_an_outsider_cannot_fill_the_audit_log(system):
    """Failures from very many addresses: the rows of a minute are bounded, the rest is counted together."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(300):
            tasks.create_task(fails(system, f"127.3.{number // 200}.{number % 200 + 1}"))
    others = await mismatches(system, "others")
    assert others[0]["details"]["claimed"] is None
    assert len(await mismatches(system)) <= 4 * KINDS_KEPT + 4


async def test_a_token_cannot_invent_instances_without_end_nor_lock_out_another(system, origins):
    made = [await new_token(system, "agent://acme/prod/hydra") for _ in range(2)]
    origin = origins[0]

    async def show(secret: str, instance: str) -> Answer:
        wire = await connect(system)
        own = proxy_authorization(f"acme.prod.hydra~{instance}", secret)
        answer = await wire.request("CONNECT", origin.host, own)
        wire.close()
        return answer

    for batch in range(20):
        answers = await asyncio.gather(
            *(show(made[0]["secret"], f"h-{batch}-{n}") for n in range(50))
        )
        assert {answer.status for answer in answers} == {200}
    refused = await show(made[0]["secret"], "h-more")
    assert (refused.status, refused.json()["error"]) == (429, "too_many_instances")
    assert "retry-after" in refused.headers
    assert (await show(made[0]["secret"], "h-7-7")).status == 200
    assert (await show(made[1]["secret"], "h-more")).status == 200


async def test_i13_a_revoked_secret_ends_its_tunnel_and_gets_407(system, origins):
    made = await new_token(system, "agent://acme/prod/leaver")
    own = proxy_authorization("acme.prod.leaver", made["secret"])
    wire = await connect(system)
    assert (await wire.request("CONNECT", origins[0].host, own)).status == 200
    started = time.monotonic()
    status, _ = await system.api("DELETE", f"/v1/tokens/{made['token_id']}")
    assert status == 200
    await wire.ended()
    assert time.monotonic() - started < 1.0
    again = await connect(system)
    answer = await again.request("CONNECT", origins[0].host, own)
    assert (answer.status, answer.json()["error"]) == (407, "proxy_credentials_invalid")


async def test_i15_an_instance_kill_ends_that_instance_alone(system, origins, secrets):
    wires = {}
    for instance in ("k-1", "k-2"):
        wires[instance] = await connect(system)
        own = proxy_authorization(f"acme.prod.a~{instance}", secrets["a"])
        assert (await wires[instance].request("CONNECT", origins[0].host, own)).status == 200
    status, receipt = await system.api(
        "POST", "/v1/mesh/kill", {"selector": "agent://acme/prod/a~k-1", "reason": "drill"}
    )
    assert (status, receipt["confirmed"], receipt["escapable"]) == (200, True, True)
    await wires["k-1"].ended()
    host = f"Host: {origins[0].host}"
    assert (await wires["k-2"].request("GET", "/echo", host)).status == 200


async def test_i14_secrets_are_nowhere(system, origins, secrets, tmp_path_factory):
    """Not in what is said, stored in the open or seen by `ps`; after all that the tests above have sent."""
    trace = await connect(system)
    own = proxy_authorization("acme.prod.a", secrets["a"])
    answer = await trace.request("TRACE", f"{origins[0].url}/echo", f"Host: {origins[0].host}", own)
    pages = [answer.body]
    _, events = await system.api("GET", "/v1/mesh/events?limit=1000")
    pages.append(json.dumps(events).encode())
    told = [word.encode() for word in (*secrets.values(), system.key, WRONG)]
    told += [basic(f"acme.prod.{name}", secrets[name]).encode()[6:] for name in ("a", "b")]
    for process in processes_of(system.process.pid):
        for name in ("cmdline", "environ"):
            pages.append(Path(f"/proc/{process}/{name}").read_bytes())
    for path in system.data_dir.rglob("*"):
        if path.is_file() and path.name != "admin.key":
            pages.append(path.read_bytes())
    assert len(pages) > 10
    for page in pages:
        for word in told:
            assert word not in page
    key = (system.data_dir / "admin.key").stat()
    assert (key.st_mode & 0o777, key.st_uid) == (0o600, os.getuid())


def processes_of(pid: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in processes_of(int(child)))]
