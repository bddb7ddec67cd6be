"""Watches the proxies take up one order or resume, and knows what to wait for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from haltwire.wire.receipts import APPLIED, GONE, PENDING, ProxyState

from haltwire_control.hub import Enforcement, Peer
from haltwire_control.receipts import RESUME, Evidence, Request

REPORTS_WITHIN_S = 0.25
"How long after the last ack an answer waits for the details."


@dataclass(slots=True, eq=False)
class Watch:
    """One request and the proxies that it waits for: all that were known when it was committed."""

    request: Request
    peers: tuple[Peer, ...]
    needed_revision: int
    "What a proxy must have acknowledged: the latest revision that changed the order."
    arrived: float
    "When the request came in, on the monotonic clock."
    told: bool = False
    "Whether its confirmation is in the audit log, or never will be."
    recorded: object = None
    "What was known when the receipt was stored last."
    _proofs: dict[Peer, Enforcement] = field(default_factory=dict)

    def look(self, now: Callable[[], datetime], monotonic: float) -> None:
        """Take in what proxies have acknowledged since the last look."""
        for peer in self.peers:
            proof = self._proof(peer, now, monotonic)
            if proof is not None:
                self._proofs[peer] = proof

    @property
    def known(self) -> object:
        """Changes whenever the receipt has something new to say."""
        return self.evidence(), self.request.durable

    def evidence(self) -> tuple[Evidence, ...]:
        """What each proxy has proven, as of the last look."""
        return tuple(map(self._evidence, self.peers))

    @property
    def is_pending(self) -> bool:
        """Whether some proxy has neither acknowledged nor ended."""
        return any(peer not in self._proofs and not peer.gone for peer in self.peers)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can come in."""
        if self.is_pending:
            return False
        return self.request.mode == RESUME or all(
            # What a proxy said in a hello comes without details.
            proof.report or proof.connections_cut is None
            for proof in self._proofs.values()
        )

    @property
    def reports_until(self) -> float:
        """How long details are waited for, on the monotonic clock."""
        last = max((p.at_monotonic for p in self._proofs.values()), default=self.arrived)
        return max(last, self.arrived) + REPORTS_WITHIN_S

    def _proof(
        self, peer: Peer, now: Callable[[], datetime], monotonic: float
    ) -> Enforcement | None:
        if self.request.mode == RESUME:
            if peer in self._proofs or peer.applied_revision < self.needed_revision:
                return None
            return Enforcement(peer.applied_revision, now(), monotonic, None)
        proof = peer.enforced.get(self.request.kill_id or "")
        return proof if proof is not None and proof.revision >= self.needed_revision else None

    def _evidence(self, peer: Peer) -> Evidence:
        name = peer.record.proxy_id
        proof = self._proofs.get(peer)
        if proof is None:
            return Evidence(ProxyState(name, GONE if peer.gone else PENDING))
        latency_ms = round(max(0.0, proof.at_monotonic - self.arrived) * 1000, 3)
        state = ProxyState(name, APPLIED, latency_ms, proof.connections_cut)
        return Evidence(state, proof.at, proof.report, peer.clock_offset)
