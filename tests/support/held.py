"""An agent that is read inside, asks a played origin, is held and let go."""

from __future__ import annotations

import hashlib

from support.client import Wire, tls_tunnel
from support.scripted import Listener, Stage
from support.world import INTERCEPTED, World

READER = ("acme.prod.reader~i-1", INTERCEPTED)
AGENT = "agent://acme/prod/reader"


async def opened(world: World, stage: Stage, **options) -> Wire:
    """TLS to the origin, through the proxy."""
    return await tls_tunnel(world.port, stage.host, *READER, world.ca_file, **options)


async def asked(world: World, stage: Stage, method: str = "GET", *headers: str):
    """A request that has reached the origin: the client's wire, what it hears, the origin's end."""
    wire = await opened(world, stage)
    await wire.request(method, "/x", f"Host: {stage.host}", *headers, read=False)
    return wire, Listener(wire), await stage.asked()


def lift(world: World, enforced):
    """Resume what an order has stopped."""
    return world.resume(enforced.ack.kills[0])


def same(one: bytes, other: bytes) -> bool:
    """Whether they are equal; megabytes are not shown when they are not."""
    return hashlib.sha256(one).digest() == hashlib.sha256(other).digest()
