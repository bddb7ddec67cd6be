"""What a worker does about its lease: it looks at the clock, and freezes, cuts or lets go on what lives.

1. Every forwarding write asks `may_pass`. A process that wakes may read before any timer fires: the first
   byte finds out, and everything stands still before it.
2. At the end of the lease nothing passes; what comes in waits, or is refused, as the rule says.
3. When the lease is back within the hold time, all is judged anew before anything goes on.
4. At the end of the hold time what lives is cut, and what waits is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from haltwire_proxy.connections import Connection, Connections, Cut
from haltwire_proxy.faults import FailClosed
from haltwire_proxy.replica import Replica
from haltwire_proxy.staleness import KEEP, Deed, Phase, Rule, Staleness
from haltwire_proxy.tally import Tallies

log = logging.getLogger(__name__)
LOOK_S = 0.25
"How often, beyond the lease, clients that have given up are looked for."
LATE_S = 1.0
"Who finds out this long after its end that a lease is over has stood still himself."
_STOOD = "this worker was stopped, starved or asleep, and its lease ran out meanwhile"
WARN_EVERY_S = 60.0
"How often a proxy that goes on beyond its lease says so."


class Lease:
    """One per worker."""

    def __init__(
        self,
        replica: Replica,
        connections: Connections,
        tallies: Tallies,
        boottime: Callable[[], float],
        rule: Rule,
    ) -> None:
        self.rule = rule
        self.judge_anew: Callable[[], None] = lambda: None
        "Called when the lease is back, before anything goes on."
        self.on_cut: Callable[[list[Cut]], None] = lambda _: None
        "Called with what the end of the hold time has cut."
        self.give_up: Callable[[], object] = lambda: None
        "Called when what has to be done could not be."
        self._replica = replica
        self._connections = connections
        self._tallies = tallies
        self._boottime = boottime
        self._staleness = Staleness(rule, replica.lease_end_boot, boottime())
        self._waiting: dict[asyncio.Future[None], None] = {}
        "Who came before anybody was known here."
        self._timer: asyncio.TimerHandle | None = None
        self._counted_to: float | None = None
        "Up to when the time without a lease is among the totals; the time before the first one is not."
        self._warned_boot = float("-inf")

    def left(self) -> float:
        """Seconds for which the lease still lasts."""
        return self._replica.lease_left(self._boottime())

    def may_pass(self) -> bool:
        """Whether a byte may be forwarded now; when not, by then everything stands still or is cut."""
        return self.look() is Phase.FRESH or self._goes_on

    @property
    def waits(self) -> bool:
        """Whether a request that may not pass waits, rather than being refused; as of the last look."""
        return self._staleness.waits

    def look(self) -> Phase:
        """Do what the time asks for."""
        now = self._boottime()
        deeds = self._staleness.look(self._replica.lease_end_boot, now)
        if deeds:
            with FailClosed("the end of a lease could not be carried out", self.give_up):
                self._do(deeds)
        return self._staleness.phase

    async def first_word(self) -> None:
        """Return when it is known here who may pass, or when that is waited for no longer."""
        self.look()
        while self._replica.view is None and self.waits:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = None
            try:
                await waiter
            finally:
                del self._waiting[waiter]

    def watch(self) -> None:
        """Look whenever time alone changes something. Called at the start and after each renewal."""
        if self._timer is not None:
            self._timer.cancel()
        phase, now = self.look(), self._boottime()
        if phase is not Phase.FRESH:
            self._connections.look_for_lost()
            self._count(now)
            self._warn(now)
        left = self.rule.until_change(self._replica.lease_end_boot, now)
        if phase is not Phase.FRESH:
            left = LOOK_S if left is None else min(left, LOOK_S)
        # The timer's clock stops in suspend; the lease's does not. Never the other way round.
        if left is not None:
            self._timer = asyncio.get_running_loop().call_later(left + 0.001, self.watch)

    @property
    def _goes_on(self) -> bool:
        """Whether it is wanted that a lease's end changes nothing."""
        return self.rule.on_stale == KEEP and self._replica.view is not None

    def _do(self, deeds: Iterable[Deed]) -> None:
        for deed in deeds:
            if deed is Deed.THAW:
                self._thaw()
            elif deed is Deed.FREEZE:
                self._freeze()
            else:
                self._cut()

    def _freeze(self) -> None:
        live = self._connections.everything()
        self._counted_to = self._replica.lease_end_boot
        self._tallies.count("leases_lost")
        if self._goes_on:
            self._tallies.count("leases_overrun")
            return
        late_s = self._boottime() - self._replica.lease_end_boot
        log.warning(
            "%s: nothing passes; %d connections stand still for at most %g s",
            _STOOD if late_s > LATE_S else "no word from the control server",
            len(live),
            self.rule.hold_for_s,
        )
        self._connections.freeze_stale(live)

    def _cut(self) -> None:
        if not self._goes_on:
            live = self._connections.everything()
            doomed = [one for one in live if _is_under_way(one)]
            log.warning("no lease for too long: cutting %d connections", len(doomed))
            self.on_cut(self._connections.cut(doomed))
            # Of the others nothing has reached an upstream: each that waits is answered, and so is each that comes.
            self._connections.thaw_stale(live)
        self._wake()

    def _thaw(self) -> None:
        self._count(self._boottime())
        if self._counted_to is not None:
            log.warning("there is a lease again: what stood still goes on, as far as it may")
        self.judge_anew()
        self._connections.thaw_stale(tuple(self._connections.stale))
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _count(self, now_boot: float) -> None:
        if self._counted_to is None:
            return
        lasted_ms = int((now_boot - self._counted_to) * 1000)
        if lasted_ms > 0:
            self._counted_to += lasted_ms / 1000
            self._tallies.count("stale_ms", lasted_ms)

    def _warn(self, now_boot: float) -> None:
        if self._goes_on and now_boot - self._warned_boot >= WARN_EVERY_S:
            self._warned_boot = now_boot
            log.warning(
                "UNPROTECTED: this proxy has no lease since %.0f s and passes traffic because of on_stale = %r;"
                " a kill does not reach it",
                now_boot - self._replica.lease_end_boot,
                KEEP,
            )


def _is_under_way(connection: Connection) -> bool:
    """Whether anything of it may have reached an upstream, or its client cannot be answered."""
    return any(side.fileno() >= 0 for side in connection.upstreams) or bool(
        connection.held and connection.exchanges
    )
