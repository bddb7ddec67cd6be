"""The judgement of one request, without a connection: what it says, and what it then names."""

import pytest
from haltwire.wire.refusals import Refusal
from haltwire_proxy.one_authority import (
    Unreadable,
    another_sni,
    asked_upgrades,
    is_sound,
    judge,
    names_another,
)
from mitmproxy import http
from mitmproxy.test import tutils

TUNNEL = ("api.test", 8443)


def _request(*fields, authority=b"", version=b"HTTP/1.1", path=b"/x", method=b"GET", scheme=b""):
    return tutils.treq(
        host="",
        port=0,
        method=method,
        scheme=scheme,
        authority=authority,
        path=path,
        http_version=version,
        headers=http.Headers(fields),
    )


@pytest.mark.parametrize(
    ("name", "request_", "host"),
    [
        ("whole", _request((b"Host", b"api.test:8443")), "api.test:8443"),
        ("as written", _request((b"Host", b"API.test.:8443")), "API.test.:8443"),
        ("no port", _request((b"Host", b"api.test")), "api.test:8443"),
        ("HTTP/1.0", _request(version=b"HTTP/1.0"), "api.test:8443"),
        ("absolute", _request(authority=b"api.test:8443", version=b"HTTP/1.0"), "api.test:8443"),
    ],
)
def test_what_agrees_names_one_authority(name, request_, host):
    assert judge(request_, TUNNEL, tls=True) is None
    assert request_.headers.get_all("host") == [host]
    assert (request_.data.authority, request_.host, request_.port) == (b"", *TUNNEL)


def test_the_default_port_is_left_out_where_the_client_has_left_it_out():
    request = _request((b"Host", b"api.test"))
    assert judge(request, ("api.test", 443), tls=True) is None
    assert request.headers["host"] == "api.test"
    request = _request(authority=b"[::1]", version=b"HTTP/1.0")
    assert judge(request, ("::1", 80), tls=False) is None
    assert request.headers["host"] == "[::1]"


def test_http_2_names_it_in_authority_alone():
    fields = ((b"host", b"api.test:8443"),)
    request = _request(*fields, authority=b"api.test:8443", version=b"HTTP/2.0", scheme=b"https")
    assert judge(request, TUNNEL, tls=True) is None
    assert (request.data.authority, request.headers.get_all("host")) == (b"api.test:8443", [])


@pytest.mark.parametrize(
    ("name", "request_", "code"),
    [
        ("another host", _request((b"Host", b"b.test:8443")), "authority_mismatch"),
        ("another port", _request((b"Host", b"api.test:1")), "authority_mismatch"),
        ("empty", _request((b"Host", b"")), "authority_mismatch"),
        (
            "absolute form",
            _request((b"Host", b"api.test:8443"), authority=b"b.test"),
            "authority_mismatch",
        ),
        (
            "twice",
            _request((b"Host", b"api.test"), (b"Host", b"api.test")),
            "malformed_request",
        ),
        ("scheme", _request((b"Host", b"api.test"), scheme=b"http"), "malformed_request"),
        ("nested", _request((b"Host", b"api.test"), method=b"CONNECT"), "malformed_request"),
        ("in HTTP/2, none", _request(version=b"HTTP/2.0"), "malformed_request"),
        ("path", _request((b"Host", b"api.test"), path=b"x"), "malformed_request"),
    ],
)
def test_what_does_not_is_refused_with_its_reason(name, request_, code):
    refusal = judge(request_, TUNNEL, tls=True)
    assert refusal is not None
    assert refusal.code == code


def test_a_request_in_the_open_names_its_own():
    request = _request((b"Host", b"api.test"), authority=b"API.test:81", scheme=b"http")
    assert judge(request, None, tls=False) is None
    assert (request.host, request.port) == ("api.test", 81)
    assert request.headers["host"] == "API.test:81"
    refusal = judge(_request((b"Host", b"api.test")), None, tls=False)
    assert refusal is not None
    assert refusal.code == "malformed_request"


def test_what_cannot_be_read_has_its_own_reason():
    why = Refusal("headers_too_large", "Too large.")
    assert judge(Unreadable.because(why), TUNNEL, tls=True) is why


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"api.test:443", False), (b"API.TEST", False), (b"api.test:1", True), (b"b.test", True)],
)
def test_a_connects_host_is_compared_with_its_target(value, expected):
    assert names_another([(b"host", value)], "api.test", 443) is expected


@pytest.mark.parametrize(
    ("named", "agrees"),
    [(None, True), ("api.test", True), ("API.test.", True), ("b.test", False), ("a b", False)],
)
def test_an_sni_is_compared_with_the_host(named, agrees):
    assert (another_sni(named, "api.test") is None) is agrees


def test_an_offer_of_http_2_is_taken_back_and_what_else_connection_says_stays():
    fields = (
        (b"Host", b"api.test:8443"),
        (b"Connection", b"close, Upgrade, HTTP2-Settings"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAM"),
    )
    request = _request(*fields)
    assert judge(request, TUNNEL, tls=True) is None
    assert request.headers.fields == ((b"Host", b"api.test:8443"), (b"Connection", b"close"))


def test_an_upgrade_is_asked_for_in_two_headers():
    both = http.Headers([(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"X, websocket")])
    assert asked_upgrades(both) == {"x", "websocket"}
    assert asked_upgrades(http.Headers([(b"Upgrade", b"x")])) == set()


@pytest.mark.parametrize(
    ("fields", "sound"),
    [
        (((b"X", b"y"),), True),
        (((b"X", b"a\rb"),), False),
        (((b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")), False),
    ],
)
def test_a_response_is_sound_or_none(fields, sound):
    response = http.Response(b"HTTP/1.1", 200, b"OK", http.Headers(fields), b"", None, 0, 0)
    assert is_sound(response) is sound
