"""Differential fuzzing (H10): what an origin of another parser has read is what we have recorded, and nothing else.

Requests and whole pipelines, nearly right, go in the open, inside an intercepted tunnel and over HTTP/2
to an HTTP/1 origin. The origin reads with h11, the proxy's heads are read by llhttp.
HALTWIRE_FUZZ_SECONDS is the time of all tests here together: 60 by default, `make fuzz` takes 1800.
HALTWIRE_FUZZ_SEED repeats a run; a failure prints it.

Seen when the protection was removed: with HTTP/2 bodies sent up unframed, the third test fails within seconds.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.exceptions
import pytest
from haltwire_proxy.authority import ensure_ca
from hypothesis import strategies as st
from support.fuzzing import Ground, fuzz

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ground(tmp_path_factory, authority):
    data_dir = tmp_path_factory.mktemp("fuzz")
    ensure_ca(data_dir)
    with Ground(data_dir, authority) as made:
        yield made


def mostly(usual, *others, odds=6):
    """The usual choice, and at times one of the others."""
    return st.integers(0, odds).flatmap(
        lambda n: st.sampled_from(others) if n == odds else st.sampled_from(usual)
    )


SMUGGLED = b"GET {T}/smuggled HTTP/1.1\r\nHost: {H}\r\n{A}\r\n\r\n"
PATHS = [b"/", b"/a", b"/a/b?c=d", b"//x", b"/%0d%0aX:y", b"/a;b", b"/?", b"/a?b?c", b"/'\"<>|"]
METHODS = mostly(
    [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PROPFIND", b"HEAD"],
    *(b"get", b"CONNECT", b"G\0ET", b"STEAL", b"PRI", b"TRACE", b"GET ", b" GET", b"\r\nGET"),
)
TARGETS = mostly(
    [b"{T}"],
    *(
        b"",
        b"http://{H}",
        b"HTTP://{H}",
        b"https://{H}",
        b"http://other.test",
        b"http://LOCALHOST.",
    ),
    *(b"//{H}", b"http://a@{H}", b"http:/", b"*", b"{H}"),
    odds=9,
).flatmap(
    lambda prefix: mostly(
        PATHS, b"", b"*", b"/a b", b"/\x00", b"/\x7f", b"/\xc3\xa9", b"/#f", b"/a\t", odds=9
    ).map(lambda path: prefix + path)
)
VERSIONS = mostly([b"HTTP/1.1"], b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"", odds=12)
HOSTS = mostly(
    [[b"Host: {H}"]],
    *([], [b"Host:"], [b"Host: other.test"], [b"Host: {H}", b"Host: {H}"], [b"Host: localhost:1"]),
    *([b"Host: LOCALHOST"], [b"Host : {H}"], [b"Host: {H}, {H}"], [b"host:{H}"], [b"Host:\t{H} "]),
    *([b"Host: a@{H}"], [b"X-Host: {H}"], [b"Host: {H}\r\n other.test"]),
    odds=9,
)
EXTRAS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"Connection: close",
                b"Connection: keep-alive, x-agent-uri",
                b"Connection: Transfer-Encoding",
                b"Connection: Content-Length, Host",
                b"Expect: 100-continue",
                b"Expect: 100-continue\r\nExpect: 100-continue",
                b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAM",
                b"Upgrade: websocket\r\nConnection: upgrade",
                b"X-Agent-Trace: 1",
                b"X_Agent_URI: agent://acme/fuzz/other",
                b"Proxy-Connection: keep-alive",
                b"Proxy_Authorization: Basic eDp5",
                b"TE: trailers",
                b"Trailer: Host",
                b"Cookie: a=b",
                b"X: \xc3\xa9",
                b"X:",
                b"Content_Length: 3",
                b"Transfer_Encoding: chunked",
            ]
        ),
        st.sampled_from(
            [b"X: a\r\n b", b"X : y", b"X: a\rb", b"X: a\nb", b"X: \0", b": y", b"X", b"X: \x7f"]
        ),
        st.binary(min_size=1, max_size=8).map(lambda data: b"X: " + data),
        st.binary(min_size=1, max_size=4).map(lambda data: data + b": x"),
    ),
    max_size=2,
).map(lambda many: many if len(many) < 2 else many[:1])
BODIES = st.one_of(
    st.just(([], b"")),
    st.sampled_from([b"", b"a", b"hello", SMUGGLED, b"0\r\n\r\n" + SMUGGLED]).flatmap(
        lambda body: st.sampled_from(
            [
                ([b"Content-Length: {L}"], body),
                ([b"Content-Length: {L}"], body),
                ([b"Transfer-Encoding: chunked"], chunked(body)),
                ([b"Transfer-Encoding: chunked"], chunked(body)),
                ([b"Transfer-Encoding: CHUNKED"], chunked(body, b";x=y")),
                ([b"Transfer-Encoding: chunked"], chunked(body)[:-2] + b"X: y\r\n\r\n"),
                ([b"Transfer-Encoding: chunked"], chunked(body).replace(b"\r\n", b"\n", 1)),
                ([b"Transfer-Encoding: chunked"], b"0" + chunked(body)),
                ([b"Transfer-Encoding: chunked"], b"+" + chunked(body)),
                ([b"Content-Length: {L}", b"Transfer-Encoding: chunked"], chunked(body)),
                ([b"Transfer-Encoding: chunked", b"Content-Length: {L}"], body),
                ([b"Transfer-Encoding: xchunked"], body),
                ([b"Transfer-Encoding: identity", b"Content-Length: {L}"], body),
                ([b"Transfer-Encoding:\x0bchunked"], chunked(body)),
                ([b"Transfer-Encoding\x00: chunked"], chunked(body)),
                ([b"Content-Length: +{L}"], body),
                ([b"Content-Length: 0{L}"], body),
                ([b"Content-Length: {L},{L}"], body),
                ([b"Content-Length: {L}", b"Content-Length: 0"], body),
                ([b"Content-Length : {L}"], body),
                ([b"Content-Length: 1"], body),
                ([], body),
            ]
        )
    ),
)


def chunked(body: bytes, extension: bytes = b"") -> bytes:
    half = len(body) // 2
    pieces = [piece for piece in (body[:half], body[half:]) if piece]
    coded = b"".join(b"%x%s\r\n%s\r\n" % (len(one), extension, one) for one in pieces)
    return coded + b"0\r\n\r\n"


@dataclass(frozen=True)
class Pipeline:
    """What one client sends, with placeholders, and how."""

    requests: tuple[tuple[bytes, bytes], ...]
    "Heads and bodies."
    edits: tuple[tuple[int, int, bytes], ...]
    "Places, how many bytes go, and what comes instead."
    cuts: tuple[int, ...]

    def filled(self, target: bytes, host: bytes, credentials: bytes) -> list[bytes]:
        """The pieces in which it is sent."""
        raw = b""
        for head, body in self.requests:
            body = _fill(body, target, host, credentials)
            filled = _fill(head, target, host, credentials)
            raw += filled.replace(b"{L}", b"%d" % len(body)) + body
        for place, gone, instead in self.edits:
            place %= len(raw) + 1
            raw = raw[:place] + instead + raw[place + gone :]
        places = sorted({cut % (len(raw) + 1) for cut in self.cuts})
        return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True) if a < b]


def _fill(text: bytes, target: bytes, host: bytes, credentials: bytes) -> bytes:
    return text.replace(b"{T}", target).replace(b"{H}", host).replace(b"{A}", credentials)


@st.composite
def _request(draw) -> tuple[bytes, bytes]:
    framing, body = draw(BODIES)
    lines = [draw(METHODS) + b" " + draw(TARGETS) + b" " + draw(VERSIONS)]
    fields = [*draw(HOSTS), b"{A}", *framing, *draw(EXTRAS)]
    lines += draw(st.permutations(fields)) if draw(st.booleans()) else fields
    return b"\r\n".join(line for line in lines if line) + b"\r\n\r\n", body


EDITS = st.tuples(
    st.integers(0, 600),
    st.integers(0, 2),
    st.sampled_from(
        [
            b"",
            b"\n",
            b"\r",
            b"\r\n",
            b"\0",
            b" ",
            b"\t",
            b":",
            b",",
            b"\x7f",
            b"\x80",
            b"0",
            b"\r\n\r\n",
        ]
    ),
)
PIPELINES = st.builds(
    Pipeline,
    st.lists(_request(), min_size=1, max_size=4).map(tuple),
    st.one_of(st.just(()), st.just(()), st.lists(EDITS, max_size=2).map(tuple)),
    st.lists(st.integers(0, 1500), max_size=4).map(tuple),
)


async def _pipelined(ground: Ground, way: str, pipeline: Pipeline) -> None:
    wire = await ground.opened(way)
    host = (ground.tls if way == "inside" else ground.plain).host.encode()
    outside = way == "first"
    target = b"http://" + host if outside else b""
    pieces = pipeline.filled(target, host, ground.credentials if outside else b"X: y")
    with suppress(ConnectionError):
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0.0005)
    await ground.settle(wire)
    ground.judge(ordered=True)


def test_requests_in_the_open(ground):
    fuzz(PIPELINES, lambda case: ground.run(_pipelined(ground, "first", case)))


def test_requests_inside_an_intercepted_tunnel(ground):
    ways = st.sampled_from(["clear", "clear", "clear", "inside"])
    fuzz(st.tuples(ways, PIPELINES), lambda case: ground.run(_pipelined(ground, *case)))


@dataclass(frozen=True)
class Stream:
    """One HTTP/2 request."""

    headers: tuple[tuple[bytes, bytes], ...]
    pieces: tuple[bytes, ...]
    trailers: tuple[tuple[bytes, bytes], ...] | None
    reset: bool


NAMES = st.sampled_from(
    [
        *(b"x", b"content-length", b"transfer-encoding", b"connection", b"te", b"host", b"cookie"),
        *(b"x-agent-trace", b"proxy-authorization", b"x_agent_uri", b"X-A", b"x y", b"x\n", b""),
        *(b":path", b"expect"),
    ]
)
VALUES = st.sampled_from(
    [
        *(
            b"y",
            b"0",
            b"5",
            b"+5",
            b"5,5",
            b"chunked",
            b"close",
            b"trailers",
            b"{H}",
            b"other.test",
        ),
        *(b"", b"a\r\nHost: b", b"a\nb", b"a\rb", b"\0", b" a", b"\x7f", b"\xc3\xa9"),
        b"100-continue",
    ]
)
PIECES = st.lists(st.sampled_from([b"", b"a", b"hello", SMUGGLED, b"0\r\n\r\n"]), max_size=3)


@st.composite
def _stream(draw) -> Stream:
    fields = [
        (b":method", draw(mostly([b"GET", b"POST"], b"get", b"G T", b"CONNECT", b"A\r\nB", b""))),
        (b":scheme", draw(mostly([b"https"], b"http", b"ftp", b"https\r\nX: y", b"", odds=12))),
        (
            b":authority",
            draw(mostly([b"{H}"], b"other.test", b"", b"localhost", b"a@{H}", b"{H} x", odds=9)),
        ),
        (b":path", draw(mostly(PATHS, b"", b"*", b"/ HTTP/1.1\r\nX: ", b"/a b", b"x", b"/\xff"))),
    ]
    if draw(st.integers(0, 12)) == 0:
        fields = draw(st.permutations(fields))[draw(st.integers(0, 1)) :]
    fields += draw(st.lists(st.tuples(NAMES, VALUES), max_size=2)) if draw(st.booleans()) else []
    pieces = tuple(draw(PIECES))
    if pieces and draw(st.booleans()):
        fields.append((b"content-length", b"{L}"))
    trailers = draw(st.sampled_from([None, None, None, ((b"x-sum", b"1"),), ((b":path", b"/"),)]))
    return Stream(tuple(fields), pieces, trailers, draw(st.integers(0, 9)) == 0)


async def _multiplexed(ground: Ground, streams: list[Stream]) -> None:
    wire = await ground.opened("inside", ("h2",))
    host = ground.tls.host.encode()
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            header_encoding=False,
        )
    )
    client.initiate_connection()
    with suppress(ConnectionError, h2.exceptions.H2Error):
        for number, stream in zip(range(1, 99, 2), streams, strict=False):
            _play(client, number, stream, host)
            await wire.send(client.data_to_send())
    await ground.settle(wire)
    ground.judge(ordered=False)


def _play(client, number: int, stream: Stream, host: bytes) -> None:
    pieces = [_fill(piece, b"", host, b"X: y") for piece in stream.pieces]
    length = b"%d" % sum(map(len, pieces))
    headers = [
        (name, value.replace(b"{H}", host).replace(b"{L}", length))
        for name, value in stream.headers
    ]
    bare = not pieces and stream.trailers is None
    client.send_headers(number, headers, end_stream=bare)
    for piece in pieces:
        client.send_data(number, piece)
    if stream.reset:
        client.reset_stream(number)
    elif stream.trailers is not None:
        client.send_headers(number, list(stream.trailers), end_stream=True)
    elif not bare:
        client.end_stream(number)


def test_requests_over_http_2_to_an_http_1_origin(ground):
    cases = st.lists(_stream(), min_size=1, max_size=4)
    fuzz(cases, lambda case: ground.run(_multiplexed(ground, case)))
