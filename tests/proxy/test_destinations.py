"""Where agents may go: ranges row by row, every spelling of an authority, and dialling what was judged."""

import asyncio
import errno
import os
import socket
import threading
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import uvloop
from haltwire.wire.names import AgentRef
from haltwire.wire.refusals import Refusal
from haltwire_proxy import destinations
from haltwire_proxy.destinations import (
    Dialer,
    Rules,
    canonical_host,
    classify,
    parse_authority,
)
from hypothesis import given
from hypothesis import strategies as st

AGENT = AgentRef.parse("agent://acme/prod/mailer")
LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)

RANGES = {
    "0.0.0.0": "this host",
    "0.255.255.255": "this host",
    "1.0.0.0": None,
    "9.255.255.255": None,
    "10.0.0.0": "private",
    "10.255.255.255": "private",
    "11.0.0.0": None,
    "100.63.255.255": None,
    "100.64.0.0": "shared address space",
    "100.100.100.200": "cloud metadata",
    "100.127.255.255": "shared address space",
    "100.128.0.0": None,
    "126.255.255.255": None,
    "127.0.0.0": "loopback",
    "127.0.0.1": "loopback",
    "127.255.255.255": "loopback",
    "128.0.0.0": None,
    "168.63.129.15": None,
    "168.63.129.16": "cloud metadata",
    "168.63.129.17": None,
    "169.253.255.255": None,
    "169.254.0.0": "link-local",
    "169.254.0.23": "cloud metadata",
    "169.254.42.42": "cloud metadata",
    "169.254.169.123": "cloud metadata",
    "169.254.169.254": "cloud metadata",
    "169.254.170.2": "cloud metadata",
    "169.254.255.255": "link-local",
    "169.255.0.0": None,
    "172.15.255.255": None,
    "172.16.0.0": "private",
    "172.31.255.255": "private",
    "172.32.0.0": None,
    "191.255.255.255": None,
    "192.0.0.0": "protocol assignments",
    "192.0.0.192": "cloud metadata",
    "192.0.0.255": "protocol assignments",
    "192.0.1.0": None,
    "192.0.2.0": "documentation",
    "192.0.2.255": "documentation",
    "192.0.3.0": None,
    "192.88.98.255": None,
    "192.88.99.1": "6to4",
    "192.88.100.0": None,
    "192.167.255.255": None,
    "192.168.0.0": "private",
    "192.168.255.255": "private",
    "192.169.0.0": None,
    "198.17.255.255": None,
    "198.18.0.0": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.20.0.0": None,
    "198.51.99.255": None,
    "198.51.100.0": "documentation",
    "198.51.101.0": None,
    "203.0.112.255": None,
    "203.0.113.255": "documentation",
    "203.0.114.0": None,
    "223.255.255.255": None,
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.0": "reserved",
    "255.255.255.255": "reserved",
    "::": "this host",
    "::1": "loopback",
    "::2": "this host",  # ::0.0.0.2
    "::7f00:1": "loopback",
    "::808:808": "IPv4-compatible",
    "::1:0:0": None,
    "::fffe:ffff:ffff": None,
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "cloud metadata",
    "::ffff:8.8.8.8": "IPv4-mapped",
    "::ffff:0:127.0.0.1": "loopback",
    "::ffff:0:8.8.8.8": "IPv4-translated",
    "::1:0:0:0": None,
    "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff": None,
    "64:ff9b::8.8.8.8": "NAT64",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b::a9fe:a9fe": "cloud metadata",
    "64:ff9b::1:0:0": None,
    "64:ff9b:1::1": "this host",  # a translator of the operator's own: ends in 0.0.0.1
    "64:ff9b:1:ffff:ffff:ffff:808:808": "NAT64",
    "64:ff9b:2::": None,
    "100::1": "discard-only",
    "100:0:0:1::": None,
    "2000:ffff::": None,
    "2001::1": "reserved",  # Teredo, client 255.255.255.254
    "2001:0:808:808::f7f7:f7f7": "protocol assignments",  # Teredo, both ends 8.8.8.8
    "2001:0:808:808::80ff:fffe": "loopback",  # Teredo, client 127.0.0.1
    "2001:1ff:ffff::": "protocol assignments",
    "2001:200::": None,
    "2001:db7:ffff::": None,
    "2001:db8::1": "documentation",
    "2001:db9::": None,
    "2001:4860:4860::8888": None,
    "2002:7f00:1::": "loopback",
    "2002:a9fe:a9fe::1": "cloud metadata",
    "2002:808:808::1": "6to4",
    "2003::": None,
    "2606:4700::1111": None,
    "3ffe:ffff::": None,
    "3fff::1": "documentation",
    "3fff:fff:ffff::": "documentation",
    "3fff:1000::": None,
    "5eff:ffff::": None,
    "5f00::1": "reserved",
    "5f01::": None,
    "fbff:ffff::": None,
    "fc00::": "private",
    "fd00:ec2::254": "cloud metadata",
    "fd00:ec2::23": "cloud metadata",
    "fd20:ce::254": "cloud metadata",
    "fd00:42::42": "cloud metadata",
    "fd00:c1::a9fe:a9fe": "cloud metadata",
    "fd00:a9fe:a9fe::1": "cloud metadata",
    "fe80::a9fe:a9fe": "cloud metadata",
    "fdff:ffff::": "private",
    "fe00::": None,
    "fe80::1": "link-local",
    "fe80::1%1": "link-local",
    "febf:ffff::": "link-local",
    "fec0::": "site-local",
    "feff:ffff::": "site-local",
    "ff00::": "multicast",
    "ff02::1": "multicast",
}


@pytest.mark.parametrize("text", RANGES)
def test_range(text):
    assert classify(ip_address(text)) == RANGES[text]


@given(st.ip_addresses(v=4))
def test_no_disguise_of_an_ipv4_address_is_public(address):
    """What is denied plainly is denied in every IPv6 form that could carry it."""
    number = int(address)
    forms = (
        number,
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x2002 << 112 | number << 80,
    )
    for form in forms:
        name = classify(ip_address(form if form > 0xFFFFFFFF else f"::{address}"))
        assert name is not None
        if classify(address) is not None and number > 1:
            assert name == classify(address)


def networks(*texts):
    return tuple(map(ip_network, texts))


LOOPBACK, BEYOND = Rules(False), Rules(True)
OURS = Rules(False, (), (("127.0.0.1", 8080), ("198.51.100.7", 8081)))
OPENED = Rules(True, networks("0.0.0.0/0", "::/0"), (("127.0.0.1", 8080),))
CHECKS = {
    "public": (BEYOND, ["8.8.8.8", "2606:4700::1111"], 443, None),
    "loopback is reached from loopback": (LOOPBACK, ["127.0.0.1", "::1"], 443, None),
    "private is reached from loopback": (LOOPBACK, ["10.0.0.1", "fc00::1"], 443, None),
    "loopback from beyond": (BEYOND, ["127.0.0.1"], 443, "loopback"),
    "private from beyond": (BEYOND, ["10.0.0.1"], 443, "private"),
    "one denied of many denies all": (BEYOND, ["8.8.8.8", "10.0.0.1"], 443, "private"),
    "metadata from loopback": (LOOPBACK, ["169.254.169.254"], 80, "metadata"),
    "metadata in disguise": (LOOPBACK, ["64:ff9b::a9fe:a9fe"], 80, "metadata"),
    "metadata is never opened": (OPENED, ["169.254.169.254"], 80, "metadata"),
    "opened": (Rules(True, networks("10.0.0.0/8")), ["10.1.2.3"], 443, None),
    "opened, but not this": (Rules(True, networks("10.0.0.0/8")), ["192.168.0.1"], 443, "private"),
    "a translator opened, what it leads to not": (
        Rules(True, networks("64:ff9b::/96")),
        ["64:ff9b::10.0.0.1"],
        443,
        "private",
    ),
    "a translator opened, to a public address": (
        Rules(True, networks("64:ff9b::/96")),
        ["64:ff9b::8.8.8.8"],
        443,
        None,
    ),
    "our port": (OURS, ["127.0.0.1"], 8080, "haltwire itself"),
    "our port at another loopback address": (OURS, ["127.0.0.9"], 8080, "haltwire itself"),
    "our port at the unspecified address": (OURS, ["0.0.0.0"], 8080, "haltwire itself"),
    "our port over IPv6": (OURS, ["::1"], 8080, "haltwire itself"),
    "our port at a mapped address": (OURS, ["::ffff:127.0.0.1"], 8080, "haltwire itself"),
    "our port through a translator": (OURS, ["64:ff9b::127.0.0.1"], 8080, "haltwire itself"),
    "our port is never opened": (OPENED, ["127.0.0.1"], 8080, "haltwire itself"),
    "our port number at somebody else's": (OURS, ["8.8.8.8"], 8080, None),
    "a control server elsewhere": (OURS, ["198.51.100.7"], 8081, "haltwire itself"),
    "another port there": (OURS, ["198.51.100.7"], 443, None),
    "no address": (BEYOND, [], 443, None),
    "translated": (LOOPBACK, ["::ffff:0:169.254.169.254"], 80, "metadata"),
    "scoped": (LOOPBACK, ["fe80::a9fe:a9fe%1"], 80, "metadata"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_check(name):
    rules, addresses, port, why = CHECKS[name]
    refusal = rules.check([ip_address(text) for text in addresses], port)
    if why is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.code == "destination_denied"
        assert why in refusal.message


def test_a_public_address_of_this_host_is_not_reached_from_beyond(monkeypatch):
    """What listens behind its firewall would be open from inside; --allow-to opens it knowingly."""
    monkeypatch.setattr(destinations, "is_local", lambda address: str(address) == "1.0.0.1")
    addresses = [ip_address("1.0.0.1")]
    refusal = BEYOND.check(addresses, 443)
    assert refusal is not None
    assert "own host" in refusal.message
    assert BEYOND.check([ip_address("1.0.0.2")], 443) is None
    assert LOOPBACK.check(addresses, 443) is None
    assert Rules(True, networks("1.0.0.1/32")).check(addresses, 443) is None


LISTED = Rules(False, connect_ports=(8443,))
PORTS = {
    "all on loopback": (LOOPBACK, 22, True, True),
    "not on loopback once there is a list": (LISTED, 22, True, False),
    "HTTPS": (BEYOND, 443, True, True),
    "HTTP in a tunnel": (BEYOND, 80, True, True),
    "a listed one": (LISTED, 8443, True, True),
    "HTTPS beside a list": (LISTED, 443, True, True),
    "a shell": (BEYOND, 22, True, False),
    "mail": (BEYOND, 25, True, False),
    "names": (BEYOND, 53, True, False),
    "high": (BEYOND, 8443, True, False),
    "a plain request beside a list": (LISTED, 25, False, True),
    "a plain request to a high one": (BEYOND, 8080, False, True),
    "a plain request to mail": (BEYOND, 25, False, False),
    "a plain request to the highest well-known one": (BEYOND, 1023, False, False),
    "a plain request to the first other one": (BEYOND, 1024, False, True),
    "a plain request to HTTP": (BEYOND, 80, False, True),
}


@pytest.mark.parametrize("name", PORTS)
def test_port(name):
    rules, port, connect, reached = PORTS[name]
    refusal = rules.check_name("a.test", port, connect=connect)
    if reached:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.code == "destination_denied"
        assert f"--connect-port {port}" in refusal.message


def test_a_port_that_is_not_reached_is_not_even_looked_up():
    def resolve(host, port):
        raise AssertionError("looked up")

    refusal = dialled(asyncio.new_event_loop, "a.test", 22, BEYOND, resolve)
    assert isinstance(refusal, Refusal)
    assert refusal.message.startswith("Port 22 is not reached")


AUTHORITIES = {
    "example.test:443": ("example.test", 443),
    "EXAMPLE.Test:443": ("example.test", 443),
    "example.test.:443": ("example.test", 443),
    "localhost.:80": ("localhost", 80),
    "example.test": ("example.test", 80),
    "a_b.example.test:1": ("a_b.example.test", 1),
    "xn--bcher-kva.test:65535": ("xn--bcher-kva.test", 65535),
    "127.0.0.1.:80": ("127.0.0.1", 80),
    "127.1:80": ("127.1", 80),
    "2130706433:80": ("2130706433", 80),
    "[::1]:80": ("::1", 80),
    "[::1]": ("::1", 80),
    "[2001:DB8:0:0::1]:8443": ("2001:db8::1", 8443),
    "[::ffff:7f00:1]:80": ("::ffff:127.0.0.1", 80),
}


@pytest.mark.parametrize("text", AUTHORITIES)
@pytest.mark.parametrize("encode", [str, str.encode])
def test_parse_authority(text, encode):
    assert parse_authority(encode(text), 80) == AUTHORITIES[text]


BAD_AUTHORITIES = [
    "",
    ":",
    ":80",
    ".",
    ".:80",
    "..:80",
    "a..b:80",
    ".a:80",
    "a..:80",
    "a.test:",
    "a.test:0",
    "a.test:007",
    "a.test:65536",
    "a.test:99999999999",
    "a.test:-1",
    "a.test:+80",
    "a.test: 80",
    "a.test:80 ",
    "a.test:80\n",
    "a.test\n:80",
    "a.test:\uff18\uff10",
    "a.test:\u0663",
    "\uff11\uff12\uff17.0.0.1:80",
    "bücher.test:80",
    "a.test:80:80",
    "::1:80",
    "::1",
    "[::1",
    "[]:80",
    "[[::1]]:80",
    "[::1]]:80",
    "[::1]80",
    "[::1]:",
    "[::1]:0",
    "[::1].test:80",
    "[127.0.0.1]:80",
    "[a.test]:80",
    "[fe80::1%25lo]:80",
    "[fe80::1%lo]:80",
    "[::1%]:80",
    "[v1.a:b]:80",
    "a@b:80",
    "user:pass@a.test:80",
    "evil.test\0.good.test:80",
    "a.test\x7f:80",
    "a b:80",
    "a\t:80",
    "a/b:80",
    "a\\b:80",
    "a?b:80",
    "a#b:80",
    "a%2eb:80",
    "a,b:80",
    "a*b:80",
    "'a':80",
    "x" * 64 + ".test:80",
    ".".join(["x" * 60] * 5) + ":80",
]


@pytest.mark.parametrize("text", BAD_AUTHORITIES)
def test_no_authority(text):
    with pytest.raises(ValueError):
        parse_authority(text, 80)
    with pytest.raises(ValueError):
        parse_authority(text.encode(), 80)


def test_connect_needs_a_port():
    with pytest.raises(ValueError, match="no port"):
        parse_authority(b"example.test", None)


def test_bytes_beyond_ascii_are_no_authority():
    with pytest.raises(ValueError):
        parse_authority(b"a\xff:80", 80)


@given(st.text(max_size=20))
def test_an_authority_is_read_once_and_for_all(text):
    """Canonical means: reading the result again changes nothing."""
    try:
        host, port = parse_authority(text, 80)
    except ValueError:
        return
    assert canonical_host(host) == host
    assert host.isascii()
    assert 1 <= port <= 65535


class Origin:
    """A listening socket on loopback that never answers."""

    def __init__(self, family=socket.AF_INET, host="127.0.0.1"):
        self.socket = socket.create_server((host, 0), family=family)
        self.port = self.socket.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def answering(*addresses):
    """A resolver that gives every name these addresses."""

    def resolve(host, port):
        found = []
        for text in addresses:
            version = ip_address(text).version
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            found.append((family, (text, port) if version == 4 else (text, port, 0, 0)))
        return found

    return resolve


def failing(host, port):
    raise socket.gaierror(socket.EAI_NONAME, "unknown name")


class Upstream(asyncio.Protocol):
    """Notes the transport that it is given."""

    transport = None

    def connection_made(self, transport):
        self.transport = transport


def dialled(new_loop, host, port, rules=LOOPBACK, resolve=None):
    """What one dial gives, in a loop of its own: a refusal, or the socket, which survives the loop."""

    async def once():
        dialer = Dialer(rules, resolve)
        protocol = Upstream()
        try:
            transport = await dialer.dial(host, port, AGENT, protocol)
        finally:
            dialer.close()
        if isinstance(transport, Refusal):
            assert protocol.transport is None
            return transport
        assert protocol.transport is transport
        fd = os.dup(transport.get_extra_info("socket").fileno())
        sock = socket.socket(fileno=fd)
        sock.settimeout(None if os.get_blocking(fd) else 0)
        transport.abort()
        return sock

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(once())


@LOOPS
def test_dial_gives_a_socket_that_dies_by_reset(new_loop):
    with Origin() as origin, dialled(new_loop, "127.0.0.1", origin.port) as sock:
        assert sock.getpeername() == ("127.0.0.1", origin.port)
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 256 * 1024
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert linger == b"\1\0\0\0\0\0\0\0"


@LOOPS
def test_dial_over_ipv6(new_loop):
    with (
        Origin(socket.AF_INET6, "::1") as origin,
        dialled(new_loop, "::1", origin.port) as sock,
    ):
        assert sock.getpeername()[:2] == ("::1", origin.port)


@pytest.mark.parametrize(
    "spelling", ["127.1", "2130706433", "0x7f.1", "0x7f000001", "017700000001", "127.0.0.01"]
)
def test_numeric_spellings_are_judged_by_what_they_resolve_to(spelling):
    """glibc reads them as addresses: from beyond loopback they are as denied as 127.0.0.1."""
    with Origin() as origin, dialled(uvloop.new_event_loop, spelling, origin.port) as sock:
        assert sock.getpeername()[0] == "127.0.0.1"
    refusal = dialled(uvloop.new_event_loop, spelling, origin.port, BEYOND)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "destination_denied"


REFUSED = {
    "private answer": (BEYOND, "a.test", 443, answering("10.0.0.1"), "destination_denied"),
    "public and private": (
        BEYOND,
        "a.test",
        443,
        answering("8.8.8.8", "10.0.0.1"),
        "destination_denied",
    ),
    "metadata": (LOOPBACK, "a.test", 80, answering("169.254.169.254"), "destination_denied"),
    "metadata as a literal": (LOOPBACK, "169.254.169.254", 80, None, "destination_denied"),
    "metadata as a number": (LOOPBACK, "2852039166", 80, None, "destination_denied"),
    "ourselves by a name": (OURS, "a.test", 8080, answering("127.0.0.1"), "destination_denied"),
    "ourselves by our name": (
        Rules(False, (), (("control.test", 8081),)),
        "Control.test.",
        8081,
        failing,
        "destination_denied",
    ),
    "unknown name": (LOOPBACK, "a.test", 443, failing, "upstream_unreachable"),
    "no address": (LOOPBACK, "a.test", 443, answering(), "upstream_unreachable"),
    "no host": (LOOPBACK, "a b", 443, failing, "malformed_request"),
    "a host with NUL": (LOOPBACK, "127.0.0.1\0", 443, failing, "malformed_request"),
}


@LOOPS
@pytest.mark.parametrize("name", REFUSED)
def test_dial_refused(name, new_loop):
    rules, host, port, resolve, code = REFUSED[name]
    refusal = dialled(new_loop, host, port, rules, resolve)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code


@LOOPS
def test_nobody_listens(new_loop):
    with Origin() as origin:
        port = origin.port
    refusal = dialled(new_loop, "127.0.0.1", port)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.message) == (
        "upstream_unreachable",
        "127.0.0.1 could not be reached.",
    )


@LOOPS
def test_the_next_address_is_tried(new_loop):
    with Origin() as origin:
        resolve = answering("127.0.0.2", "127.0.0.1")
        with dialled(new_loop, "a.test", origin.port, LOOPBACK, resolve) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


def test_rebinding_finds_no_second_look_up():
    """A name that is public when it is checked and private when it is dialled: asked only once."""
    answers = [answering("127.0.0.1"), answering("169.254.169.254")]
    with (
        Origin() as origin,
        dialled(
            uvloop.new_event_loop,
            "rebinding.test",
            origin.port,
            resolve=lambda host, port: answers.pop(0)(host, port),
        ) as sock,
    ):
        assert sock.getpeername() == ("127.0.0.1", origin.port)
    assert len(answers) == 1


def test_an_answer_from_another_address_is_denied():
    """Linux connects 0.0.0.0 to 127.0.0.1, which was not what was checked."""
    with Origin() as origin:
        refusal = dialled(uvloop.new_event_loop, "0.0.0.0", origin.port)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "destination_denied"


@LOOPS
def test_a_silent_upstream_times_out(new_loop, monkeypatch):
    monkeypatch.setattr(destinations, "CONNECT_S", 0.1)
    with full_backlog() as port:
        refusal = dialled(new_loop, "127.0.0.1", port)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "upstream_timeout"


@LOOPS
def test_a_cancelled_dial_leaves_no_descriptor(new_loop):
    async def cancelled(port):
        dialer = Dialer(LOOPBACK)
        with Origin() as nobody:
            unused = nobody.port
        # libuv opens a spare descriptor, once per loop, with its first stream.
        assert isinstance(await dialer.dial("127.0.0.1", unused, AGENT, Upstream()), Refusal)
        before = descriptors()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(dialer.dial("127.0.0.1", port, AGENT, Upstream()))
            while descriptors() == before:
                await asyncio.sleep(0)
            task.cancel()
        return descriptors() - before

    with full_backlog() as port, asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(cancelled(port)) == 0


@LOOPS
def test_slow_dns_times_out(new_loop, monkeypatch, released):
    monkeypatch.setattr(destinations, "LOOKUP_S", 0.05)
    refusal = dialled(new_loop, "a.test", 443, resolve=lambda host, port: released.wait() and [])
    assert isinstance(refusal, Refusal)
    assert (refusal.code, "resolved" in refusal.message) == ("upstream_timeout", True)


@LOOPS
def test_a_fault_of_the_protocol_is_raised_and_leaves_no_connection(new_loop):
    lost = []

    class Faulty(asyncio.Protocol):
        def connection_made(self, transport):
            raise RuntimeError("injected")

        def connection_lost(self, exc):
            lost.append(exc)

    async def once(port):
        with pytest.raises(RuntimeError, match="injected"):
            await Dialer(LOOPBACK).dial("127.0.0.1", port, AGENT, Faulty())
        await asyncio.sleep(0.01)

    with Origin() as origin, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(once(origin.port))
    assert lost == [None]


def test_out_of_descriptors_is_our_own_fault(monkeypatch):
    """Not the upstream's: the caller answers 503 instead of 502."""

    async def no_descriptor(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(destinations, "_connect_one", no_descriptor)
    with pytest.raises(OSError, match="too many"):
        dialled(asyncio.new_event_loop, "127.0.0.1", 1)


@pytest.fixture
def released():
    """An event that lets a blocked resolver go at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@contextmanager
def full_backlog():
    """A port whose accept queue is full: the kernel leaves further connections unanswered."""
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=0)]
    address = sockets[0].getsockname()
    for _ in range(2):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        sockets.append(sock)
    yield address[1]
    for sock in sockets:
        sock.close()


def descriptors():
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
