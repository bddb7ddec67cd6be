"""Orders, indexed: every heartbeat asks which of them are about one agent."""

from __future__ import annotations

from collections.abc import Iterable

from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill

from haltwire_control.state import Order


class KillIndex:
    """An index over some orders, by whom they are about."""

    def __init__(self, kills: Iterable[Kill]) -> None:
        self._by_agent: dict[tuple[str, ...], list[Kill]] = {}
        self._globs: list[Kill] = []
        for kill in kills:
            if kill.selector.agent is None:
                self._globs.append(kill)
            else:
                self._by_agent.setdefault(kill.selector.segments, []).append(kill)

    def about(self, agent: AgentRef) -> list[Kill]:
        """The orders that may stop some instance of the agent."""
        wide = [kill for kill in self._globs if kill.selector.matches_agent(agent)]
        return [*self._by_agent.get(agent.segments, ()), *wide]


class InForce(KillIndex):
    """An index over the orders of one state."""

    def __init__(self, orders: Iterable[Order]) -> None:
        self.by_id = {order.kill.kill_id: order for order in orders}
        super().__init__(order.kill for order in self.by_id.values())
