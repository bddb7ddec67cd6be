"""A hostile origin: its responses cannot be read twice, put out of step, or turned into a tunnel (issue groups 3, 4).

Seen when the protection was removed, one at a time:
- mitmproxy's own Http1Client: a 103 is taken for the answer, so that [103, evil, good] answer three pipelined
  requests; a header flood that comes in two reads is passed on.
- one_authority._keep_to_http1 left out: `Upgrade: h2c` reaches the origin, which then goes on unread.
- one_authority.is_sound without control characters: a bare CR goes through to the client.
"""

import asyncio
import ssl

import pytest
import pytest_asyncio
from support.client import serving
from support.hostile import Agent, Stage, hear
from support.system import System

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
WAYS = ("first", "clear", "inside")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory, authority):
    data = tmp_path_factory.mktemp("responses") / "data"
    async with System(
        data, "--workers", "1", "--upstream-ca", str(authority.ca_file), "--tls", "intercept"
    ) as running:
        yield running


class Hostile:
    """An origin that answers /good well, and anything else as the test wants."""

    def __init__(self, evil: bytes, then: bytes = b"") -> None:
        self.evil, self.then = evil, then
        self.heads: list[bytes] = []
        self.ended = asyncio.Event()
        "One of its connections has ended."
        self.behind = bytearray()
        "What came behind the head that got the evil answer."

    async def serve(self, reader, writer) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if b"/good " in head:
                    writer.write(OK % (4, b"good"))
                else:
                    writer.write(self.evil)
                    await writer.drain()
                    if self.then:
                        writer.write(self.then)
                    while b"/evil " in head and (more := await reader.read(65536)):
                        self.behind += more
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self.ended.set()
            writer.transport.abort()


@pytest.fixture
async def put_up(system, authority, request):
    """A stage whose origins are hostile."""
    servers = []
    agent = await Agent.made(system, f"r{abs(hash(request.node.name)) % 10**9}")

    async def put_up(evil: bytes, then: bytes = b"") -> tuple[Stage, Hostile]:
        origin = Hostile(evil, then)
        ports = []
        for context in (None, authority.server_context("localhost")):
            server, port = await serving(origin.serve, context)
            servers.append(server)
            ports.append(port)
        return Stage(agent, _At(ports[0]), _At(ports[1])), origin

    yield put_up
    for server in servers:
        server.close()


class _At:
    def __init__(self, port: int) -> None:
        self.host = f"localhost:{port}"


def _get(stage, way: str, path: str, more: bytes = b"", method: bytes = b"GET") -> bytes:
    head = method + b" {T}/" + path.encode() + b" HTTP/1.1\r\nHost: {H}\r\n{A}"
    return stage.filled(way, head + more + b"\r\n")


MALFORMED = {
    "CL and TE": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two CL": b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "CL +4": b"Content-Length: +4\r\n\r\nabcd",
    "TE xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare CR in a value": b"X: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "folded": b"X: a\r\n Set-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "blank before the colon": b"Content-Length : 0\r\n\r\n",
    "blank in a name": b"Set Cookie: x\r\nContent-Length: 0\r\n\r\n",
    "no colon": b"nonsense\r\nContent-Length: 0\r\n\r\n",
    "a header flood": b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"X: x\r\n" * 40_000 + b"\r\n",
}
STATUS_LINES = {
    "status 1000": b"HTTP/1.1 1000 OK\r\nContent-Length: 0\r\n\r\n",
    "status +200": b"HTTP/1.1 +200 OK\r\nContent-Length: 0\r\n\r\n",
    "status 2_0": b"HTTP/1.1 2_0 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "interim without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
    "an upgrade that was not asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nraw",
    "an upgrade to nothing": b"HTTP/1.1 101 Switching\r\n\r\nraw",
}
EVIL = {
    **{name: b"HTTP/1.1 200 OK\r\n" + head for name, head in MALFORMED.items()},
    **STATUS_LINES,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", EVIL)
async def test_a_response_that_can_be_read_twice_is_none(put_up, way, name):
    """The client gets one typed 502, nothing of what the origin sent, and no other answer."""
    stage, origin = await put_up(EVIL[name])
    wire = await stage.wire(way)
    await wire.send(_get(stage, way, "evil"))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([502], ["upstream_unreachable"])
    for told in (b"Set-Cookie", b"raw", b"html", b"nonsense", b"SSH"):
        assert told not in said.raw
    assert len(origin.heads) == 1
    assert origin.behind == b""


SMUGGLED = OK % (8, b"smuggled")
OUT_OF_STEP = {
    "two responses": ("evil", OK % (4, b"evil") + SMUGGLED, b"", 200),
    "a body behind 204": ("evil", b"HTTP/1.1 204 No Content\r\n\r\n" + SMUGGLED, b"", 204),
    "a body behind 304": (
        "evil",
        b"HTTP/1.1 304 N\r\nContent-Length: 47\r\n\r\n" + SMUGGLED,
        b"",
        304,
    ),
    "interim first": (
        "hints",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK % (4, b"evil"),
        b"",
        200,
    ),
    "100 first": ("hints", b"HTTP/1.1 100 Continue\r\n\r\n" + OK % (4, b"evil"), b"", 200),
    "interim in two reads": ("hints", b"HTTP/1.1 103 E\r\n\r\n", OK % (4, b"evil"), 200),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OUT_OF_STEP)
async def test_the_next_request_gets_its_own_answer(put_up, way, name):
    """Stock mitmproxy takes an interim response for the answer: the answer to a pipelined request is then another's."""
    path, evil, then, status = OUT_OF_STEP[name]
    stage, _ = await put_up(evil, then)
    wire = await stage.wire(way)
    await wire.send(_get(stage, way, path) + _get(stage, way, "good") + _get(stage, way, "good"))
    answers = [await wire.answer() for _ in range(3)] if status == 200 else None
    if answers is not None:
        assert [(one.status, one.body) for one in answers] == [
            (200, b"evil"),
            (200, b"good"),
            (200, b"good"),
        ]
    else:
        await wire.reader.readuntil(b"\r\n\r\n")
        assert (await wire.answer()).body == b"good"
        assert (await wire.answer()).body == b"good"


@pytest.mark.parametrize("way", WAYS)
async def test_a_response_that_nobody_has_asked_for_ends_its_upstream(put_up, way):
    stage, origin = await put_up(OK % (4, b"evil"), SMUGGLED)
    wire = await stage.wire(way)
    await wire.send(_get(stage, way, "evil"))
    assert (await wire.answer()).body == b"evil"
    await asyncio.wait_for(origin.ended.wait(), 5)
    await wire.send(_get(stage, way, "good"))
    assert (await wire.answer()).body == b"good"


async def test_a_body_behind_the_answer_to_head_is_nobodys(put_up):
    stage, _ = await put_up(OK % (4, b"evil") + SMUGGLED)
    wire = await stage.wire("inside")
    await wire.send(_get(stage, "inside", "evil", method=b"HEAD") + _get(stage, "inside", "good"))
    head = await wire.reader.readuntil(b"\r\n\r\n")
    assert b"200" in head
    assert (await wire.answer()).body == b"good"


@pytest.mark.parametrize("way", WAYS)
async def test_an_upgrade_answered_200_is_no_tunnel(put_up, way):
    """H06: what follows is judged as a request."""
    stage, origin = await put_up(OK % (4, b"evil"))
    wire = await stage.wire(way)
    asked = b"Connection: upgrade\r\nUpgrade: x\r\n"
    await wire.send(_get(stage, way, "hints", asked))
    assert (await wire.answer()).body == b"evil"
    await wire.send(b"\0\1 raw bytes\r\n\r\n")
    said = await hear(wire)
    assert said.codes == ["malformed_request"]
    assert b"raw" not in b"".join(origin.heads)


@pytest.mark.parametrize("way", WAYS)
async def test_an_upgrade_to_another_protocol_than_asked_for_is_none(put_up, way):
    evil = b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\nraw"
    stage, origin = await put_up(evil)
    wire = await stage.wire(way)
    await wire.send(_get(stage, way, "evil", b"Connection: upgrade\r\nUpgrade: x\r\n"))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([502], ["upstream_unreachable"])
    assert b"raw" not in said.raw
    assert origin.behind == b""


@pytest.mark.parametrize("way", WAYS)
async def test_an_upgrade_that_was_asked_for_and_granted_is_one(put_up, way):
    evil = b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: X\r\n\r\nraw"
    stage, origin = await put_up(evil)
    wire = await stage.wire(way)
    await wire.send(_get(stage, way, "evil", b"Connection: Upgrade\r\nUpgrade: x\r\n"))
    assert (await wire.answer()).status == 101
    assert await asyncio.wait_for(wire.reader.readexactly(3), 5) == b"raw"
    await wire.send(b"\0up")
    async with asyncio.timeout(5):
        while origin.behind != b"\0up":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("offer", [b"h2c", b"x, h2c", b"H2C", b"HTTP/2.0"])
async def test_nobody_goes_on_in_http_2_unread(put_up, way, offer):
    """The offer (Java's default, curl --http2) is not passed on; an origin that takes it all the same gets nothing."""
    evil = b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    stage, origin = await put_up(evil)
    wire = await stage.wire(way)
    asked = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABk\r\n"
    await wire.send(_get(stage, way, "evil", asked % offer) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([502], ["upstream_unreachable"])
    (head,) = origin.heads
    for name in (b"upgrade", b"http2-settings"):
        assert name not in head.lower()
    assert origin.behind == b""


@pytest.mark.parametrize("chunk", [b"5\r\nhelloXX", b"+5\r\nhello\r\n", b"5;" + b"e" * 70_000])
async def test_a_chunked_response_that_is_none_ends_the_connection(put_up, chunk):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n"
    stage, _ = await put_up(head + chunk)
    wire = await stage.wire("inside")
    await wire.send(_get(stage, "inside", "evil") + _get(stage, "inside", "good"))
    said = await hear(wire)
    assert said.statuses == [200]
    assert b"good" not in said.raw
    assert not said.raw.endswith(b"0\r\n\r\n")


async def test_trailers_of_a_response_are_left_out_and_the_connection_lives_on(put_up):
    """H07: stock mitmproxy ends it with an exception."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    stage, _ = await put_up(head + b"4\r\nevil\r\n0\r\nSet-Cookie: x\r\nContent-Length: 9\r\n\r\n")
    wire = await stage.wire("inside")
    await wire.send(_get(stage, "inside", "trailers") + _get(stage, "inside", "good"))
    got = await asyncio.wait_for(wire.reader.readuntil(b"0\r\n\r\n"), 5)
    assert got.endswith(b"\r\n\r\n4\r\nevil\r\n0\r\n\r\n")
    assert (await wire.answer()).body == b"good"
