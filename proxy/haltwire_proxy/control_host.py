"""Where the control server is, so that no agent gets there through the proxy: its name, and all its addresses.

They are learnt from the look-ups by which this worker itself reaches it, so there is no moment at which
the link or the agent API knows an address that agents may still dial; and from the control server itself,
which may have others than its name leads to.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from haltwire.wire.messages import Settings

from haltwire_proxy.own_host import is_local

Address = IPv4Address | IPv6Address
ADDRESSES_KEPT = 1024
"A balancer's name gives other addresses from time to time, and those before may still lead there."


class ControlHost:
    """The control server as a destination."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = (parts.hostname or "").removesuffix(".")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._addresses: dict[Address, None] = {}
        self._announced: frozenset[tuple[Address, int]] = frozenset()
        with suppress(ValueError):
            address = ip_address(self._host)
            self._host = str(address)
            self.found(self._host)

    def found(self, address: str) -> None:
        """The control server is reached at this address."""
        parsed = _plain(ip_address(address.partition("%")[0]))
        self._addresses.pop(parsed, None)
        self._addresses[parsed] = None
        if len(self._addresses) > ADDRESSES_KEPT:
            del self._addresses[next(iter(self._addresses))]

    def announced(self, settings: Settings) -> None:
        """The control server says where it is, which may be more places than its name leads to."""
        ports = {settings.control_port or self._port, self._port}
        self._announced = frozenset(
            (_plain(ip_address(text)), port)
            for text in settings.control_addresses
            for port in ports
        )

    def is_named(self, host: str, port: int) -> bool:
        """Whether a canonical host is the name, or the address, in the control server's URL."""
        return (host, port) == (self._host, self._port)

    def is_at(self, address: Address, port: int) -> bool:
        """Whether a connection there could end at the control server."""
        if (address, port) in self._announced:
            return True
        if port != self._port:
            return False
        if address in self._addresses:
            return True
        # One on this host may listen on all of its addresses, of which we use one.
        return is_local(address) and any(map(is_local, self._addresses))


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class LearningResolver(AbstractResolver):
    """Looks names up as ever. What it finds for the control server's client is the control server's."""

    def __init__(self, control: ControlHost, resolver: AbstractResolver | None = None) -> None:
        self._control = control
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Its addresses, which agents no longer reach."""
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            self._control.found(result["host"])
        return results

    async def close(self) -> None:
        """Let go of what it uses."""
        await self._resolver.close()
