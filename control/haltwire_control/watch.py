"""Watches the proxies take up one order or resume, and knows what to wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from haltwire.wire.messages import Report
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import DRAIN, HOLD
from haltwire.wire.receipts import GONE, PENDING, ProxyState

from haltwire_control.hub import Enforcement, Moment, Peer
from haltwire_control.receipts import RESUME, Evidence, Request, applied_state
from haltwire_control.resumed import released_state

REPORTS_WITHIN_S = 0.25
"How long after the last ack an answer waits for the details."


@dataclass(slots=True, eq=False)
class Watch:
    """One request and the proxies that it waits for: all that were known when it was committed."""

    request: Request
    peers: tuple[Peer, ...]
    needed_revision: int
    "What a proxy must have acknowledged: the latest revision that changed the order."
    arrived: float | None
    "When the request came in, on the monotonic clock; None when an earlier process took it."
    name: str = ""
    "Of what its receipt is about; none when there is nothing that it could be kept with."
    earlier: tuple[str, ...] = ()
    "Proxies that have ended since an earlier process watched."
    told: bool = False
    "Whether its confirmation is in the audit log, or never will be."
    answering: bool = False
    "Whether somebody waits for it, who will have its receipt stored."
    recorded: object = None
    "What was known when the receipt was stored last."
    recorded_stage: object = None
    record_after: float = 0.0
    "Before this, on the monotonic clock, only another stage is worth storing."
    baseline: Mapping[tuple[AgentRef, str], int] | None = None
    "Of a resume: how many bytes each instance had moved when everything from before had been counted."
    states: dict[tuple[AgentRef, str], str] = field(default_factory=dict)
    "Of a resume: how each instance was when last looked at."
    _proofs: dict[Peer, Enforcement] = field(default_factory=dict)
    _ends: dict[Peer, Moment] = field(default_factory=dict)
    "When proxies that were draining were seen to be gone."
    _let_go: dict[Peer, Mapping[str, Report]] = field(default_factory=dict)
    "Of a resume: the proxies' last word on the holds that it lifted."

    def look(self, now: Callable[[], datetime], monotonic: float) -> None:
        """Take in what proxies have acknowledged since the last look."""
        for peer in self.peers:
            proof = self._proof(peer, now, monotonic)
            if proof is not None:
                self._proofs[peer] = proof
            if self.request.mode == DRAIN and peer.gone and peer not in self._ends:
                self._ends[peer] = Moment(now(), monotonic)
            released = peer.released.get(self.needed_revision)
            if released is not None and self.request.mode == RESUME:
                self._let_go[peer] = released

    @property
    def known(self) -> object:
        """Changes whenever the receipt has something new to say."""
        return self.evidence(), self.request.durable

    @property
    def stage(self) -> object:
        """Changes when the receipt says something else than more or fewer connections."""
        return self.is_pending, self.is_complete, self.request.durable

    def evidence(self) -> tuple[Evidence, ...]:
        """What each proxy has proven, as of the last look."""
        ended = (Evidence(ProxyState(name, GONE)) for name in self.earlier)
        return (*ended, *map(self._evidence, self.peers))

    @property
    def is_pending(self) -> bool:
        """Whether some proxy has neither acknowledged nor ended."""
        return any(peer not in self._proofs and not peer.gone for peer in self.peers)

    @property
    def is_complete(self) -> bool:
        """Whether all that a receipt needs has come in; a hold's may still change."""
        return not self.is_pending and all(
            self._is_told(peer, proof) for peer, proof in self._proofs.items()
        )

    @property
    def is_behind(self) -> bool:
        """Whether an earlier process knew more: some proxy has not come back to this one with its report."""
        return self.arrived is None and any(
            peer not in self._proofs or (self._proofs[peer].report is None and not peer.gone)
            for peer in self.peers
        )

    @property
    def waits_for_ends(self) -> bool:
        """Whether it is worth waiting for longer than for details: connections are to end."""
        return self.request.mode == DRAIN and not self.is_complete

    @property
    def proven_at(self) -> float:
        """When the last proof came in, on the monotonic clock."""
        return max((p.at_monotonic for p in self._proofs.values()), default=0.0)

    @property
    def reports_until(self) -> float:
        """How long details are waited for, on the monotonic clock."""
        return max(self.proven_at, self.arrived or 0.0) + REPORTS_WITHIN_S

    def _proof(
        self, peer: Peer, now: Callable[[], datetime], monotonic: float
    ) -> Enforcement | None:
        if self.request.mode == RESUME:
            if peer in self._proofs or peer.applied_revision < self.needed_revision:
                return None
            return Enforcement(peer.applied_revision, now(), monotonic, None)
        proof = peer.enforced.get(self.request.kill_id or "")
        return proof if proof is not None and proof.revision >= self.needed_revision else None

    def _is_told(self, peer: Peer, proof: Enforcement) -> bool:
        """Whether a proxy that has proven the order has said all that it has to say."""
        if self.request.mode == RESUME:
            release = self.request.release
            holds = release.holds if release else frozenset()
            return peer.gone or len(self._released(peer)) >= len(holds)
        if self.request.mode == DRAIN:
            return self._end_of(peer, proof) is not None
        if self.request.mode == HOLD:
            return peer.gone or proof.report is not None
        # What a proxy said in a hello comes without details.
        return proof.report is not None or proof.connections_cut is None

    def _evidence(self, peer: Peer) -> Evidence:
        name, mode = peer.record.proxy_id, self.request.mode
        proof = self._proofs.get(peer)
        if proof is None:
            return Evidence(ProxyState(name, GONE if peer.gone else PENDING))
        latency_ms = self._since_arrival(proof.at_monotonic)
        if mode == RESUME:
            released = self._released(peer)
            state = released_state(name, latency_ms, released)
            return Evidence(state, proof.at, released=released)
        end, report = self._end_of(peer, proof), proof.report
        if report is not None and peer in self._ends:
            report = _ended(report)
        state = applied_state(
            mode, name, latency_ms, proof.connections_cut, report, proof.ended is not None
        )
        return Evidence(
            state,
            proof.at,
            report,
            peer.clock_offset,
            end.at if end else None,
            self._since_arrival(end.monotonic) if end else None,
        )

    def _end_of(self, peer: Peer, proof: Enforcement) -> Moment | None:
        """From when on nothing moved there: with its ack, or when the last connection of a drain ended."""
        if self.request.mode == DRAIN:
            return proof.ended or self._ends.get(peer)
        return Moment(proof.at, proof.at_monotonic)

    def _released(self, peer: Peer) -> tuple[Report, ...]:
        return tuple(self._let_go.get(peer, {}).values())

    def _since_arrival(self, monotonic: float) -> float | None:
        if self.arrived is None:
            return None
        return round(max(0.0, monotonic - self.arrived) * 1000, 3)


def _ended(report: Report) -> Report:
    """What a drain's last report comes to when the process is gone: nothing lives on."""
    instances = tuple(replace(one, connections_live=0) for one in report.instances)
    return replace(report, live=0, instances=instances)
