"""What an inspected connection leaves behind: taken apart by us, little by little, not by the garbage collector.

mitmproxy's layers refer to one another in circles. A collector that comes upon those of a thousand
connections that ended together stands still for half a second, and the lease runs out meanwhile.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain

from mitmproxy.proxy import events, layer, server

from haltwire_proxy.connections import Connection
from haltwire_proxy.streams import Http
from haltwire_proxy.transport import GatedWriter
from haltwire_proxy.turnstile import Course


def let_go(
    handler: server.ConnectionHandler,
    owned: Connection,
    course: Course[events.Event],
    _: asyncio.Task[None] | None = None,
) -> None:
    """Take the ended connection apart, in its turn, as soon as none of its tasks runs any more."""
    for task in chain((io.handler for io in handler.transports.values()), owned.tasks):
        if task is not None and not task.done():
            task.add_done_callback(partial(let_go, handler, owned, course))
            return
    course.end(partial(_take_apart, handler, owned))


def _take_apart(handler: server.ConnectionHandler, owned: Connection) -> None:
    for one in layers_of(handler.layer):
        vars(one).clear()
    vars(handler).clear()
    for some in (owned.upstreams, owned.exchanges, owned.tasks, owned.on_freeze):
        some.clear()
    if isinstance(owned.client, GatedWriter):
        owned.client.when_lost(_nobody_listens)
    del owned.client


def _nobody_listens() -> None:
    """The client's socket may end later than all else."""


def layers_of(top: layer.Layer) -> set[layer.Layer]:
    """All layers that can be reached from this one."""
    found: set[layer.Layer] = set()
    waiting = [top]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.context.layers
            if isinstance(one, Http):
                waiting += one.ended
                waiting += one.streams.values()
                waiting += one.connections.values()
    return found
