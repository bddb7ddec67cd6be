"""A refusal as HTTP/1.1 bytes, and when an agent has had enough of the friendly kind."""

from __future__ import annotations

import time
from collections.abc import Callable

from haltwire.wire.names import AgentRef
from haltwire.wire.refusals import Refusal

from haltwire_proxy.limits import DEFAULTS


def response_bytes(refusal: Refusal, *, close: bool, head: bool = False) -> bytes:
    """The whole response; `head` leaves the body out, as a HEAD request wants it."""
    body = refusal.body()
    lines = [f"HTTP/1.1 {refusal.status} {refusal.reason_phrase}"]
    lines += [f"{name}: {value}" for name, value in refusal.headers()]
    lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    text = "\r\n".join(lines) + "\r\n\r\n"
    return text.encode("ascii") + (b"" if head else body)


class RefusalRate:
    """Counts the refusals inside TLS per agent and second; each costs a handshake."""

    def __init__(
        self, per_second: int = DEFAULTS.agent_refusals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._second = 0
        self._counts: dict[AgentRef, int] = {}

    def exceeded(self, agent: AgentRef) -> bool:
        """Count one more; whether it is over the limit."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._counts.clear()
        self._counts[agent] = self._counts.get(agent, 0) + 1
        return self._counts[agent] > self._per_second
