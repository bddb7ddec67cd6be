"""What two readers could read differently is never passed on (issue group 4, H01 to H12).

Seen when the protection was removed, one at a time:
- http1._request_of without parse_head: heads behind the first are served with bare LF, a fragment, two blanks
  in the request line or `gzip, chunked`, on a kept connection and inside a tunnel.
- mitmproxy's own Http1Server: the same, HTML pages that quote the request, and trailers end the connection.
- Http1Client.send without Transfer-Encoding: an HTTP/2 body of unsaid length is read by the origin as a second
  request, `GET /smuggled`.
- one_authority._PATH takes anything: an HTTP/2 path with a blank becomes another HTTP/1 request line.
"""

import asyncio
import gzip
from pathlib import Path

import pytest
import pytest_asyncio
from support.client import serving
from support.hostile import WAYS, RawHttp2, hear, staged
from support.procs import Peaks
from support.system import System


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory, authority):
    data = tmp_path_factory.mktemp("parsing") / "data"
    async with System(
        data, "--workers", "1", "--upstream-ca", str(authority.ca_file), "--tls", "intercept"
    ) as running:
        yield running


@pytest.fixture
async def stage(system, authority, request):
    name = f"p{abs(hash(request.node.name)) % 10**9}"
    async with staged(system, authority, name) as made:
        yield made


GET = b"GET {T}/x HTTP/1.1\r\nHost: {H}\r\n{A}"
POST = b"POST {T}/x HTTP/1.1\r\nHost: {H}\r\n{A}"
END = b"\r\n"
SMUGGLED = b"GET {T}/smuggled HTTP/1.1\r\nHost: {H}\r\n{A}\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: 4\r\n"

HEADS = {
    # H01: how long a body is, twice or otherwise
    "CL and TE": POST + LENGTH + CHUNKED + END + b"0\r\n\r\n",
    "TE and CL": POST + CHUNKED + LENGTH + END + b"0\r\n\r\n",
    "TE twice": POST + CHUNKED + CHUNKED + END + b"0\r\n\r\n",
    "TE and another": POST + CHUNKED + b"Transfer-Encoding: identity\r\n" + END,
    "TE list": POST + b"Transfer-Encoding: chunked, chunked\r\n" + END + b"0\r\n\r\n",
    "TE chunked before another": POST + b"Transfer-Encoding: chunked, gzip\r\n" + END,
    "TE behind another": POST + b"Transfer-Encoding: gzip, chunked\r\n" + END + b"0\r\n\r\n",
    "TE xchunked": POST + b"Transfer-Encoding: xchunked\r\n" + END + b"0\r\n\r\n",
    "TE identity": POST + b"Transfer-Encoding: identity\r\n" + END,
    "TE empty": POST + b"Transfer-Encoding:\r\n" + END,
    "TE with a control": POST + b"Transfer-Encoding: \x0bchunked\r\n" + END + b"0\r\n\r\n",
    "TE quoted": POST + b'Transfer-Encoding: "chunked"\r\n' + END + b"0\r\n\r\n",
    "TE blank colon": POST + b"Transfer-Encoding : chunked\r\n" + END + b"0\r\n\r\n",
    "TE folded": POST + b"Transfer-Encoding:\r\n chunked\r\n" + END + b"0\r\n\r\n",
    "TE in HTTP/1.0": POST.replace(b"1.1", b"1.0") + CHUNKED + END + b"0\r\n\r\n",
    "two CL": POST + LENGTH + b"Content-Length: 5\r\n" + END + b"abcd",
    "CL twice": POST + LENGTH + LENGTH + END + b"abcd",
    "CL +4": POST + b"Content-Length: +4\r\n" + END + b"abcd",
    "CL -4": POST + b"Content-Length: -4\r\n" + END + b"abcd",
    "CL 4,4": POST + b"Content-Length: 4,4\r\n" + END + b"abcd",
    "CL 4 4": POST + b"Content-Length: 4 4\r\n" + END + b"abcd",
    "CL 0x4": POST + b"Content-Length: 0x4\r\n" + END + b"abcd",
    "CL 04": POST + b"Content-Length: 04\r\n" + END + b"abcd",
    "CL 4.0": POST + b"Content-Length: 4.0\r\n" + END + b"abcd",
    "CL empty": POST + b"Content-Length:\r\n" + END,
    "CL overflow": POST + b"Content-Length: 18446744073709551620\r\n" + END + b"abcd",
    "CL in other digits": POST + "Content-Length: \u0664\r\n".encode() + END + b"abcd",
    "CL blank colon": POST + b"Content-Length : 4\r\n" + END + b"abcd",
    "CL behind a bare CR": POST + b"X: y\rContent-Length: 4\r\n" + END + b"abcd",
    # H02: where a line ends and what it may hold
    "bare LF after the request line": GET.replace(b"1.1\r\n", b"1.1\n", 1) + END,
    "bare LF after a field": GET + b"X: y\nZ: 1\r\n" + END,
    "bare LF ends the head": GET + b"X: y\r\n\n",
    "bare LF all through": (GET + b"\r\n").replace(b"\r\n", b"\n"),
    "LF CR": GET + b"X: y\n\r\n" + END,
    "bare CR in a value": GET + b"X: a\rb\r\n" + END,
    "bare CR in the target": GET.replace(b"/x", b"/x\ry") + END,
    "CR CR LF": GET + b"X: y\r\r\n" + END,
    "folded by a blank": GET + b"X: a\r\n b\r\n" + END,
    "folded by a tab": GET + b"X: a\r\n\tb\r\n" + END,
    "first field folded": GET.replace(b"Host", b" Host", 1) + END,
    "NUL in a value": GET + b"X: a\0b\r\n" + END,
    "NUL in a name": GET + b"X\0Y: a\r\n" + END,
    "NUL in the target": GET.replace(b"/x", b"/x\0") + END,
    "NUL in the method": GET.replace(b"GET", b"G\0T") + END,
    "DEL in a value": GET + b"X: a\x7fb\r\n" + END,
    "DEL in a name": GET + b"X\x7f: a\r\n" + END,
    "DEL in the target": GET.replace(b"/x", b"/\x7f") + END,
    "BEL in a value": GET + b"X: \x07\r\n" + END,
    "VT in a value": GET + b"X: \x0b\r\n" + END,
    "tab in a name": GET + b"X\tY: a\r\n" + END,
    "blank in a name": GET + b"X Y: a\r\n" + END,
    "blank before the colon": GET + b"X : a\r\n" + END,
    "no name": GET + b": a\r\n" + END,
    "no colon": GET + b"nonsense\r\n" + END,
    "brackets in a name": GET + b"X[0]: a\r\n" + END,
    "two blanks in the request line": GET.replace(b"GET ", b"GET  ") + END,
    "tab in the request line": GET.replace(b" HTTP", b"\tHTTP") + END,
    "blank in the target": GET.replace(b"/x", b"/x y") + END,
    "blank behind the version": GET.replace(b"1.1\r\n", b"1.1 \r\n", 1) + END,
    "non-ASCII target": GET.replace(b"/x", b"/\xc3\xa9") + END,
    "a fragment": GET.replace(b"/x", b"/x#y") + END,
    "lower-case method": GET.replace(b"GET", b"get") + END,
    "a method of its own": GET.replace(b"GET", b"STEAL") + END,
    "HTTP/0.9": b"GET {T}/x\r\n" + END,
    "HTTP/1.2": GET.replace(b"1.1", b"1.2") + END,
    "HTTP/2.0": GET.replace(b"1.1", b"2.0") + END,
    "HTTP/1.10": GET.replace(b"HTTP/1.1", b"HTTP/1.10") + END,
    "http/1.1": GET.replace(b"HTTP/1.1", b"http/1.1") + END,
    "RTSP": GET.replace(b"HTTP/1.1", b"RTSP/1.0") + END,
    "TLS where HTTP was": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_can_be_read_twice_is_refused_and_nothing_behind_it_is_served(
    stage, way, name
):
    if name == "TLS where HTTP was" and way in ("first", "clear", "inside"):
        pytest.skip("there it is TLS (with the proxy itself, or inside), or bytes that are no HTTP")
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, HEADS[name] + SMUGGLED))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([400], ["malformed_request"]), said
    assert stage.arrived(way) == []


@pytest.mark.parametrize("way", ["later", "clear", "inside"])
async def test_a_pipelined_request_that_is_malformed_is_refused_behind_the_answer_to_the_first(
    stage, way
):
    wire = await stage.wire(way)
    raw = GET + END + GET + b"X : y\r\n" + END + SMUGGLED
    await wire.send(stage.filled(way, raw))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([200, 400], ["malformed_request"])
    assert [one.target for one in stage.arrived(way)] == ["/x"]


CHUNKS = {
    "bad terminator": b"5\r\nhelloXX0\r\n\r\n",
    "LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "hexadecimal prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "leading blank": b" 5\r\nhello\r\n0\r\n\r\n",
    "blank inside": b"5 5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "an overflow": b"1" + b"0" * 20 + b"5\r\nhello\r\n0\r\n\r\n",
    "a size of 2^64 and 5": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a huge extension": b"5;" + b"e" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
    "a trailer that is none": b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
}


@pytest.mark.parametrize("way", ["first", "inside"])
@pytest.mark.parametrize("name", CHUNKS)
async def test_a_chunked_body_that_is_none_ends_both_sides(stage, way, name):
    """H04: the origin never gets its end, and the request behind it is never served."""
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, POST + CHUNKED + END + CHUNKS[name] + SMUGGLED))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([400], ["malformed_request"])
    assert [one.length for one in stage.arrived(way)] in ([], [None])


GOOD = {
    "a length": (POST + LENGTH + END + b"abcd", 4),
    "blanks around a length": (POST + b"Content-Length: \t 4 \r\n" + END + b"abcd", 4),
    "chunks": (POST + CHUNKED + END + b"2\r\nab\r\n2;x=y\r\ncd\r\n0\r\n\r\n", 4),
    "TE in capitals": (POST + b"TRANSFER-ENCODING: Chunked\r\n" + END + b"1\r\na\r\n0\r\n\r\n", 1),
    "trailers": (POST + CHUNKED + END + b"1\r\na\r\n0\r\nX-Secret: 1\r\nHost: b\r\n\r\n", 1),
    "upper-case scheme": (GET.replace(b"{T}", b"{S}://{H}").replace(b"http", b"HTTP") + END, 0),
    "an empty line before it": (b"\r\n" + GET + END, 0),
    "another method": (GET.replace(b"GET", b"PROPFIND") + END, 0),
    "non-ASCII in a value": (GET + b"X: \xc3\xa9\r\n" + END, 0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GOOD)
async def test_what_can_be_read_in_one_way_goes_up_framed_anew(stage, way, name):
    """H07, H09: trailers are left out, the scheme's case is nobody's business, and the connection lives on."""
    if name == "an empty line before it" and way == "first":
        pytest.skip("the door takes a first byte that is no letter for another protocol")
    raw, length = GOOD[name]
    wire = await stage.wire(way)
    raw = raw.replace(b"{S}", b"HTTP") if name == "upper-case scheme" and way != "inside" else raw
    await wire.send(stage.filled(way, raw))
    assert (await wire.answer()).status == 200
    await wire.send(stage.filled(way, GET + END))
    assert (await wire.answer()).status == 200
    first, second = stage.arrived(way)
    assert (first.length, second.length) == (length, 0)
    assert stage.origin(way).errors == []
    assert b"Secret" not in stage.origin(way).raw


@pytest.mark.parametrize("way", WAYS)
async def test_an_expectation_is_answered_by_us_and_goes_no_further(stage, way):
    """H05."""
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, POST + LENGTH + b"Expect: 100-continue\r\n" + END))
    assert (await wire.answer()).status == 100
    await wire.send(b"abcd")
    assert (await wire.answer()).status == 200
    (request,) = stage.arrived(way)
    assert (request.length, request.values("expect")) == (4, [])


@pytest.mark.parametrize("way", ["later", "clear", "inside"])
async def test_a_refused_expectation_is_not_encouraged(stage, way):
    wire = await stage.wire(way)
    raw = POST.replace(b"Host: {H}", b"Host: other.test") + LENGTH + b"Expect: 100-continue\r\n"
    await wire.send(stage.filled(way, raw + END))
    assert (await wire.answer()).status == 421
    assert stage.arrived(way) == []


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
)
async def test_a_connect_with_a_body_is_refused(stage, framing):
    """H08: some read it as the tunnel's first bytes, others skip it."""
    wire = await stage.wire("first")
    raw = b"CONNECT {H} HTTP/1.1\r\nHost: {H}\r\n{A}" + framing
    await wire.send(stage.filled("first", raw))
    said = await hear(wire)
    assert (said.statuses, said.codes) == ([400], ["malformed_request"])
    assert stage.plain.heard == []


MARK = b"<script>Markus7</script>"
MARKED = [
    b"GET {T}/" + MARK + b" HTTP/1.1\r\nHost: {H}\r\n{A}" + MARK + b" : 1\r\n\r\n",
    b"Markus7 {T}/ HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
    b"GET {T}/ HTTP/1.1\r\nHost: Markus7\r\n{A}\r\n",
    b"GET {T}/ HTTP/1.1\r\nHost: " + MARK + b"\r\n{A}\r\n",
    b"GET Markus7://{H}/ HTTP/1.1\r\nHost: {H}\r\n{A}\r\n",
    b"GET {T}/?Markus7 HTTP/Markus7\r\nHost: {H}\r\n{A}\r\n",
    b"POST {T}/ HTTP/1.1\r\nHost: {H}\r\n{A}Transfer-Encoding: Markus7\r\n\r\n",
    b"POST {T}/ HTTP/1.1\r\nHost: {H}\r\n{A}Content-Length: Markus7\r\n\r\n",
    b"POST {T}/ HTTP/1.1\r\nHost: {H}\r\n{A}Transfer-Encoding: chunked\r\n\r\nMarkus7\r\n",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("raw", MARKED, ids=range(len(MARKED)))
async def test_a_refusal_is_json_and_never_quotes_the_request(stage, way, raw):
    """H11: stock mitmproxy answers in HTML with the request line in it."""
    wire = await stage.wire(way)
    await wire.send(stage.filled(way, raw))
    said = await hear(wire)
    assert len(said.codes) == 1, said
    assert b"application/json" in said.raw
    assert b"arkus" not in said.raw
    assert b"html" not in said.raw


def _head(stage, *more, **pseudo):
    host = stage.tls.host.encode()
    fields = {"method": b"POST", "scheme": b"https", "path": b"/x", "authority": host}
    fields.update(pseudo)
    named = [(b":" + name.encode(), value) for name, value in fields.items() if value is not None]
    return [*named, *more]


REQUEST_LINE = b"/x HTTP/1.1\r\nHost: localhost\r\n\r\nGET /smuggled"
HTTP2 = {
    # H03
    "CRLF in a value": ({}, [(b"x", b"a\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1.1")]),
    "LF in a value": ({}, [(b"x", b"a\nb: c")]),
    "CR in a value": ({}, [(b"x", b"a\rb: c")]),
    "NUL in a value": ({}, [(b"x", b"a\0b")]),
    "DEL in a value": ({}, [(b"x", b"a\x7fb")]),
    "blank before a value": ({}, [(b"x", b" a")]),
    "CRLF in a name": ({}, [(b"x: y\r\nz", b"a")]),
    "colon in a name": ({}, [(b"x:y", b"a")]),
    "blank in a name": ({}, [(b"x y", b"a")]),
    "LF behind a name": ({}, [(b"x\n", b"a")]),
    "upper-case name": ({}, [(b"X-A", b"a")]),
    "empty name": ({}, [(b"", b"a")]),
    "CRLF in the path": ({"path": REQUEST_LINE}, []),
    "a request line in the path": ({"path": b"/x HTTP/1.1 y"}, []),
    "tab in the path": ({"path": b"/x\tHTTP/1.1"}, []),
    "no slash": ({"path": b"@other.test/"}, []),
    "a whole URL as path": ({"path": b"https://other.test/"}, []),
    "empty path": ({"path": b""}, []),
    "no path": ({"path": None}, []),
    "a fragment": ({"path": b"/x#y"}, []),
    "non-ASCII path": ({"path": b"/\xc3\xa9"}, []),
    "the star": ({"path": b"*"}, []),
    "CRLF in the method": ({"method": b"GET /smuggled HTTP/1.1\r\nX: "}, []),
    "a blank in the method": ({"method": b"GET /smuggled"}, []),
    "lower-case method": ({"method": b"post"}, []),
    "empty method": ({"method": b""}, []),
    "no method": ({"method": None}, []),
    "CRLF in the authority": ({"authority": b"localhost\r\nX: y"}, []),
    "blank in the authority": ({"authority": b"localhost x"}, []),
    "CRLF in the scheme": ({"scheme": b"https\r\nX: y"}, []),
    "a URL as scheme": ({"scheme": b"https://other.test/?"}, []),
    "no scheme": ({"scheme": None}, []),
    "two paths": ({}, [(b":path", b"/other")]),
    "two methods": ({}, [(b":method", b"GET")]),
    "a pseudo-header behind a header": ({}, [(b"x", b"y"), (b":path", b"/other")]),
    "a pseudo-header of its own": ({}, [(b":other", b"x")]),
    "a response's pseudo-header": ({}, [(b":status", b"200")]),
    "transfer-encoding": ({}, [(b"transfer-encoding", b"chunked")]),
    "connection": ({}, [(b"connection", b"close")]),
    "keep-alive": ({}, [(b"keep-alive", b"x")]),
    "proxy-connection": ({}, [(b"proxy-connection", b"x")]),
    "upgrade": ({}, [(b"upgrade", b"h2c")]),
    "te": ({}, [(b"te", b"chunked")]),
    "content-length too small": ({}, [(b"content-length", b"1")]),
    "content-length too large": ({}, [(b"content-length", b"1000")]),
    "two content-lengths": ({}, [(b"content-length", b"4"), (b"content-length", b"5")]),
    "content-length +4": ({}, [(b"content-length", b"+4")]),
    "content-length 4,4": ({}, [(b"content-length", b"4,4")]),
}


@pytest.mark.parametrize("name", HTTP2)
async def test_http_2_that_would_be_other_requests_in_http_1_is_refused(stage, name):
    """Answered with 400, or, where it is no HTTP/2 at all, with the end of the stream or connection."""
    pseudo, more = HTTP2[name]
    client = await RawHttp2.open(stage)
    await client.send(_head(stage, *more, **pseudo), b"abcd")
    await client.settled(1)
    if 1 in client.statuses:
        assert (client.statuses[1], client.codes()) in (
            (400, ["malformed_request"]),
            (421, ["authority_mismatch"]),
        )
    else:
        assert client.resets or client.goaway is not None
    assert b"smuggled" not in stage.tls.raw
    assert [one.length for one in stage.arrived("h2")] in ([], [None])


@pytest.mark.parametrize("length", [None, b"54"])
async def test_an_http_2_body_goes_up_framed(stage, length):
    """Stock mitmproxy sends a body of unsaid length up bare: the origin then reads it as the next request."""
    body = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX: 123456\r\n\r\n"
    body = body.ljust(54)[:54] if length else body
    client = await RawHttp2.open(stage)
    more = [(b"content-length", length)] if length else []
    await client.send(_head(stage, *more), body)
    await client.settled(1)
    assert client.statuses == {1: 200}
    (request,) = stage.arrived("h2")
    assert (request.target, request.length) == ("/x", len(body))


async def test_an_empty_http_2_frame_does_not_end_a_chunked_body(stage):
    client = await RawHttp2.open(stage)
    connection = client.connection
    connection.send_headers(1, _head(stage))
    connection.send_data(1, b"ab")
    connection.send_data(1, b"")
    connection.send_data(1, b"cd", end_stream=True)
    await client.flush()
    await client.settled(1)
    assert client.statuses == {1: 200}
    assert [one.length for one in stage.arrived("h2")] == [4]
    assert stage.tls.errors == []


async def test_http_2_trailers_do_not_end_the_connection(stage):
    """H07: to an HTTP/1 origin they are left out."""
    client = await RawHttp2.open(stage)
    connection = client.connection
    for number in (1, 3):
        connection.send_headers(number, _head(stage))
        connection.send_data(number, b"ab")
        connection.send_headers(number, [(b"x-sum", b"1")], end_stream=True)
        await client.flush()
        await client.settled(number)
    assert client.statuses == {1: 200, 3: 200}
    assert [one.length for one in stage.arrived("h2")] == [2, 2]
    assert b"x-sum" not in stage.tls.raw.lower()


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("way", ["first", "inside"])
async def test_a_bomb_passes_as_it_is_and_costs_no_memory(system, stage, authority, way, coding):
    """H12: nothing of a body is decoded here. 200 KB that would be 200 MB."""
    bomb = (
        gzip.compress(bytes(200_000_000))
        if coding == "gzip"
        else b"\x28\xb5\x2f\xfd" + bytes(200_000)
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(head % (coding.encode(), len(bomb)) + bomb)
            await writer.drain()

    context = authority.server_context("localhost") if way == "inside" else None
    server, port = await serving(serve, context)
    stage.origin(way).port, port = port, stage.origin(way).port
    async with asyncio.timeout(60):
        wire = await stage.wire(way)
        peaks = None
        for _ in range(5):
            await wire.send(stage.filled(way, GET + END))
            await wire.reader.readuntil(b"\r\n\r\n")
            assert await wire.reader.readexactly(len(bomb)) == bomb
            peaks = peaks or Peaks(_children(system.process.pid))
        assert peaks.growth() < 5_000_000
    server.close()


def _children(pid: int) -> list[int]:
    """All of haltwire's processes."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in found for below in _children(int(child)))]
