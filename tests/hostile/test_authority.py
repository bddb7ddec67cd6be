"""One authority per request (issue group 3, S09): whatever names another host or port is refused, and nothing goes up.

Seen when the protection was removed, one at a time:
- one_authority._judge no longer compares: every row of "names another authority" is served (200) on every way.
- names_another without the port: `CONNECT localhost:P` with `Host: localhost:1` gets its 200.
- _name_once left out: `Host: localhost` goes up without its port, HTTP/1.0 without any Host.
- another_sni that finds nothing: a request is tried at the origin all the same (`upstream_unreachable`), and
  for raw bytes nothing is said.
- addon._settle without the tally: refused all the same, but no identity.mismatch is audited.
"""

import ssl

import pytest
import pytest_asyncio
from support.client import Wire, tunnel
from support.hostile import WAYS, RawHttp2, Said, hear, staged
from support.system import System


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory, authority):
    data = tmp_path_factory.mktemp("authority") / "data"
    async with System(
        data, "--workers", "1", "--upstream-ca", str(authority.ca_file), "--tls", "intercept"
    ) as running:
        yield running


@pytest.fixture
async def stage(system, authority, request):
    name = f"a{abs(hash(request.node.name)) % 10**9}"
    async with staged(system, authority, name) as made:
        yield made


GET = b"GET {T}/x HTTP/1.1\r\n"
ROWS = [
    ("another host", GET + b"Host: other.test\r\n{A}\r\n", 421, "authority_mismatch"),
    ("another port", GET + b"Host: localhost:1\r\n{A}\r\n", 421, "authority_mismatch"),
    ("empty Host", GET + b"Host:\r\n{A}\r\n", 421, "authority_mismatch"),
    ("blank Host", GET + b"Host:   \r\n{A}\r\n", 421, "authority_mismatch"),
    ("userinfo", GET + b"Host: user@{H}\r\n{A}\r\n", 421, "authority_mismatch"),
    ("two in one", GET + b"Host: {H}, other.test\r\n{A}\r\n", 421, "authority_mismatch"),
    ("a path in Host", GET + b"Host: {H}/other\r\n{A}\r\n", 421, "authority_mismatch"),
    ("a scheme in Host", GET + b"Host: http://{H}\r\n{A}\r\n", 421, "authority_mismatch"),
    ("port with zeros", GET + b"Host: localhost:00443\r\n{A}\r\n", 421, "authority_mismatch"),
    ("port 0", GET + b"Host: localhost:0\r\n{A}\r\n", 421, "authority_mismatch"),
    ("empty port", GET + b"Host: localhost:\r\n{A}\r\n", 421, "authority_mismatch"),
    ("an address", GET + b"Host: 127.0.0.1\r\n{A}\r\n", 421, "authority_mismatch"),
    ("non-ASCII", GET + "Host: localho\u017ft\r\n{A}\r\n".encode(), 421, "authority_mismatch"),
    ("no Host", GET + b"X: y\r\n{A}\r\n", 400, "malformed_request"),
    ("two Hosts", GET + b"Host: {H}\r\nHost: other.test\r\n{A}\r\n", 400, "malformed_request"),
    ("Host twice", GET + b"Host: {H}\r\nhost: {H}\r\n{A}\r\n", 400, "malformed_request"),
    (
        "absolute form of another host",
        b"GET {S}://other.test/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
        421,
        "authority_mismatch",
    ),
    (
        "absolute form of another port",
        b"GET {S}://localhost:1/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
        421,
        "authority_mismatch",
    ),
    (
        "absolute form with userinfo",
        b"GET {S}://a@{H}/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
        (400, 421),
        ("malformed_request", "authority_mismatch"),
    ),
    (
        "another scheme",
        b"GET ftp://{H}/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
        400,
        "malformed_request",
    ),
    (
        "a scheme that no one knows",
        b"GET gopher+x://{H}/ HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
        400,
        "malformed_request",
    ),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "raw", "status", "code"), ROWS, ids=[row[0] for row in ROWS])
async def test_whatever_names_another_authority_is_refused(stage, way, name, raw, status, code):
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, raw))
    said = await hear(wire)
    assert _is(said.statuses, status), said
    assert _is(said.codes, code), said
    assert stage.arrived(way) == []


def _is(found, expected):
    return len(found) == 1 and found[0] in (
        expected if isinstance(expected, tuple) else (expected,)
    )


@pytest.mark.parametrize("way", ["first", "later"])
async def test_in_the_open_the_whole_url_is_needed(stage, way):
    """A later request in the origin form would else go wherever its Host says."""
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, b"GET /x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n"))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([400], ["malformed_request"])
    assert stage.arrived(way) == []


SENT_UP = [
    ("as it is", b"GET {T}/x HTTP/1.1\r\nHost: {H}\r\n{A}\r\n"),
    ("Host without its port", b"GET {T}/x HTTP/1.1\r\nHost: localhost\r\n{A}\r\n"),
    ("HTTP/1.0 without Host", b"GET {T}/x HTTP/1.0\r\n{A}\r\n"),
    ("upper case", b"GET {T}/x HTTP/1.1\r\nHOST: {H}\r\n{A}\r\n"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "raw"), SENT_UP, ids=[row[0] for row in SENT_UP])
async def test_what_goes_up_is_what_was_judged(stage, way, name, raw):
    """Exactly one Host, with the port; the origin form; the host that the request was judged by."""
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, raw))
    assert (await wire.answer()).status == 200
    (request,) = stage.arrived(way)
    assert (request.method, request.target) == ("GET", "/x")
    assert request.host == stage.origin(way).host


@pytest.mark.parametrize(("way", "scheme"), [("clear", "http"), ("inside", "https")])
async def test_the_absolute_form_inside_a_tunnel_is_sent_up_in_the_origin_form(stage, way, scheme):
    wire = await stage.wire(way)
    raw = b"GET " + scheme.encode() + b"://{H}/x HTTP/1.1\r\nHost: {H}\r\n\r\n"
    await wire.send(stage.filled(way, raw))
    assert (await wire.answer()).status == 200
    (request,) = stage.arrived(way)
    assert (request.target, request.host) == ("/x", stage.origin(way).host)


async def test_a_mismatch_is_audited_once_with_its_count_and_the_agent(tmp_path, authority):
    """Three attempts inside one minute: one event at once; the rest is counted into the next.

    On a system of its own: the 32 agents that are told apart within a minute are those of the rows above.
    """
    async with (
        System(tmp_path, "--workers", "1", "--upstream-ca", str(authority.ca_file)) as system,
        staged(system, authority, "audited") as stage,
    ):
        for _ in range(3):
            wire = await stage.wire("later")
            await wire.send(
                stage.filled("later", b"GET {T}/x HTTP/1.1\r\nHost: other.test\r\n{A}\r\n")
            )
            await hear(wire)
        await stage.agent.counted("refused", 3)
        uri = "agent://" + stage.agent.label.replace(".", "/")
        _, found = await system.api(
            "GET", "/v1/mesh/events?event_type=identity.mismatch&limit=1000"
        )
        events = [event for event in found["events"] if event["agent_uri"] == uri]
        assert len(events) == 1
        assert events[0]["details"]["kind"] == "authority_mismatch"


@pytest.mark.parametrize("host", ["other.test", "localhost:1", "a@b"])
async def test_a_connects_own_host_must_be_its_target(stage, host):
    wire = await Wire.open(stage.agent.system.port)
    target = stage.tls.host
    answer = await wire.request("CONNECT", target, f"Host: {host}", stage.agent.header)
    assert (answer.status, answer.json()["error"]) == (421, "authority_mismatch")
    assert stage.tls.heard == []


@pytest.mark.parametrize("behind", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0binary"])
async def test_an_sni_that_is_another_name_opens_nothing(stage, behind):
    """Nor for bytes that are not HTTP: the upstream's TLS would be asked for that name."""
    agent = stage.agent
    wire = await tunnel(agent.system.port, stage.tls.host, agent.label, agent.secret)
    context = ssl.create_default_context(cafile=str(stage.agent.system.ca_file))
    await wire.start_tls(context, "other.test")
    await wire.send(behind)
    said = await hear(wire)
    assert said.codes == ["authority_mismatch"]
    assert stage.tls.heard == []


@pytest.mark.parametrize("way", ["later", "clear", "inside"])
async def test_a_connect_inside_is_refused(stage, way):
    wire = await stage.wire(way)
    raw = b"CONNECT {H} HTTP/1.1\r\nHost: {H}\r\n{A}\r\n"
    await wire.send(stage.filled(way, raw) + b"GET / HTTP/1.1\r\n\r\n")
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([400], ["malformed_request"])
    assert stage.arrived(way) == []


def _head(stage, *more, **pseudo):
    fields = {
        "method": b"GET",
        "scheme": b"https",
        "path": b"/x",
        "authority": stage.tls.host.encode(),
    }
    fields.update(pseudo)
    named = [(b":" + name.encode(), value) for name, value in fields.items() if value is not None]
    return [*named, *more]


HTTP2 = [
    ("another authority", {"authority": b"other.test"}, (), 421, "authority_mismatch"),
    ("another port", {"authority": b"localhost:1"}, (), 421, "authority_mismatch"),
    ("userinfo", {"authority": b"a@localhost"}, (), (421, None), "authority_mismatch"),
    ("empty authority", {"authority": b""}, (), (400, None), "malformed_request"),
    (
        "only Host, another",
        {"authority": None},
        ((b"host", b"other.test"),),
        421,
        "authority_mismatch",
    ),
    ("Host beside it, another", {}, ((b"host", b"other.test"),), None, None),
    (
        "two Hosts",
        {"authority": None},
        ((b"host", b"localhost"), (b"host", b"other.test")),
        (400, None),
        "malformed_request",
    ),
    ("neither", {"authority": None}, (), None, None),
    ("scheme http", {"scheme": b"http"}, (), 400, "malformed_request"),
    ("scheme file", {"scheme": b"file"}, (), 400, "malformed_request"),
    ("CONNECT", {"method": b"CONNECT", "scheme": None, "path": None}, (), None, None),
    ("CONNECT with a path", {"method": b"CONNECT"}, (), 400, "malformed_request"),
    (
        "extended CONNECT (RFC 8441)",
        {"method": b"CONNECT", "protocol": b"websocket"},
        (),
        None,
        None,
    ),
]


@pytest.mark.parametrize(
    ("name", "pseudo", "more", "status", "code"), HTTP2, ids=[row[0] for row in HTTP2]
)
async def test_http_2_names_one_authority_too(stage, name, pseudo, more, status, code):
    """What is no HTTP/2 at all ends the connection (status None): there is nothing to answer on."""
    client = await RawHttp2.open(stage)
    await client.send(_head(stage, *more, **pseudo))
    await client.settled(1)
    seen = client.statuses.get(1)
    assert seen in (status if isinstance(status, tuple) else (status,))
    if seen is None:
        assert client.goaway is not None or client.resets
    elif code:
        assert client.codes() == [code]
    assert stage.tls.heard == []


async def test_http_2_goes_up_with_one_host(stage):
    client = await RawHttp2.open(stage)
    host = stage.tls.host.encode()
    await client.send(_head(stage, (b"host", host)))
    await client.settled(1)
    assert client.statuses == {1: 200}
    (request,) = stage.arrived("h2")
    assert request.host == stage.tls.host


def test_said_reads_what_the_proxy_says():
    said = Said(b'HTTP/1.1 421 M\r\n\r\n{"error":"authority_mismatch"}\n')
    assert (said.statuses, said.codes) == ([421], ["authority_mismatch"])
