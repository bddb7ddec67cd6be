"""What goes on to an origin: none of ours, none of this hop, and nothing that `Connection` could take away."""

import pytest
from haltwire_proxy.hops import forwarded, is_ours


def names(*fields):
    """What is left of `Name: value` lines, by name in lower case."""
    pairs = [tuple(part.strip() for part in field.split(b":", 1)) for field in fields]
    return {name.lower(): value for name, value in forwarded(pairs)}


CASES = {
    "an option of the connection stays": ([b"Connection: close"], {b"connection": b"close"}),
    "as it was written": (
        [b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"],
        {b"connection": b"keep-alive, Upgrade", b"upgrade": b"websocket"},
    ),
    "a named field goes, its name too": (
        [b"Connection: X-Foo", b"X-Foo: 1", b"X-Bar: 1"],
        {b"x-bar": b"1"},
    ),
    "beside an option": ([b"Connection: X-Foo, close", b"X-Foo: 1"], {b"connection": b"close"}),
    "in any case and over several lines": (
        [b"connection: x-foo", b"CONNECTION: close , X-BAR", b"X-Foo: 1", b"x-bar: 1"],
        {b"connection": b"close"},
    ),
    "its underscore twin too": ([b"Connection: x_foo", b"X-Foo: 1"], {}),
    "Host stays": ([b"Connection: Host", b"Host: a.test"], {b"host": b"a.test"}),
    "framing stays": (
        [b"Connection: content-length, transfer-encoding", b"Content-Length: 3"],
        {b"content-length": b"3"},
    ),
    "Authorization and Cookie stay": (
        [b"Connection: authorization,cookie", b"Authorization: Bearer x", b"Cookie: a=b"],
        {b"authorization": b"Bearer x", b"cookie": b"a=b"},
    ),
    "what a balancer judges by stays (CVE-2025-48865)": (
        [
            b"Connection: X-Forwarded-For, X-Real-Ip",
            b"X-Forwarded-For: 1.2.3.4",
            b"X-Real-IP: 1.2.3.4",
        ],
        {b"x-forwarded-for": b"1.2.3.4", b"x-real-ip": b"1.2.3.4"},
    ),
    "ours go whether named or not": (
        [
            b"Connection: X-Agent-URI",
            b"X-Agent-URI: agent://a/b",
            b"X_Agent_Instance: i",
            b"Proxy-Connection: x",
        ],
        {},
    ),
    "Keep-Alive is of this hop": (
        [b"Connection: keep-alive", b"Keep-Alive: timeout=5"],
        {b"connection": b"keep-alive"},
    ),
    "empty members are nothing": (
        [b"Connection: , ,close,", b"X-Foo: 1"],
        {b"connection": b"close", b"x-foo": b"1"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_goes_on(name):
    fields, expected = CASES[name]
    assert names(*fields) == expected


def test_order_and_repetition_are_kept():
    fields = [(b"B", b"1"), (b"X-Agent-Id", b"x"), (b"A", b"2"), (b"B", b"3")]
    assert forwarded(fields) == ((b"B", b"1"), (b"A", b"2"), (b"B", b"3"))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (b"Proxy-Authorization", True),
        (b"PROXY_AUTHORIZATION", True),
        (b"proxy-connection", True),
        (b"Proxy_Connection", True),
        (b"X-Agent-URI", True),
        (b"x_agent_instance", True),
        (b"X_Agent-Anything", True),
        (b"X-Agent-", True),
        (b"X-Agents", False),
        (b"X-Agent", False),
        (b"Authorization", False),
        (b"Proxy-Authenticate", False),
        (b"Connection", False),
        (b"User-Agent", False),
    ],
)
def test_what_never_reaches_an_upstream(name, ours):
    assert is_ours(name) is ours
