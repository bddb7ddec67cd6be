"""One request head, strictly."""

import pytest
from haltwire_proxy.head import end_of_head, first_byte_fits, parse_head


def test_a_head_is_its_request_line_and_fields():
    head = parse_head(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\nX-A: 1\r\n\r\n")
    assert (head.method, head.target) == ("CONNECT", b"api.test:443")
    assert head.headers == ((b"host", b"api.test:443"), (b"x-a", b"1"))
    assert not head.has_body


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"Content-Length: 0\r\n", False),
        (b"Content-Length: 5\r\n", True),
        (b"Transfer-Encoding: chunked\r\n", True),
    ],
)
def test_a_head_says_whether_a_body_follows(fields, expected):
    assert (
        parse_head(b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\n" + fields + b"\r\n").has_body
        is expected
    )


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("no version", b"GET /\r\n\r\n"),
        ("version 2", b"PRI * HTTP/2.0\r\n\r\n"),
        ("blank before colon", b"GET http://a/ HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("folded field", b"GET http://a/ HTTP/1.1\r\nX-A: b\r\n c\r\n\r\n"),
        ("bare LF", b"GET http://a/ HTTP/1.1\nHost: a\n\r\n\r\n"),
        ("NUL", b"GET http://a/ HTTP/1.1\r\nX-A: b\0c\r\n\r\n"),
        ("DEL", b"GET http://a/ HTTP/1.1\r\nX-A: b\x7fc\r\n\r\n"),
        (
            "two lengths",
            b"POST http://a/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        ),
        (
            "length and chunked",
            b"POST http://a/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("two hosts", b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("folded first", b"GET http://a/ HTTP/1.1\r\n Host: a\r\n\r\n"),
        ("no host", b"GET http://a/ HTTP/1.1\r\nX: a\r\n\r\n"),
        ("two blanks", b"GET  http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("RTSP", b"GET http://a/ RTSP/1.0\r\nHost: a\r\n\r\n"),
        ("chunked in HTTP/1.0", b"POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("a zero before a length", b"POST http://a/ HTTP/1.0\r\nContent-Length: 04\r\n\r\n"),
        ("a fragment", b"GET http://a/#b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a body in CONNECT", b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n"),
        ("garbage", b"\x16\x03\x01\x02\x00\r\n\r\n"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(name, raw):
    with pytest.raises(
        ValueError, match=r"HTTP/1\.1|twice|control character|fragment|Length|CONNECT"
    ):
        parse_head(raw)


@pytest.mark.parametrize(("data", "expected"), [(b"G", True), (b"\x16", False), (b"\xc3", False)])
def test_another_protocol_is_known_by_its_first_byte(data, expected):
    assert first_byte_fits(data) is expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody\n", 20), (b"GET / HTTP/1.1\r\nA", -1), (b"", -1)],
)
def test_where_the_head_ends(data, expected):
    assert end_of_head(bytearray(data)) == expected


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\n", b"\n", b"A\r\nB\nC\r\n\r\n", b"A\n\n"])
def test_a_line_that_ends_with_lf_alone_is_not_waited_for(data):
    with pytest.raises(ValueError, match="LF alone"):
        end_of_head(data)


def test_a_connect_may_leave_out_its_host():
    """Its target says it, and it is passed on to nobody."""
    assert parse_head(b"CONNECT a.test:1 HTTP/1.1\r\n\r\n").target == b"a.test:1"
