"""Watches the proxies take up one order or resume, and knows what to wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from haltwire.wire.messages import Report
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import DRAIN, HOLD
from haltwire.wire.receipts import FENCED, GONE, PENDING, ProxyState, Receipt

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
    before: Receipt | None = None
    "What an earlier process knew of a cut or hold; this one completes it."
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
    _fences: dict[Peer, Moment] = field(default_factory=dict)
    "From when on silent proxies certainly passed nothing: without a lease, or with one on the head alone."
    _ends: dict[Peer, Moment] = field(default_factory=dict)
    "When proxies were seen to be gone."
    _began: Moment | None = None
    "The first look, which is after the commit."
    _let_go: dict[Peer, Mapping[str, Report]] = field(default_factory=dict)
    "Of a resume: the proxies' last word on the holds that it lifted."

    def look(self, now: Callable[[], datetime], monotonic: float) -> None:
        """Take in what has become of the proxies since the last look."""
        seen = Moment(now(), monotonic)
        self._began = self._began or seen
        for peer in self.peers:
            proof = self._proof(peer, seen)
            if proof is not None:
                self._proofs[peer] = proof
            elif peer.lapsed is not None and self.request.mode != RESUME:
                # Whoever had no lease when the order was committed has passed nothing since.
                self._fences.setdefault(peer, _later(peer.lapsed, self._began))
            if peer.gone:
                self._ends.setdefault(peer, seen)
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
        return (
            *(self._halted(one, self._began) for one in ended),
            *map(self._evidence, self.peers),
        )

    @property
    def is_pending(self) -> bool:
        """Whether some proxy may pass what the order stops: it has not proven the order, lives, and may have a lease."""
        return any(self._is_pending(peer) for peer in self.peers)

    @property
    def is_complete(self) -> bool:
        """Whether all that a receipt needs has come in; a hold's may still change, and who is fenced may come back."""
        return all(
            self._is_told(peer, self._proofs[peer]) if peer in self._proofs else peer in self._ends
            for peer in self.peers
        )

    @property
    def is_behind(self) -> bool:
        """Whether an earlier process knew more of a drain: some proxy has not come back with its report."""
        return (
            self.arrived is None
            and self.before is None
            and any(
                peer not in self._proofs
                or (self._proofs[peer].report is None and peer not in self._ends)
                for peer in self.peers
            )
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

    def _is_pending(self, peer: Peer) -> bool:
        return not (peer in self._proofs or peer in self._fences or peer in self._ends)

    def _proof(self, peer: Peer, seen: Moment) -> Enforcement | None:
        if self.request.mode == RESUME:
            if peer in self._proofs or peer.applied_revision < self.needed_revision:
                return None
            return Enforcement(peer.applied_revision, seen.at, seen.monotonic, None)
        proof = peer.enforced.get(self.request.kill_id or "")
        return proof if proof is not None and proof.revision >= self.needed_revision else None

    def _is_told(self, peer: Peer, proof: Enforcement) -> bool:
        """Whether a proxy that has proven the order has said all that it has to say."""
        if self.request.mode == RESUME:
            release = self.request.release
            holds = release.holds if release else frozenset()
            return peer in self._ends or len(self._released(peer)) >= len(holds)
        if self.request.mode == DRAIN:
            return self._end_of(peer, proof) is not None
        if self.request.mode == HOLD:
            return peer in self._ends or proof.report is not None
        # What a proxy said in a hello comes without details.
        return proof.report is not None or proof.connections_cut is None

    def _evidence(self, peer: Peer) -> Evidence:
        name, mode = peer.record.proxy_id, self.request.mode
        proof = self._proofs.get(peer)
        if proof is None:
            return self._without_proof(peer)
        latency_ms = self._since_arrival(proof.at_monotonic)
        if mode == RESUME:
            released = self._released(peer)
            state = released_state(name, latency_ms, released)
            return Evidence(state, proof.at, released=released)
        end, report = self._end_of(peer, proof), proof.report
        if report is not None and mode == DRAIN and peer in self._ends:
            report = _ended(report)
        state = applied_state(
            mode, name, latency_ms, proof.connections_cut, report, proof.ended is not None
        )
        return self._halted(Evidence(state, proof.at, report, peer.clock_offset), end)

    def _without_proof(self, peer: Peer) -> Evidence:
        """Of a proxy that has said nothing of the order."""
        name, end = peer.record.proxy_id, self._ends.get(peer)
        fence = self._fences.get(peer)
        # When it wakes, what a drain lets finish goes on there: without a lease it has not ended.
        halted = None if self.request.mode == DRAIN else fence
        if end is not None:
            return self._halted(Evidence(ProxyState(name, GONE)), halted or end)
        if fence is None:
            return Evidence(ProxyState(name, PENDING))
        state = ProxyState(name, FENCED, self._since_arrival(fence.monotonic))
        fenced = Evidence(state, agent_residual_max=peer.record.agent_residual_max)
        return self._halted(fenced, halted)

    def _halted(self, evidence: Evidence, since: Moment | None) -> Evidence:
        if since is None:
            return evidence
        took_ms = self._since_arrival(since.monotonic)
        return replace(evidence, halted_at=since.at, halted_in_ms=took_ms)

    def _end_of(self, peer: Peer, proof: Enforcement) -> Moment | None:
        """From when on nothing moved there: with its ack, without a lease, or when all that drained had ended."""
        if self.request.mode == DRAIN:
            return proof.ended or self._ends.get(peer)
        return self._fences.get(peer) or Moment(proof.at, proof.at_monotonic)

    def _released(self, peer: Peer) -> tuple[Report, ...]:
        return tuple(self._let_go.get(peer, {}).values())

    def _since_arrival(self, monotonic: float) -> float | None:
        if self.arrived is None:
            return None
        return round(max(0.0, monotonic - self.arrived) * 1000, 3)


def _later(one: Moment, other: Moment) -> Moment:
    return max(one, other, key=lambda moment: moment.monotonic)


def _ended(report: Report) -> Report:
    """What a drain's last report comes to when the process is gone: nothing lives on."""
    instances = tuple(replace(one, connections_live=0) for one in report.instances)
    return replace(report, live=0, instances=instances)
