"""What one request asks for: one method, one target and one authority, however often they are named.

CONNECT's target, SNI, Host, `:authority` and the absolute form have to be the same host and port. What
is then sent up names it once, so that no upstream can read another.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from haltwire.wire.refusals import Refusal
from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers

from haltwire_proxy.destinations import canonical_host, parse_authority
from haltwire_proxy.enforcer import failed
from haltwire_proxy.head import has_control

log = logging.getLogger(__name__)
PORTS = {"http": 80, "https": 443}
ANOTHER_HOST = Refusal(
    "authority_mismatch", "The Host header names another host or port than the request."
)
_H2C_OPTIONS = ("upgrade", "http2-settings")
_METHOD = re.compile(rb"[A-Z0-9!#$%&'*+.^_`|~-]+")
_PATH = re.compile(rb"/[!-\"$-~]*")
"Printable ASCII without a fragment: what h1 takes as a target, HTTP/2 could hide a request line in."


class Unreadable(http.Request):
    """Stands for a head that is no request; nothing of it is kept but why."""

    why: Refusal

    @classmethod
    def because(cls, why: Refusal) -> Unreadable:
        """An empty request, and why there is no other."""
        one = cls("", 0, b"GET", b"", b"", b"/", b"HTTP/1.1", http.Headers(), b"", None, 0.0, None)
        one.why = why
        return one


def judge(
    request: http.Request, destination: tuple[str, int] | None, *, tls: bool
) -> Refusal | None:
    """Whether the request is one, to one authority; None when it is, and then it names that once.

    `destination` is CONNECT's, None for a request in the open, which names its own. Fails closed.
    """
    try:
        return _judge(request, destination, "https" if destination and tls else "http")
    except Exception:
        log.exception("a request could not be judged")
        return failed()


def is_sound(response: http.Response) -> bool:
    """Whether a response's head can be read in one way only."""
    parts = (part for field in response.headers.fields for part in field)
    try:
        validate_headers(response)
    except ValueError:
        return False
    return not has_control(response.data.reason, *parts)


def names_another(headers: Iterable[tuple[bytes, bytes]], host: str, port: int) -> bool:
    """Whether a CONNECT's Host is another than its target."""
    return any(
        name == b"host" and _disagrees(value, host, port) is not None for name, value in headers
    )


def another_sni(named: str | None, host: str) -> Refusal | None:
    """Whether the TLS handshake has named another host than the one that is spoken to."""
    # mitmproxy would go on to name it to the upstream, and trust its certificate for it.
    try:
        if not named or canonical_host(named) == host:
            return None
    except ValueError:
        pass
    return Refusal("authority_mismatch", "The TLS handshake names another host than the request.")


def asked_upgrades(headers: http.Headers) -> set[str]:
    """The protocols that a request offers to switch to."""
    if "upgrade" not in _tokens(headers, "connection"):
        return set()
    return set(_tokens(headers, "upgrade"))


def _judge(
    request: http.Request, destination: tuple[str, int] | None, scheme: str
) -> Refusal | None:
    refusal = _malformed(request, scheme)
    if refusal is not None:
        return refusal
    own_port = PORTS[scheme]
    authority, hosts = request.data.authority, _hosts(request)
    if destination is None:
        if not authority:
            return _malformed_because("A proxy needs the whole URL in the request line.")
        try:
            destination = parse_authority(authority, own_port)
        except ValueError:
            return _malformed_because("The URL in the request line names no host.")
    if len(hosts) > 1 or (request.is_http2 and not authority and not hosts):
        return _malformed_because("The request names its host twice, or not at all.")
    # The origin form has no authority; a Host that is empty is none, and is looked at.
    for named in [authority, *hosts] if authority else hosts:
        refusal = _disagrees(named, *destination)
        if refusal is not None:
            return refusal
    _name_once(request, hosts, destination, own_port)
    _keep_to_http1(request.headers)
    return None


def _malformed(request: http.Request, scheme: str) -> Refusal | None:
    if isinstance(request, Unreadable):
        return request.why
    data = request.data
    fields = request.headers.fields
    if has_control(
        data.method, data.path, data.authority, *(part for one in fields for part in one)
    ):
        return _malformed_because("A control character in the request head.")
    if not _METHOD.fullmatch(data.method):
        return _malformed_because("The method is no upper-case token.")
    if data.method == b"CONNECT":
        return _malformed_because("A CONNECT inside this connection is not possible.")
    if data.scheme not in (b"", scheme.encode()):
        return _malformed_because(f"Only {scheme}:// requests are read on this connection.")
    if not _PATH.fullmatch(data.path) and (data.method, data.path) != (b"OPTIONS", b"*"):
        return _malformed_because("The request target is no path of printable ASCII.")
    try:
        validate_headers(request)
    except ValueError:  # theirs quotes the header
        return _malformed_because("The headers frame the body in a way that can be read twice.")
    return None


def _malformed_because(why: str) -> Refusal:
    return Refusal("malformed_request", why)


def _hosts(request: http.Request) -> list[bytes]:
    return [value for name, value in request.headers.fields if name.lower() == b"host"]


def _disagrees(named: bytes, host: str, port: int) -> Refusal | None:
    try:
        # Without a port it says nothing about it.
        said = parse_authority(named, port)
    except ValueError:
        return Refusal("authority_mismatch", "What the request calls its host is none.")
    return None if said == (host, port) else ANOTHER_HOST


def _name_once(
    request: http.Request, hosts: list[bytes], destination: tuple[str, int], own_port: int
) -> None:
    host, port = destination
    # As the client has written it, where that is whole: some sign it.
    written = [*hosts, request.data.authority]
    whole = [one for one in written if one and _is_whole(one, port, own_port)]
    bracketed = f"[{host}]" if ":" in host else host
    named = whole[0] if whole else f"{bracketed}:{port}".encode()
    if not whole and port == own_port:
        named = bracketed.encode()
    data = request.data
    data.host, data.port = host, port
    if request.is_http2:
        data.authority = named
        request.headers.pop("host", None)
    elif hosts != [named]:
        request.headers.pop("host", None)
        request.headers.insert(0, "Host", named)
    if not request.is_http2:
        data.authority = b""


def _keep_to_http1(headers: http.Headers) -> None:
    # Java's and curl's offer to go on in HTTP/2: nobody would read those requests. Both do without.
    if any(one in ("h2", "h2c") or one.startswith("http/") for one in _tokens(headers, "upgrade")):
        options = [one for one in _tokens(headers, "connection") if one not in _H2C_OPTIONS]
        for name in ("upgrade", "http2-settings", "connection"):
            headers.pop(name, None)
        if options:
            headers["Connection"] = ", ".join(options)


def _tokens(headers: http.Headers, name: str) -> list[str]:
    return [one.strip().lower() for value in headers.get_all(name) for one in value.split(",")]


def _is_whole(named: bytes, port: int, own_port: int) -> bool:
    return parse_authority(named, own_port)[1] == port
