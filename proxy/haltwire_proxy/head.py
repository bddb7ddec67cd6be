"""One HTTP/1 request head: found in a byte stream, parsed strictly, judged for form.

Parsing is llhttp's (httptools); what it reads kindly is refused here, since the next reader could read
it otherwise. Bodies are never framed here: that is where smuggling lives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import httptools

MAX_REMEMBERED_BYTES = 2048
"Heads up to this size are remembered, so that strangers cannot fill the memory: 1024 of them."
END_OF_HEAD = b"\r\n\r\n"
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_ONCE = (b"host", b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class Head:
    """A request line with its header fields, names in lower case."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def has_body(self) -> bool:
        """Whether body bytes follow."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
            for name, value in self.headers
        )


class _Collector:
    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def parse_head(raw: bytes) -> Head:
    """Read one head, its blank line included; ValueError says what is wrong without quoting it."""
    return _remembered(raw) if len(raw) <= MAX_REMEMBERED_BYTES else _parsed(raw)


def _parsed(raw: bytes) -> Head:
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserCallbackError as fault:
        raise RuntimeError("a head could not be collected") from fault  # our own doing
    except httptools.HttpParserError as error:
        raise ValueError(f"not an HTTP/1.1 request: {type(error).__name__}") from error
    if not collector.complete:
        raise ValueError("not an HTTP/1.1 request: the head is incomplete")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise ValueError("not an HTTP/1.1 request: another version")
    names = [name for name, _ in collector.headers]
    for name in _ONCE:
        if names.count(name) > 1:
            raise ValueError(f"the header {name.decode()} is given twice")
    if has_control(collector.target, *names, *(value for _, value in collector.headers)):
        raise ValueError("a control character in the request head")
    method, target = parser.get_method(), collector.target
    # llhttp also takes several blanks, empty lines before it, RTSP and ICE; some upstreams do not.
    if not raw.startswith(b"%s %s HTTP/%s\r\n" % (method, target, version.encode())):
        raise ValueError("not an HTTP/1.1 request: the request line is not METHOD TARGET VERSION")
    if b"#" in target:
        raise ValueError("a fragment in the request target")
    # CONNECT's is never passed on, and its target says it: simple clients leave it out.
    if version == "1.1" and b"host" not in names and method != b"CONNECT":
        raise ValueError("an HTTP/1.1 request without a Host header")
    head = Head(method.decode("ascii"), target, tuple(collector.headers))
    _check_framing(head, version)
    return head


def _check_framing(head: Head, version: str) -> None:
    for name, value in head.headers:
        if name == b"content-length" and not _LENGTH.fullmatch(value.strip(b" \t")):
            raise ValueError("a Content-Length that is no plain number")
        if name == b"transfer-encoding" and (
            value.strip(b" \t").lower() != b"chunked" or version != "1.1"
        ):
            raise ValueError("a Transfer-Encoding other than HTTP/1.1's chunked")
    if head.method == "CONNECT" and head.has_body:
        raise ValueError("a CONNECT with a body")


# Not a guess: the same bytes always make the same head. Each tunnel of a client to a host begins alike.
_remembered = lru_cache(maxsize=1024)(_parsed)


def end_of_head(data: bytes | bytearray) -> int:
    """Where the blank line of the first head begins, -1 when there is none yet.

    ValueError when one never will be: a line that ends without CR is a line's end to some readers only.
    """
    end = data.find(END_OF_HEAD)
    # Counted, not matched: this is asked anew with every piece of a head that drips in.
    until = end if end >= 0 else len(data)
    if data.count(b"\n", 0, until) != data.count(b"\r\n", 0, until):
        raise ValueError("a line that ends with LF alone")
    return end


def has_control(*texts: bytes) -> bool:
    """Whether a text holds what no method, target, header name or value may: controls but the tab, and DEL."""
    return _CONTROL.search(b"\t".join(texts)) is not None


def first_byte_fits(data: bytes | bytearray) -> bool:
    """Whether the first byte can begin a request: TLS and other protocols are told at once."""
    return data[:1].isalpha() and data[:1].isascii()
