"""Random histories of connecting, asking, streaming, killing and resuming: nothing moves that may not, nothing is lost.

One worker on real sockets and the loop that it has in earnest, held to `support.model` after every
step. `HALTWIRE_HISTORIES=1000` runs that many, with other seeds each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant
from support.ends import soon
from support.model import CUT, DRAIN, HOLD, Who
from support.orders import Orders, of_each

HISTORIES, STEPS = 60, 40
LONGER = int(os.environ.get("HALTWIRE_HISTORIES", "0"))


class Worker(Orders):
    """What must hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.contacts: dict[Who, int] = {}
        "Of each who is stopped: how many connections his origin has seen."

    @invariant()
    def nothing_arrives_for_who_is_cut_or_held(self) -> None:
        for who, limits in self.limits.items():
            origin = self.origins[who]
            for arrival in origin.arrivals:
                limit = limits.get((arrival.port, origin.port), 0)
                assert arrival.arrived() <= limit, (who, arrival.paths, limit)

    @invariant()
    def nobody_is_dialled_for_who_is_cut_or_held(self) -> None:
        for who, origin in self.origins.items():
            if self.model.fate(who) in (CUT, HOLD):
                assert self.contacts.setdefault(who, len(origin.arrivals)) == len(origin.arrivals)
            else:
                self.contacts.pop(who, None)

    @invariant()
    def nothing_reaches_the_client_of_a_held_line(self) -> None:
        for client in self.clients:
            if client.line.held and not client.line.leaving:
                assert client.limit is not None
                assert client.end.got() <= client.limit, client.line

    @invariant()
    def streams_carry_every_byte_once_and_in_order(self) -> None:
        for client in self.clients:
            if client.is_stream:
                self.streams_in_order(client)

    @invariant()
    def who_is_not_cut_has_all_his_connections(self) -> None:
        self.runner.run(self.settled())
        for client in self.clients:
            assert client.line.leaving or not client.end.ended, client.line

    @invariant()
    def the_latest_report_of_each_order_is_true(self) -> None:
        self.runner.run(soon(self._is_told, lambda: (self.model, self.told)))

    def _is_told(self) -> bool:
        enforcer = self.world.enforcer
        self.told |= {report.kill_id: report for report in enforcer.changed_reports()}
        for order in self.model.orders:
            if order.mode == CUT:
                continue
            report, expected = self.told[order.kill_id], self.model.told(order)
            live = sum(one.live + one.held for one in expected.values())
            if of_each(report) != expected or report.live != live * (order.mode == DRAIN):
                return False
        return True


TestWhoMayPass = Worker.TestCase
TestWhoMayPass.settings = settings(
    max_examples=LONGER or HISTORIES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=not LONGER,
    database=None,
    # To shrink a history is to wait again and again for what does not come.
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
