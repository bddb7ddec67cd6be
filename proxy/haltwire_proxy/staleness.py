"""What becomes of traffic beyond the lease: fresh, then holding, then refusing, then fresh again.

Pure. `now_boot` and ends are CLOCK_BOOTTIME in seconds: time in which the machine or this process slept counts.
A lease is fresh strictly before its end, and its traffic is held strictly before `hold_for_s` after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

HOLD, REFUSE, KEEP = "hold", "refuse", "keep"
CHOICES = (HOLD, REFUSE, KEEP)
HOLD_FOR_S = 10.0
"Longer than a control server takes to start anew; shorter than most clients wait for an answer."


class Phase(Enum):
    """Where a proxy stands with its lease."""

    FRESH = "fresh"
    HOLDING = "holding"
    "Nothing passes; what lives stands still and may yet go on."
    REFUSING = "refusing"
    "Nothing passes; what lived is cut."


class Deed(Enum):
    """What a change of phase asks for."""

    FREEZE = "freeze"
    CUT = "cut"
    THAW = "thaw"


_DEEDS: Mapping[tuple[Phase, Phase], tuple[Deed, ...]] = {
    (Phase.FRESH, Phase.HOLDING): (Deed.FREEZE,),
    # Whoever slept through the hold: what is being opened is interrupted first, so that it gets an answer.
    (Phase.FRESH, Phase.REFUSING): (Deed.FREEZE, Deed.CUT),
    (Phase.HOLDING, Phase.REFUSING): (Deed.CUT,),
    (Phase.HOLDING, Phase.FRESH): (Deed.THAW,),
    (Phase.REFUSING, Phase.FRESH): (Deed.THAW,),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What an operator has chosen for the time beyond the lease."""

    on_stale: str = HOLD
    hold_for_s: float = HOLD_FOR_S

    def __post_init__(self) -> None:
        if self.on_stale not in CHOICES:
            raise ValueError(f"on_stale is one of {', '.join(CHOICES)}, not {self.on_stale!r}")
        if not 0 <= self.hold_for_s < float("inf"):
            raise ValueError(f"hold_for_s is a time in seconds, not {self.hold_for_s!r}")

    def phase(self, lease_end_boot: float, now_boot: float) -> Phase:
        """The phase at this moment; a time that is no number is beyond everything."""
        if now_boot < lease_end_boot:
            return Phase.FRESH
        if now_boot < lease_end_boot + self.hold_for_s:
            return Phase.HOLDING
        return Phase.REFUSING

    def until_change(self, lease_end_boot: float, now_boot: float) -> float | None:
        """Seconds until time alone brings the next phase; None when it brings none."""
        phase = self.phase(lease_end_boot, now_boot)
        if phase is Phase.FRESH:
            return lease_end_boot - now_boot
        return lease_end_boot + self.hold_for_s - now_boot if phase is Phase.HOLDING else None


DEFAULT = Rule()


class Staleness:
    """The phase as it was last looked at, and what each change of it asks for, told once."""

    def __init__(self, rule: Rule, lease_end_boot: float, now_boot: float) -> None:
        self.rule = rule
        self.phase = rule.phase(lease_end_boot, now_boot)

    def look(self, lease_end_boot: float, now_boot: float) -> tuple[Deed, ...]:
        """Take note of the time; what has to be done now, in this order."""
        before, self.phase = self.phase, self.rule.phase(lease_end_boot, now_boot)
        return _DEEDS.get((before, self.phase), ())

    @property
    def waits(self) -> bool:
        """Whether a new request waits; otherwise, beyond the lease, it is refused."""
        return self.phase is Phase.HOLDING and self.rule.on_stale != REFUSE
