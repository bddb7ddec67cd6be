"""Who is connected, and what each proxy has proven to enforce.

A proxy counts from the moment it is stored until it is seen to end, connected or not. What it has
acknowledged stays true while its process lives: it lifts nothing without us.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from haltwire.wire import messages
from haltwire.wire.messages import Ack, Delta, Hello, Renew, Renewed, Report, Settings, Snapshot

from haltwire_control.bell import Bell
from haltwire_control.presence import Machine, has_ended
from haltwire_control.state import Process, ProxyRecord, State

log = logging.getLogger(__name__)
OFFSETS_KEPT = 64
"Clock differences remembered per proxy: at four a lease of a second, the last quarter of a minute."


class Outlet(Protocol):
    """Where messages to one proxy go. Neither method waits."""

    def send(self, text: str) -> None:
        """Queue a message behind the earlier ones; a socket too slow for that is closed."""

    def close(self, why: str) -> None:
        """End the link."""


@dataclass(slots=True)
class Enforcement:
    """Proof that a proxy enforces a kill."""

    revision: int
    at: datetime
    at_monotonic: float
    connections_cut: int | None
    "None when the proxy said so in a hello, which tells no counts."
    report: Report | None = None


@dataclass(slots=True, eq=False)
class Peer:
    """A proxy that may be passing traffic."""

    record: ProxyRecord
    shares_clock: bool = False
    "Whether it runs on this machine."
    outlet: Outlet | None = None
    gone: bool = False
    applied_revision: int = -1
    connected_at: datetime | None = None
    heard_at: datetime | None = None
    connections: int = 0
    owes_ack: bool = False
    "Whether its snapshot is not acknowledged yet."
    enforced: dict[str, Enforcement] = field(default_factory=dict)
    "By kill id; only of orders in force."
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
    ) -> None:
        self.progress = Bell()
        "Rings when a receipt may have changed."
        self._here = here
        self._lease_ms = lease_ms
        self._now = now
        self._monotonic = monotonic
        self._peers: dict[Process, Peer] = {}
        self._in_force: set[str] = set()
        "Ids of the orders in force."

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All that have not been seen to end."""
        return tuple(self._peers.values())

    def begin(self, state: State) -> None:
        """Take over a state as it was left."""
        self._in_force = {order.kill.kill_id for order in state.orders}
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
            self._peers[record.process] = Peer(record, bool(here) and record.boot_id == here)

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
        if hello.epoch != state.epoch:
            peer.enforced.clear()
        else:
            for kill_id in self._in_force.intersection(hello.kill_ids):
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
                    Settings(self._lease_ms),
                )
            )
        )
        self.progress.ring()

    def detach(self, peer: Peer, outlet: Outlet) -> bool:
        """The link has ended; whether it was still this peer's."""
        if peer.outlet is not outlet:
            return False
        peer.outlet = None
        self.progress.ring()
        return True

    def publish(self, delta: Delta) -> None:
        """Push a change to every link, in this call."""
        text = messages.dumps(delta)
        self._in_force.update(kill.kill_id for kill in delta.kills)
        self._in_force.difference_update(delta.lifted)
        for peer in self._peers.values():
            if peer.outlet is not None:
                peer.outlet.send(text)
            for kill_id in delta.lifted:
                peer.enforced.pop(kill_id, None)

    def drop_links(self, why: str) -> None:
        """Close every link; whoever lives comes back for a snapshot."""
        for peer in self._peers.values():
            if peer.outlet is not None:
                peer.outlet.close(why)

    def renew(self, peer: Peer, asked: Renew, state: State) -> None:
        """Answer with a lease on the head revision; who has not applied that gets nothing by it."""
        now = self._now()
        peer.heard_at = now
        peer.heard_clock(asked.now, now)
        self._applied(peer, asked.epoch, asked.revision, state)
        if peer.outlet is not None:
            peer.outlet.send(
                messages.dumps(
                    Renewed(asked.sent_at_boot, state.epoch, state.revision, self._lease_ms)
                )
            )

    def acknowledge(self, peer: Peer, ack: Ack, state: State) -> None:
        """Note what a proxy enforces from now on."""
        if ack.epoch != state.epoch:
            return
        now, monotonic = self._now(), self._monotonic()
        if peer.owes_ack:
            # The ack of a snapshot names the orders that it changed; the others that this proxy has
            # proven stand in it as they were: an order carved and killed again was missed as a whole.
            peer.owes_ack = False
            for proof in peer.enforced.values():
                proof.revision = max(proof.revision, ack.revision)
        for kill_id in self._in_force.intersection(ack.kills):
            peer.enforced[kill_id] = Enforcement(ack.revision, now, monotonic, ack.connections_cut)
        self._applied(peer, ack.epoch, ack.revision, state)
        self.progress.ring()

    def report(self, peer: Peer, report: Report) -> None:
        """Keep the details of an acknowledged kill."""
        peer.heard_clock(report.now, self._now())
        enforcement = peer.enforced.get(report.kill_id)
        if enforcement is not None:
            enforcement.report = report
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

    def _applied(self, peer: Peer, epoch: str | None, revision: int, state: State) -> None:
        if epoch == state.epoch and revision > peer.applied_revision:
            peer.applied_revision = revision
            self.progress.ring()
