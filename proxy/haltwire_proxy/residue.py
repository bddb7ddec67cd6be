"""What may still reach upstreams of a proxy that stands still: a bound, for receipts that call it fenced."""

from __future__ import annotations

from haltwire_proxy.limits import Limits
from haltwire_proxy.sever import UPSTREAM_SEND_BUFFER


def agent_residual_max(limits: Limits) -> int:
    """Bytes that the kernel may hold queued towards upstreams for one agent, at most.

    Its queue of each socket, with what is sent and not acknowledged, is within SO_SNDBUF, and so is the byte
    of outlet.py. A tunnel has one upstream; of those that are read inside, one can hold bytes for each request
    that is under way. The rest of what was read waits in our own memory, and does not leave unasked.
    """
    return (limits.agent_connections + limits.agent_requests) * UPSTREAM_SEND_BUFFER
