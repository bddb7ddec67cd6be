"""One request head, strictly."""

import pytest
from haltwire_proxy.head import first_byte_fits, parse_head


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
        ("garbage", b"\x16\x03\x01\x02\x00\r\n\r\n"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(name, raw):
    with pytest.raises(ValueError, match=r"HTTP/1\.1|twice|control character"):
        parse_head(raw)


@pytest.mark.parametrize(("data", "expected"), [(b"G", True), (b"\x16", False), (b"\xc3", False)])
def test_another_protocol_is_known_by_its_first_byte(data, expected):
    assert first_byte_fits(data) is expected
