"""Which addresses are this host's own, asked of its kernel."""

import socket
import sys
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
from haltwire_proxy import own_host
from haltwire_proxy.own_host import is_local

LOCAL = {
    "127.0.0.1": True,
    "127.1.2.3": True,
    "127.255.255.254": True,
    "0.0.0.0": True,
    "::": True,
    "::1": True,
    "8.8.8.8": False,
    "192.0.2.77": False,
    "224.0.0.1": False,
    "255.255.255.255": False,
    "2001:4860:4860::8888": False,
    "fe80::dead:beef": False,
    "ff02::1": False,
}


@pytest.mark.parametrize("text", LOCAL)
def test_address(text):
    assert is_local(ip_address(text)) is LOCAL[text]


def own_addresses():
    """Every IPv6 address that this kernel has, and the IPv4 address that packets leave with."""
    lines = Path("/proc/net/if_inet6").read_text().splitlines()
    found = [IPv6Address(int(line.split()[0], 16)) for line in lines]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.77", 9))
            found.append(ip_address(sock.getsockname()[0]))
        except OSError:  # a machine without a network
            pass
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_that_this_host_has():
    for address in own_addresses():
        assert is_local(address), address


@pytest.mark.parametrize(
    ("text", "local"), [("127.0.0.1", True), ("8.8.8.8", False), ("fe80::dead:beef", True)]
)
def test_without_netlink_it_is_asked_by_binding(monkeypatch, text, local):
    """A link-local address without its interface cannot be bound: not knowing is not allowing."""

    def refused(*_):
        raise OSError("no netlink here")

    monkeypatch.setattr(own_host, "_routed_here", refused)
    assert is_local(ip_address(text)) is local


def test_an_answer_that_is_no_route_is_not_believed(monkeypatch):
    """It then asks by binding, instead of calling the address somebody else's."""

    class Odd(socket.socket):
        def recv(self, *_):
            return b"\0" * 64

    monkeypatch.setattr(own_host.socket, "socket", Odd)
    with pytest.raises(OSError, match="unknown answer"):
        own_host._routed_here(ip_address("8.8.8.8"))
