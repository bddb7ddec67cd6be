"""When orders end on a clock that nobody sets, kept with them: the wall clock may be set while nobody runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from haltwire.wire.orders import Kill


@dataclass(frozen=True, slots=True)
class Clock:
    """What the steady clock shows: seconds, of one start of the machine."""

    boot_id: str
    "Empty where the system does not tell: then it means nothing to a later process."
    seconds: float

    def shares(self, boot_id: str) -> bool:
        """Whether this clock has gone on since that start of the machine."""
        return bool(boot_id) and boot_id == self.boot_id


UNKNOWN = Clock("", 0.0)


@dataclass(frozen=True, slots=True)
class Ends:
    """The ends of one order on the steady clock of one start of the machine; nothing where none is known."""

    boot_id: str = ""
    expires: float | None = None
    "When `expires_at` is due, in seconds."
    hardens: float | None = None
    "When `hold_until` is."


NO_ENDS = Ends()


def ends_of(kill: Kill, now: datetime, clock: Clock) -> Ends:
    """The ends of an order, from how far they lie ahead of the wall clock."""
    if not clock.boot_id or kill.expires_at is kill.hold_until is None:
        return NO_ENDS
    return Ends(
        clock.boot_id,
        None if kill.expires_at is None else ahead(kill.expires_at, now, clock.seconds),
        None if kill.hold_until is None else ahead(kill.hold_until, now, clock.seconds),
    )


def ahead(at: datetime, now: datetime, seconds: float) -> float:
    """A time of the wall clock on the steady one."""
    return seconds + (at - now).total_seconds()


def united(standing: Ends, wanted: Ends, kill: Kill) -> Ends:
    """The ends of an order that stops what two stopped; both are of the same start of the machine.

    It lasts as long as either and hardens as soon, whatever the wall clock showed when each was issued.
    `kill`: what has become of the two.
    """
    expires = [e.expires for e in (standing, wanted) if e.expires is not None]
    hardens = [e.hardens for e in (standing, wanted) if e.hardens is not None]
    found = Ends(
        standing.boot_id or wanted.boot_id,
        None if kill.expires_at is None else max(expires, default=None),
        None if kill.hold_until is None else min(hardens, default=None),
    )
    return NO_ENDS if found.expires is found.hardens is None else found
