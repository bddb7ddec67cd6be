"""Where agents may go: the table of denied ranges, strict authorities, and the one place that dials.

A name is resolved once, its whole answer set is judged, and what was judged is what gets dialled:
no spelling of an address (127.1, 0x7f.1, a name that changes its mind) can get past the table.

No request goes round in circles, and no nonce in a header is needed for that (Via would tell every
upstream of us). Straight back to us: our ports are refused at every address of this host. By way of
another proxy or a forwarder: credentials are taken out of whatever goes up, and without any the next
proxy answers 407; so each pass costs its client a request of its own, and tunnels refuse a CONNECT within.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import cast

from haltwire.wire.names import AgentRef
from haltwire.wire.refusals import Refusal

from haltwire_proxy import sever
from haltwire_proxy.control_host import ControlHost
from haltwire_proxy.lookups import Lookups, Resolve, SocketAddress
from haltwire_proxy.own_host import is_local

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_Found = tuple[Address, int, SocketAddress]

LOOKUP_S = 5.0
CONNECT_S = 10.0

# ipaddress.is_global calls 192.0.0.192, 64:ff9b::/96, 2002::/16 and 168.63.129.16 global, so the
# table is our own: IANA's special-purpose registries and the clouds' metadata services.
METADATA = "cloud metadata"
_METADATA = (
    "169.254.169.0/24",  # AWS, GCP, Azure, OpenStack
    "169.254.170.0/24",  # AWS ECS and EKS credentials
    "169.254.0.23/32",  # Tencent
    "169.254.42.42/32",  # Scaleway
    "168.63.129.16/32",  # Azure
    "192.0.0.192/32",  # Oracle
    "100.100.100.200/32",  # Alibaba
    "fd00:ec2::/32",  # AWS
    "fd20:ce::254/128",  # GCP
    "fd00:42::42/128",  # Scaleway
    "fd00:c1::a9fe:a9fe/128",  # Oracle
    "fd00:a9fe:a9fe::1/128",  # Linode
    "fe80::a9fe:a9fe/128",  # OpenStack
)
_RANGES = {
    METADATA: _METADATA,
    "loopback": ("127.0.0.0/8", "::1/128"),
    "this host": ("0.0.0.0/8", "::/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
    "shared address space": ("100.64.0.0/10",),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    "site-local": ("fec0::/10",),
    "protocol assignments": ("192.0.0.0/24", "2001::/23"),
    "documentation": (
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "2001:db8::/32",
        "3fff::/20",
    ),
    "benchmarking": ("198.18.0.0/15",),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "reserved": ("240.0.0.0/4", "5f00::/16"),
    "discard-only": ("100::/64",),
    "6to4": ("192.88.99.0/24", "2002::/16"),
    "IPv4-compatible": ("::/96",),
    "IPv4-mapped": ("::ffff:0:0/96",),
    "IPv4-translated": ("::ffff:0:0:0/96",),
    "NAT64": ("64:ff9b::/96", "64:ff9b:1::/48"),
}
_TABLE: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(text), name) for name, texts in _RANGES.items() for text in texts
)
_LOW_32_BITS = tuple(
    ip_network(text)
    for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# A tunnel can speak any protocol; an HTTP request little but its own, so that it may go to 8080 or 9200
# but not to where mail and shells are: as Squid's Safe_ports and SSL_ports have it.
_PORTS = frozenset({80, 443})
_WELL_KNOWN = 1024
# Out of descriptors or memory: not the upstream's fault, and the next address does not help.
_OUR_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def parse_authority(text: bytes | str, default_port: int | None) -> tuple[str, int]:
    """Host and port of `HOST[:PORT]`, the host in lower case without final dot or brackets.

    ValueError on whatever two readers could read differently: userinfo, zone ids, control or
    non-ASCII characters, an empty port or one with leading zeros.
    """
    plain = text.decode("ascii") if isinstance(text, bytes) else text
    if plain.startswith("["):
        host, bracket, rest = plain[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or ":" not in host or (rest and colon != ":"):
            raise ValueError(f"{plain!r} is no [IPv6 address]:port")
    else:
        host, colon, port = plain.partition(":")
        if ":" in port:
            raise ValueError(f"{plain!r} has more than one port, or is IPv6 without brackets")
    if not colon and default_port is not None:
        return canonical_host(host), default_port
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{plain!r} has no port from 1 to 65535")
    return canonical_host(host), int(port)


def canonical_host(host: str) -> str:
    """The one spelling of a host name or address; ValueError when it is neither."""
    if ":" in host:
        if "%" in host:
            raise ValueError(f"{host!r} has a zone id")
        return str(IPv6Address(host))
    name = host.lower().removesuffix(".") if host.isascii() else ""
    if not _HOST.fullmatch(name):
        raise ValueError(f"{host!r} is no host name")
    return name


def classify(address: Address) -> str | None:
    """The denied range that the address, or an IPv4 address inside it, is in; None for a public one."""
    return next(filter(None, map(_range_of, reversed(_layers(address)))), None)


@dataclass(frozen=True, slots=True)
class Rules:
    """What this proxy does not reach, whoever asks."""

    beyond_loopback: bool
    "Whether agents on other machines can ask: then nothing private to this host or its net is reached."
    allow_to: tuple[Network, ...] = ()
    "Ranges that are reached nevertheless. Never metadata, never our own listeners."
    own: tuple[tuple[str, int], ...] = ()
    "Our own listeners, by host and port."
    control: ControlHost | None = None
    "The control server, which may be on another machine."
    connect_ports: tuple[int, ...] = ()
    "Ports that CONNECT reaches besides 80 and 443. On loopback, when there are none, it reaches all."

    def check(
        self, addresses: Iterable[Address], port: int, host: str = "The destination"
    ) -> Refusal | None:
        """Judge a whole answer set: one denied address denies them all."""
        for address in addresses:
            layers = _layers(address)
            names = [_range_of(layer) for layer in layers]
            if METADATA in names:
                return _denied(host, "is a cloud's metadata service, which no agent reaches")
            if any(self._is_own(layer, port) for layer in layers):
                return _denied(host, _OWN)
            if self.beyond_loopback:
                for layer, name in zip(layers, names, strict=True):
                    if any(layer in network for network in self.allow_to):
                        continue
                    if name:
                        return _denied(host, f"is in a range not reached from here: {name}")
                    if is_local(layer):
                        # Its firewall faces the other way: from here all that listens would be open.
                        return _denied(
                            host, "is the proxy's own host, which is not reached from here"
                        )
        return None

    def check_name(self, host: str, port: int, *, connect: bool) -> Refusal | None:
        """Judge what can be judged before a look-up: the names of our own listeners, and the port."""
        if (host, port) in self.own or (self.control and self.control.is_named(host, port)):
            return _denied(host, _OWN)
        limited = self.beyond_loopback or (connect and self.connect_ports)
        if not limited or port in _PORTS or port in self.connect_ports:
            return None
        if not connect and port >= _WELL_KNOWN:
            return None
        return _denied(
            f"Port {port}",
            f"is not reached from here, unless haltwire runs with --connect-port {port}",
        )

    def _is_own(self, address: Address, port: int) -> bool:
        # By port on every address of this host, since a listener on 0.0.0.0 has them all.
        hosts = {host for host, own_port in self.own if own_port == port}
        if hosts and (str(address) in hosts or is_local(address)):
            return True
        return self.control is not None and self.control.is_at(address, port)


class Dialer:
    """Opens every upstream connection of this worker. Serves one event loop, asyncio's or uvloop."""

    def __init__(self, rules: Rules, resolve: Resolve | None = None) -> None:
        self.rules = rules
        self._lookups = Lookups(resolve)

    async def dial(
        self,
        host: str,
        port: int,
        agent: AgentRef,
        protocol: asyncio.Protocol,
        connect: bool = True,
    ) -> asyncio.Transport | Refusal:
        """A connection that dies by reset, or why there is none. Cancelling it leaks nothing.

        `connect`: a tunnel was asked for, and not an HTTP request alone. Checked in this order: the
        host is one; it is not ourselves; the port may be reached; it resolves in 5 s; its whole answer
        set may be reached; one of it connects in 10 s; the peer is the address we judged. Only then
        does `protocol` get its connection_made.
        """
        try:
            host = canonical_host(host)
        except ValueError:
            return Refusal("malformed_request", "The destination is neither a name nor an address.")
        refusal = self.rules.check_name(host, port, connect=connect)
        if refusal is not None:
            return refusal
        found = await self._find(host, port, agent)
        if isinstance(found, Refusal):
            return found
        refusal = self.rules.check([address for address, _, _ in found], port, host)
        return refusal or await _connect(host, found, protocol)

    def close(self) -> None:
        """Let the look-up threads end."""
        self._lookups.close()

    async def _find(self, host: str, port: int, agent: AgentRef) -> list[_Found] | Refusal:
        with contextlib.suppress(ValueError):
            address = _parsed(host)
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            return [(address, family, (host, port))]
        try:
            async with asyncio.timeout(LOOKUP_S):
                answers = await self._lookups.find(host, port, agent)
        except TimeoutError:
            return Refusal("upstream_timeout", f"{host} was not resolved within {LOOKUP_S:.0f} s.")
        except OSError:
            return Refusal("upstream_unreachable", f"{host} could not be resolved.")
        if not answers:
            return Refusal("upstream_unreachable", f"{host} has no address.")
        return [(_parsed(target[0]), family, target) for family, target in answers]


async def _connect(
    host: str, found: list[_Found], protocol: asyncio.Protocol
) -> asyncio.Transport | Refusal:
    """Try the addresses in order, each with its share of the time that is left."""
    loop = asyncio.get_running_loop()
    end = loop.time() + CONNECT_S
    timed_out = False
    for position, (address, family, target) in enumerate(found):
        share_s = (end - loop.time()) / (len(found) - position)
        judge = _Judge(address, target[1], protocol)
        try:
            async with asyncio.timeout(share_s):
                await _connect_one(loop, family, target, judge)
        except TimeoutError:
            # Connected at the very last moment, the protocol has already been told that it is lost.
            if judge.transport is None:
                timed_out = True
                continue
        except OSError as error:
            if error.errno in _OUR_FAULT:
                raise
            continue
        if judge.fault is not None:
            raise judge.fault
        if judge.is_other:
            return _denied(host, "was answered from another address than the one that was checked")
        if judge.transport is not None:
            return judge.transport
    if timed_out:
        return Refusal("upstream_timeout", f"{host} did not answer within {CONNECT_S:.0f} s.")
    return Refusal("upstream_unreachable", f"{host} could not be reached.")


async def _connect_one(
    loop: asyncio.AbstractEventLoop, family: int, target: SocketAddress, judge: _Judge
) -> None:
    # A literal, and forbidden to be anything else: nothing is resolved a second time.
    await loop.create_connection(
        lambda: judge, target[0], target[1], family=family, flags=socket.AI_NUMERICHOST
    )


class _Judge(asyncio.Protocol):
    """Looks at a new upstream before its protocol sees it and before a byte is read or written."""

    def __init__(self, address: Address, port: int, protocol: asyncio.Protocol) -> None:
        self._checked = (int(address), port)
        self._protocol = protocol
        self.transport: asyncio.Transport | None = None
        "Set when `protocol` has it."
        self.is_other = False
        "Whether it was another address that answered."
        self.fault: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on when it is connected to what was checked."""
        upstream = cast("asyncio.Transport", transport)
        try:
            if self._fits(upstream):
                self.transport = upstream
                upstream.set_protocol(self._protocol)
                self._protocol.connection_made(upstream)
            else:
                upstream.abort()
        except BaseException as error:
            self.fault = error
            upstream.abort()

    def _fits(self, transport: asyncio.Transport) -> bool:
        peer = transport.get_extra_info("peername")
        if not peer or peer == transport.get_extra_info("sockname"):
            # Reset already; or connected to itself, as a port where nobody listens can be when it
            # is also the source port.
            return False
        self.is_other = (int(_parsed(peer[0])), peer[1]) != self._checked
        sock = transport.get_extra_info("socket")
        sever.arm(sock)
        sever.bound_queue(sock)
        return not self.is_other


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Address:
    return ip_address(text)


@lru_cache(maxsize=4096)
def _layers(address: Address) -> tuple[Address, ...]:
    """The address, and the IPv4 addresses that a translator or tunnel could take out of it."""
    if isinstance(address, IPv4Address) or int(address) <= 1:  # `::` and `::1` hold none
        return (address,)
    layers: list[Address] = [address]
    if any(address in network for network in _LOW_32_BITS):
        layers.append(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        layers.append(address.sixtofour)
    if address.teredo is not None:
        layers.extend(address.teredo)
    return tuple(layers)


@lru_cache(maxsize=4096)
def _range_of(address: Address) -> str | None:
    return next((name for network, name in _TABLE if address in network), None)


def _denied(host: str, why: str) -> Refusal:
    return Refusal("destination_denied", f"{host} {why}.")


_OWN = "is haltwire itself, which agents reach as http://haltwire.internal/ only"
