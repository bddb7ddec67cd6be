"""Orders into cuts, questions into decisions, in one step."""

import asyncio
import os
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.messages import Delta, Renewed, Settings, Snapshot
from haltwire.wire.names import AgentRef
from haltwire_proxy.enforcer import Enforcer, HeldUpError
from haltwire_proxy.gate import Held
from haltwire_proxy.identity import Identity
from haltwire_proxy.staleness import DEFAULT, Rule
from support.world import SECRET, TOKENS, kill

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)
MAILER = AgentRef(("acme", "prod", "mailer"))
ME = Identity(MAILER, "i-1", TOKENS[0].token_id, None, True, SECRET)


class Client:
    written = 0
    aborted = frozen = False

    def fileno(self):
        return -1

    def unwritten(self):
        return 0

    def abort(self):
        self.aborted = True

    def freeze(self):
        self.frozen = True

    def thaw(self):
        self.frozen = False


class Upstream(Client):
    def fileno(self):
        return NOWHERE


NOWHERE = os.open(os.devnull, os.O_RDONLY)
"A descriptor that is open, and no socket."


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def enforcer(clock):
    return leased(clock)


def leased(clock, rule=DEFAULT):
    made = Enforcer(lambda: clock[0], lambda: NOW, rule=rule)
    made.apply(Snapshot("e", 1, (), (), TOKENS, Settings(1000)))
    made.renewed(Renewed(clock[0], "e", 1, 1000))
    return made


def live(enforcer, identity=ME, *, tunnelled=True):
    """A client of a connection with an upstream, or of one that has asked for nothing yet."""
    client = Client()
    kind = "tunnel" if tunnelled else "inspected"
    connection = enforcer.connections.register(identity, kind, "a.test", client)
    if tunnelled:
        connection.upstreams.append(Upstream())
    return client


def order(mode, revision=2, selector="agent://acme/prod/mailer", **more):
    return kill(selector, revision, mode=mode, **more)


@pytest.mark.parametrize("on_stale", ["hold", "refuse", "keep"])
def test_before_the_first_snapshot_nothing_is_known_and_nothing_passes(clock, on_stale):
    blank = Enforcer(lambda: clock[0], lambda: NOW, rule=Rule(on_stale))
    assert blank.tokens is None
    assert not blank.may_pass()
    assert (blank.decide(ME) == Held(None)) is (on_stale != "refuse")
    clock[0] += 10.0
    assert not blank.may_pass()
    assert blank.decide(ME).code == "enforcement_unknown"


def test_a_kill_cuts_then_acknowledges_then_reports(enforcer):
    client = live(enforcer)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert client.aborted
    assert (enforced.ack.revision, enforced.ack.connections_cut) == (2, 1)
    (report,) = enforced.reports()
    assert report.kill_id == enforced.ack.kills[0]
    assert [i.instance for i in report.instances] == ["i-1"]
    assert enforcer.decide(ME).code == "agent_killed"


def test_a_kill_of_somebody_else_cuts_nothing_here(enforcer):
    client = live(enforcer)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/other"),)))
    assert not client.aborted
    assert (enforced.ack.connections_cut, enforced.reports()[0].instances) == (0, ())
    assert enforcer.decide(ME) is None


def test_an_old_message_is_ignored_and_not_acknowledged(enforcer):
    enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert enforcer.apply(Delta(0, 1, lifted=("K000000000002",))) is None
    assert enforcer.decide(ME).code == "agent_killed"


def test_what_was_issued_and_lifted_unseen_still_severs(enforcer):
    client = live(enforcer)
    missed = kill("agent://acme/prod/mailer", revision=2)
    enforced = enforcer.apply(Snapshot("e", 3, (), (missed,), TOKENS, Settings(1000)))
    assert client.aborted
    assert enforced.ack.kills == ()
    enforcer.renewed(Renewed(100.0, "e", 3, 1000))
    assert enforcer.decide(ME) is None


def test_another_epoch_severs_everything(enforcer):
    client = live(enforcer)
    enforcer.apply(Snapshot("other", 1, (), (), TOKENS, Settings(1000)))
    assert client.aborted


def test_a_revoked_token_severs_who_used_it(enforcer):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, revoked=(TOKENS[0].token_id,)))
    assert client.aborted


def test_the_end_of_the_lease_freezes_at_the_next_write_and_later_cuts(enforcer, clock):
    client = live(enforcer)
    clock[0] += 0.99
    assert enforcer.may_pass()
    assert not client.frozen
    clock[0] += 0.02
    assert not enforcer.may_pass()
    assert client.frozen
    assert enforcer.decide(ME) == Held(None)
    clock[0] += 9.98
    assert not enforcer.may_pass()
    assert not client.aborted
    clock[0] += 0.02
    assert not enforcer.may_pass()
    assert client.aborted
    assert enforcer.decide(ME).code == "enforcement_unknown"


def test_a_lease_in_time_lets_go_on_and_one_that_is_too_late_does_not_bring_back(enforcer, clock):
    client = live(enforcer)
    clock[0] += 5.0
    enforcer.renewed(Renewed(clock[0], "e", 1, 1000))
    assert not client.frozen
    clock[0] += 11.0
    enforcer.renewed(Renewed(clock[0], "e", 1, 1000))
    assert client.aborted
    assert enforcer.decide(ME) is None


def test_an_answer_to_what_was_asked_before_a_stall_gives_nothing(enforcer, clock):
    """Whoever stood still for longer than the lease has none, whatever waits in its socket."""
    client = live(enforcer)
    asked_at = clock[0] + 0.2
    clock[0] += 5.0
    enforcer.renewed(Renewed(asked_at, "e", 1, 1000))
    assert client.frozen
    assert enforcer.decide(ME) == Held(None)


def test_a_renewal_behind_a_delta_that_is_not_applied_yet_lets_nothing_go_on(enforcer, clock):
    """The head revision that it names is what has to be in force here; then the order has cut."""
    client = live(enforcer)
    clock[0] += 5.0
    enforcer.renewed(Renewed(clock[0], "e", 2, 1000))
    assert client.frozen
    enforcer.apply(Delta(1, 2, kills=(order("cut"),)))
    assert client.aborted
    enforcer.renewed(Renewed(clock[0], "e", 2, 1000))
    assert enforcer.decide(ME).code == "agent_killed"


def test_a_revision_that_is_not_applied_here_brings_no_lease(enforcer, clock):
    clock[0] += 0.9
    enforcer.renewed(Renewed(clock[0], "e", 2, 1000))
    clock[0] += 0.2
    assert not enforcer.may_pass()


def test_who_cannot_be_told_to_be_spared_is_cut(enforcer, monkeypatch, caplog):
    """The change is in force and acknowledged; a fault must not leave live what it stops."""
    client = live(enforcer)

    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(enforcer, "_judge", fail)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert client.aborted
    assert enforced.ack.connections_cut == 1


def test_a_report_that_fails_does_not_hold_up_the_acknowledgement(enforcer, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(enforcer.reporting, "take", fail)
    enforced = enforcer.apply(Delta(1, 2, kills=(kill("agent://acme/prod/mailer"),)))
    assert enforced.ack.kills == ("K000000000002",)
    assert enforced.reports() == []


def test_a_hold_freezes_and_its_resume_thaws(enforcer):
    client = live(enforcer)
    held = order("hold")
    enforced = enforcer.apply(Delta(1, 2, kills=(held,)))
    assert client.frozen
    assert not client.aborted
    assert enforced.ack.connections_cut == 0
    (report,) = enforced.reports()
    (instance,) = report.instances
    assert (instance.connections_held, instance.connections_live) == (1, 0)
    assert isinstance(enforcer.decide(ME), Held)
    enforced = enforcer.apply(Delta(2, 3, lifted=(held.kill_id,)))
    assert not client.frozen
    (report,) = enforced.reports()
    (instance,) = report.instances
    assert (instance.connections_held, instance.connections_live) == (0, 1)
    assert enforcer.decide(ME) is None


def test_one_of_two_holds_lifted_lets_nothing_go_on(enforcer):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    enforcer.apply(Delta(2, 3, kills=(order("hold", 3, "agent://**"),)))
    enforcer.apply(Delta(3, 4, lifted=("K000000000002",)))
    assert client.frozen


def test_a_drain_lets_live_ones_be_until_its_grace_is_over(enforcer, clock):
    client = live(enforcer)
    enforced = enforcer.apply(Delta(1, 2, kills=(order("drain", grace_s=0.5),)))
    assert not client.aborted
    assert enforcer.decide(ME).code == "agent_killed"
    (report,) = enforced.reports()
    assert report.live == 1
    assert enforcer.next_drain_end() == pytest.approx(0.5)
    clock[0] += 0.4
    enforcer.end_drains()
    assert not client.aborted
    clock[0] += 0.1
    enforcer.end_drains()
    assert client.aborted
    (report,) = enforcer.changed_reports()
    assert (report.live, report.instances[0].connections_cut) == (0, 1)
    assert enforcer.changed_reports() == []


def test_a_drain_is_told_again_as_its_connections_end(enforcer):
    clients = [live(enforcer), live(enforcer)]
    enforced = enforcer.apply(Delta(1, 2, kills=(order("drain", grace_s=30.0),)))
    assert [report.live for report in enforced.reports()] == [2]
    assert enforcer.changed_reports() == []
    for left, client in ((1, clients[0]), (0, clients[1])):
        (connection,) = enforcer.connections.matching(
            lambda _: True, lambda one, client=client: one.client is client
        )
        enforcer.connections.forget(connection)
        (report,) = enforcer.changed_reports()
        assert report.live == left
    assert report.instances[0].connections_cut == 0


def test_a_hold_over_a_drain_freezes_and_its_end_lets_the_rest_finish(enforcer):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order("drain", grace_s=30.0),)))
    enforcer.apply(Delta(2, 3, kills=(order("hold", 3, "agent://**"),)))
    assert client.frozen
    enforcer.apply(Delta(3, 4, lifted=("K000000000003",)))
    assert not client.frozen
    assert not client.aborted


def test_a_drain_waits_for_what_a_hold_had_frozen_before_it_came(enforcer):
    live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    enforced = enforcer.apply(Delta(2, 3, kills=(order("drain", 3, grace_s=30.0),)))
    (report,) = enforced.reports()
    assert (report.live, report.instances[0].connections_held) == (1, 1)


@pytest.mark.parametrize("before", ["hold", "drain"])
def test_a_cut_wins(enforcer, before):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order(before, grace_s=30.0),)))
    enforced = enforcer.apply(Delta(2, 3, kills=(order("cut", 2),)))
    assert client.aborted
    assert enforced.ack.connections_cut == 1


@pytest.mark.parametrize("mode", ["hold", "drain", "cut"])
def test_an_order_that_comes_meanwhile_does_what_it_says(enforcer, clock, mode):
    """What it cuts is cut before anything goes on, and is reported as cut, not as held."""
    client = live(enforcer)
    clock[0] += 5.0
    enforced = enforcer.apply(Delta(1, 2, kills=(order(mode, grace_s=30.0),)))
    assert client.frozen
    (report,) = enforced.reports()
    (instance,) = report.instances
    assert enforced.ack.connections_cut == instance.connections_cut == (mode == "cut")
    assert instance.connections_held == (mode == "hold")
    assert client.aborted is (mode == "cut")
    enforcer.renewed(Renewed(clock[0], "e", 2, 1000))
    assert client.frozen is (mode != "drain")


def test_an_order_that_is_lifted_meanwhile_lets_nothing_go_on_before_the_lease(enforcer, clock):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    clock[0] += 5.0
    enforced = enforcer.apply(Delta(2, 3, lifted=("K000000000002",)))
    assert client.frozen
    (report,) = enforced.reports()
    assert (report.instances[0].connections_held, report.instances[0].connections_live) == (0, 1)
    enforcer.renewed(Renewed(clock[0], "e", 3, 1000))
    assert not client.frozen


def test_a_drain_whose_grace_is_over_meanwhile_cuts_before_the_rest_goes_on(enforcer, clock):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order("drain", grace_s=2.0),)))
    clock[0] += 5.0
    enforcer.lease.look()
    enforcer.renewed(Renewed(clock[0], "e", 2, 1000))
    assert client.aborted
    (report,) = enforcer.changed_reports()
    assert (report.live, report.instances[0].connections_cut) == (0, 1)


def test_what_is_no_longer_allowed_when_the_lease_is_back_does_not_go_on(enforcer, clock):
    """Each change has been applied when it came; this is asked once more, before a byte moves."""
    client = live(enforcer)
    clock[0] += 5.0
    enforcer.lease.look()
    before = enforcer.replica.view
    enforcer.replica.view = replace(before, token_ids=frozenset())
    enforcer.renewed(Renewed(clock[0], "e", 1, 1000))
    assert client.aborted


@pytest.mark.parametrize("mode", ["hold", "drain"])
def test_what_the_end_of_the_lease_cuts_is_told_by_holds_and_drains(enforcer, clock, mode):
    clients = [live(enforcer), live(enforcer, tunnelled=False)]
    enforcer.apply(Delta(1, 2, kills=(order(mode, grace_s=30.0),))).reports()
    clock[0] += 1.0
    enforcer.lease.look()
    clock[0] += 10.0
    enforcer.lease.look()
    assert [client.aborted for client in clients] == [True, False]
    (report,) = enforcer.changed_reports()
    (instance,) = report.instances
    assert (instance.connections_cut, instance.connections_held) == (1, 0)
    assert (instance.connections_live, instance.lost_while_held) == (0, 0)


def test_a_proxy_that_is_to_refuse_freezes_what_lives_all_the_same(clock):
    enforcer = leased(clock, Rule("refuse"))
    client = live(enforcer)
    clock[0] += 1.5
    assert enforcer.decide(ME).code == "enforcement_unknown"
    assert client.frozen
    enforcer.renewed(Renewed(clock[0], "e", 1, 1000))
    assert not client.frozen


def test_a_proxy_that_is_to_keep_goes_on_under_the_orders_that_it_knows(clock):
    enforcer = leased(clock, Rule("keep"))
    client = live(enforcer)
    clock[0] += 1000.0
    assert enforcer.may_pass()
    assert enforcer.decide(ME) is None
    assert not client.frozen
    assert enforcer.tallies.totals == {"leases_lost": 1, "leases_overrun": 1}
    enforcer.apply(Delta(1, 2, kills=(order("cut"),)))
    assert client.aborted
    assert enforcer.decide(ME).code == "agent_killed"


def test_the_time_without_a_lease_is_counted(enforcer, clock):
    clock[0] += 1.5
    enforcer.lease.look()
    clock[0] += 2.0
    enforcer.renewed(Renewed(clock[0], "e", 1, 1000))
    assert enforcer.tallies.totals == {"leases_lost": 1, "stale_ms": 2500}


def test_what_goes_on_is_told_again_after_a_snapshot(enforcer):
    live(enforcer)
    held = order("hold")
    enforcer.apply(Delta(1, 2, kills=(held,))).reports()
    assert enforcer.changed_reports() == []
    enforcer.apply(Snapshot("e", 3, (held,), (), TOKENS, Settings(1000)))
    assert [report.kill_id for report in enforcer.changed_reports()] == [held.kill_id]


async def test_an_admission_waits_for_the_end_of_the_hold(enforcer):
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    connection = enforcer.connections.register(ME, "inspected", "a.test", Client())
    asking = asyncio.get_running_loop().create_task(enforcer.admission(connection))
    while not connection.waiters:
        await asyncio.sleep(0)
    enforcer.apply(Delta(2, 3, kills=(order("hold", 3, "agent://**"),)))
    enforcer.apply(Delta(3, 4, lifted=("K000000000002",)))
    await asyncio.sleep(0)
    assert not asking.done()
    enforcer.apply(Delta(4, 5, lifted=("K000000000003",)))
    assert await asking is None
    assert not connection.waiters


async def test_an_admission_that_is_given_up_is_forgotten(enforcer):
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    connection = enforcer.connections.register(ME, "inspected", "a.test", Client())
    asking = asyncio.get_running_loop().create_task(enforcer.admission(connection))
    while not connection.waiters:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert not connection.waiters


async def test_a_hold_interrupts_what_is_being_opened_and_says_so(enforcer):
    connection = enforcer.connections.register(ME, "inspected", "a.test", Client())

    async def opening():
        with pytest.raises(HeldUpError):
            await enforcer.undisturbed(connection, asyncio.Event().wait())
        return "begins again"

    task = asyncio.get_running_loop().create_task(opening())
    while not connection.dials:
        await asyncio.sleep(0)
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    assert await task == "begins again"
    assert not connection.dials


async def test_who_ends_the_task_as_well_gets_his_will(enforcer):
    connection = enforcer.connections.register(ME, "inspected", "a.test", Client())
    task = asyncio.get_running_loop().create_task(
        enforcer.undisturbed(connection, asyncio.Event().wait())
    )
    while not connection.dials:
        await asyncio.sleep(0)
    task.cancel()
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    await asyncio.wait([task])
    assert task.cancelled()


async def test_what_is_opened_in_time_is_given_back(enforcer):
    connection = enforcer.connections.register(ME, "inspected", "a.test", Client())
    assert await enforcer.undisturbed(connection, asyncio.sleep(0, "opened")) == "opened"
    assert not connection.dials


async def test_a_worker_that_cannot_carry_out_an_order_ends(world, monkeypatch, caplog):
    """The view is in force by then: it would be called applied, with connections that it never cut."""
    ended = []
    world.enforcer.give_up = lambda: ended.append(1)

    def fail(*_):
        raise RuntimeError("injected")

    with monkeypatch.context() as broken:
        broken.setattr(world.enforcer.connections, "cut", fail)
        with pytest.raises(AssertionError):  # no acknowledgement
            world.kill("agent://acme/prod/mailer")
    assert ended == [1]
    assert "could not be carried out" in caplog.text
