"""Who is connected, and what each proxy has proven to enforce.

A proxy counts from the moment it is stored until it is seen to end, connected or not. What it has
acknowledged stays true while its process lives: it lifts nothing without us. And without us it passes
nothing: once the last of its leases is over, and until it has applied the head, it enforces every order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from haltwire.wire import messages
from haltwire.wire.messages import Ack, Delta, Hello, Renew, Renewed, Report, Settings, Snapshot
from haltwire.wire.orders import DRAIN, HOLD

from haltwire_control.bell import Bell
from haltwire_control.leases import Lease, over_after
from haltwire_control.presence import Machine, has_ended
from haltwire_control.state import Order, Process, ProxyRecord, State

log = logging.getLogger(__name__)
OFFSETS_KEPT = 64
"Clock differences remembered per proxy: at four a lease of a second, the last quarter of a minute."
LIFTED_HOLDS_KEPT = 10_000
"Lifted holds whose last reports are taken: all that one resume may lift."
RELEASES_KEPT = 1000
"Revisions that lifted holds, whose last reports are kept per proxy until somebody looks."


class Outlet(Protocol):
    """Where messages to one proxy go. Neither method waits."""

    def send(self, text: str) -> None:
        """Queue a message behind the earlier ones; a socket too slow for that is closed."""

    def close(self, why: str) -> None:
        """End the link."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When we heard of something, on both clocks."""

    at: datetime
    monotonic: float


@dataclass(slots=True)
class Enforcement:
    """Proof that a proxy enforces a kill."""

    revision: int
    at: datetime
    at_monotonic: float
    connections_cut: int | None
    "None when the proxy said so in a hello, which tells no counts."
    report: Report | None = None
    "The first one of a cut; the latest of a drain or hold."
    ended: Moment | None = None
    "When its reports first said that nothing which the order matches is alive any more."


@dataclass(slots=True, eq=False)
class Peer:
    """A proxy that may be passing traffic."""

    record: ProxyRecord
    shares_clock: bool = False
    "Whether it runs on this machine."
    outlet: Outlet | None = None
    key: str | None = None
    "Whose key it showed when it connected first: nobody else's may speak for it."
    authority: str | None = None
    "The CA that signs what it reads inside TLS, in PEM form."
    gone: bool = False
    lease: Lease = field(default_factory=Lease)
    lapsed: Moment | None = None
    "When the last of its leases was certainly over; None while one may run."
    applied_revision: int = -1
    connected_at: datetime | None = None
    heard_at: datetime | None = None
    connections: int = 0
    owes_ack: bool = False
    "Whether its snapshot is not acknowledged yet."
    enforced: dict[str, Enforcement] = field(default_factory=dict)
    "By kill id; only of orders in force."
    released: dict[int, dict[str, Report]] = field(default_factory=dict)
    "The last reports of lifted holds, by the revision that lifted them and by kill id."
    _offsets: deque[timedelta] = field(default_factory=lambda: deque(maxlen=OFFSETS_KEPT))

    @property
    def usage_key(self) -> str:
        """Names this process's totals in the ledger."""
        return f"{self.record.proxy_id}/{self.record.pid}.{self.record.started_ticks}"

    @property
    def clock_offset(self) -> timedelta:
        """What to add to this proxy's times; the least is the one that travelled fastest."""
        return timedelta() if self.shares_clock else min(self._offsets, default=timedelta())

    def heard_clock(self, said: datetime, now: datetime) -> None:
        """Learn from a message how far the proxy's clock is behind ours."""
        self._offsets.append(now - said)


class Hub:
    """All peers. Its methods run in the event loop and never wait."""

    def __init__(
        self,
        here: Machine,
        lease_ms: int,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        steady: Callable[[], float],
    ) -> None:
        self.progress = Bell()
        "Rings when a receipt may have changed."
        self.lease_ms = lease_ms
        "What is granted from now on."
        self._longest_ms = lease_ms
        "The longest lease that any proxy may have, whoever granted it."
        self._here = here
        self._now = now
        self._monotonic = monotonic
        self._steady = steady
        self.address: tuple[tuple[str, ...], int | None] = ((), None)
        "The addresses and the port where other machines reach us."
        self._peers: dict[Process, Peer] = {}
        self._in_force: dict[str, Order] = {}
        self._lifted_holds: dict[str, int] = {}
        "Holds that were lifted lately, and by which revision."
        self._news: set[str] = set()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All that have not been seen to end."""
        return tuple(self._peers.values())

    def begin(self, state: State) -> None:
        """Take over a state as it was left."""
        self._longest_ms = max(self.lease_ms, state.longest_lease_ms)
        self._in_force = {order.kill.kill_id: order for order in state.orders}
        for record in state.proxies.values():
            self.note(record)

    def note(self, record: ProxyRecord) -> None:
        """Follow the store: a proxy is known from its commit on, and no longer once it has ended."""
        if record.gone_at is not None:
            peer = self._peers.pop(record.process, None)
            if peer is not None:
                peer.gone = True
        elif record.process not in self._peers:
            here = self._here.boot_id
            shares_clock = bool(here) and record.boot_id == here
            # An earlier control server may have given it a lease a moment ago, before it stopped.
            lease = Lease(self._steady() + over_after(self._longest_ms))
            self._peers[record.process] = Peer(record, shares_clock, key=record.key_id, lease=lease)

    def peers_of(self, records: Iterable[ProxyRecord]) -> tuple[Peer, ...]:
        """The peers behind these records; one that ended meanwhile is a peer that is gone."""
        return tuple(self._peers.get(r.process) or Peer(r, gone=True) for r in records)

    def find(self, hello: Hello) -> Peer | None:
        """The peer that this process already is."""
        process = (
            hello.host,
            hello.boot_id,
            hello.pid_namespace,
            hello.pid,
            hello.started_ticks,
        )
        return self._peers.get(process)

    def attach(self, peer: Peer, hello: Hello, outlet: Outlet, state: State) -> None:
        """Connect a stored peer: it gets a snapshot now and every later delta."""
        if peer.outlet is not None:
            peer.outlet.close("the same proxy has connected again")
        now = self._now()
        peer.outlet, peer.connected_at, peer.heard_at = outlet, now, now
        peer.owes_ack = True
        missed = state.lifted if hello.epoch == state.epoch else ()
        peer.applied_revision = hello.revision if hello.epoch == state.epoch else -1
        peer.lease.link()
        peer.lease.sent(state.revision, self._steady())
        peer.lease.applied(peer.applied_revision)
        if hello.epoch != state.epoch:
            peer.enforced.clear()
        else:
            for kill_id in self._in_force.keys() & hello.kill_ids:
                peer.enforced.setdefault(
                    kill_id, Enforcement(hello.revision, now, self._monotonic(), None)
                )
        outlet.send(
            messages.dumps(
                Snapshot(
                    state.epoch,
                    state.revision,
                    state.kills,
                    tuple(o.kill for o in missed if o.changed_revision > hello.revision),
                    tuple(token.rule for token in state.tokens.values()),
                    Settings(self.lease_ms, *self.address),
                )
            )
        )
        self.progress.ring()

    def detach(self, peer: Peer, outlet: Outlet) -> bool:
        """The link has ended; whether it was still this peer's."""
        if peer.outlet is not outlet:
            return False
        peer.outlet = None
        peer.lease.link()
        self.progress.ring()
        return True

    def publish(self, delta: Delta, changed: Iterable[Order]) -> None:
        """Push a change of these orders to every link, in this call."""
        text, clock = messages.dumps(delta), self._steady()
        self._in_force.update({o.kill.kill_id: o for o in changed if o.lifted is None})
        for kill_id in delta.lifted:
            self._lift(kill_id, delta.revision)
        for peer in self._peers.values():
            if peer.outlet is not None:
                peer.lease.sent(delta.revision, clock)
                peer.outlet.send(text)
            for kill_id in delta.lifted:
                peer.enforced.pop(kill_id, None)

    def take_news(self) -> set[str]:
        """Kills that were lifted or reported about since the last call."""
        news, self._news = self._news, set()
        return news

    def drop_links(self, why: str, key: str | None = None) -> None:
        """Close every link, or those opened with a key; whoever lives comes back for a snapshot, if it may."""
        for peer in self._peers.values():
            if peer.outlet is not None and key in (None, peer.key):
                peer.outlet.close(why)

    def renew(self, peer: Peer, asked: Renew, state: State) -> None:
        """Answer with a lease on the head revision; who has not applied that gets nothing by it.

        A proxy that leaves unapplied what it was sent is not answered: a lease would only put off the
        moment from which it certainly passes nothing.
        """
        now, clock = self._now(), self._steady()
        peer.heard_at = now
        peer.heard_clock(asked.now, now)
        self._applied(peer, asked.epoch, asked.revision, state)
        if peer.outlet is None or peer.lease.is_behind(clock, self.lease_ms):
            return
        peer.lease.grant(clock, self.lease_ms)
        peer.lapsed = None
        peer.outlet.send(
            messages.dumps(Renewed(asked.sent_at_boot, state.epoch, state.revision, self.lease_ms))
        )

    def lapse(self) -> float:
        """Note whose last lease is over by now; seconds until the next one can be."""
        clock = self._steady()
        ends = [clock + over_after(self.lease_ms)]
        for peer in self._peers.values():
            if peer.gone or peer.lapsed is not None or not peer.record.stops_when_stale:
                continue
            if peer.lease.left(clock) > 0:
                ends.append(peer.lease.end)
                continue
            peer.lapsed = Moment(self._now(), self._monotonic())
            log.warning(
                "proxy %s has no lease any more: it is silent, or does not apply what it is sent",
                peer.record.proxy_id,
            )
            self.progress.ring()
        return min(ends) - clock

    def left(self, peer: Peer) -> float:
        """Seconds for which a proxy may still pass traffic, at most, if its lease binds it."""
        return peer.lease.left(self._steady())

    def acknowledge(self, peer: Peer, ack: Ack, state: State) -> None:
        """Note what a proxy enforces from now on."""
        if ack.epoch != state.epoch:
            return
        now, monotonic = self._now(), self._monotonic()
        for kill_id in self._in_force.keys() & ack.kills:
            proof = peer.enforced.get(kill_id)
            # What changes nothing of what an order stops, such as its reason, is acknowledged, too;
            # the proof is still that of the first time.
            if proof is None or proof.revision < self._in_force[kill_id].changed_revision:
                peer.enforced[kill_id] = Enforcement(
                    ack.revision, now, monotonic, ack.connections_cut
                )
        if peer.owes_ack:
            # The ack of a snapshot names the orders that it changed; the others that this proxy has
            # proven stand in it as they were: an order carved and killed again was missed as a whole.
            peer.owes_ack = False
            for proof in peer.enforced.values():
                proof.revision = max(proof.revision, ack.revision)
        self._applied(peer, ack.epoch, ack.revision, state)
        self.progress.ring()

    def report(self, peer: Peer, report: Report) -> None:
        """Keep the details of an acknowledged kill, or of a hold whose lifting was acknowledged."""
        now = self._now()
        peer.heard_clock(report.now, now)
        kill_id = report.kill_id
        proof, order = peer.enforced.get(kill_id), self._in_force.get(kill_id)
        if proof is not None and order is not None:
            if order.kill.mode not in (DRAIN, HOLD) and proof.report is not None:
                return  # a second one says nothing of what the cut did
            proof.report = report
            if report.live:
                proof.ended = None
            else:
                proof.ended = proof.ended or Moment(now, self._monotonic())
        elif peer.applied_revision >= (lifted := self._lifted_holds.get(kill_id, _NEVER)):
            # One that was sent before would still tell of the hold.
            peer.released.setdefault(lifted, {})[kill_id] = report
            _forget_oldest(peer.released, RELEASES_KEPT)
        else:
            return
        self._news.add(kill_id)
        self.progress.ring()

    def end(self, peer: Peer) -> None:
        """The proxy has said that it closed everything."""
        peer.gone = True
        self.progress.ring()

    def ended(self) -> tuple[Peer, ...]:
        """The peers whose end has been seen and is not stored yet; looks at the disconnected ones."""
        found = []
        for peer in self._peers.values():
            if not peer.gone and peer.outlet is None and has_ended(peer.record, self._here):
                peer.gone = True
                self.progress.ring()
            if peer.gone:
                found.append(peer)
        return tuple(found)

    def _lift(self, kill_id: str, revision: int) -> None:
        order = self._in_force.pop(kill_id, None)
        self._news.add(kill_id)
        if order is not None and order.kill.mode == HOLD:
            self._lifted_holds[kill_id] = revision
            _forget_oldest(self._lifted_holds, LIFTED_HOLDS_KEPT)

    def _applied(self, peer: Peer, epoch: str | None, revision: int, state: State) -> None:
        if epoch == state.epoch and revision > peer.applied_revision:
            peer.applied_revision = revision
            peer.lease.applied(revision)
            self.progress.ring()


_NEVER = 2**63


def _forget_oldest(table: dict[Any, Any], most: int) -> None:
    while len(table) > most:
        del table[next(iter(table))]
