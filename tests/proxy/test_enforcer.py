"""Orders into cuts, questions into decisions, in one step."""

import asyncio
from datetime import datetime, timezone

import pytest
from haltwire.wire.messages import Delta, Renewed, Settings, Snapshot
from haltwire.wire.names import AgentRef
from haltwire_proxy.enforcer import Enforcer, HeldUpError
from haltwire_proxy.gate import Held
from haltwire_proxy.identity import Identity
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


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def enforcer(clock):
    made = Enforcer(lambda: clock[0], lambda: NOW)
    made.apply(Snapshot("e", 1, (), (), TOKENS, Settings(1000)))
    made.renewed(Renewed(clock[0], "e", 1, 1000))
    return made


def live(enforcer, identity=ME):
    client = Client()
    enforcer.connections.register(identity, "tunnel", "a.test", client)
    return client


def order(mode, revision=2, selector="agent://acme/prod/mailer", **more):
    return kill(selector, revision, mode=mode, **more)


def test_before_the_first_snapshot_nothing_is_known_and_nothing_passes(clock):
    blank = Enforcer(lambda: clock[0], lambda: NOW)
    assert blank.tokens is None
    refusal = blank.decide(ME)
    assert refusal is not None
    assert refusal.code == "enforcement_unknown"
    assert not blank.may_pass()


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


def test_the_end_of_the_lease_cuts_at_the_next_write(enforcer, clock):
    client = live(enforcer)
    clock[0] += 0.99
    assert enforcer.may_pass()
    assert not client.aborted
    clock[0] += 0.02
    assert not enforcer.may_pass()
    assert client.aborted
    assert enforcer.decide(ME).code == "enforcement_unknown"


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


def test_the_lease_comes_before_a_hold(enforcer, clock):
    client = live(enforcer)
    enforcer.apply(Delta(1, 2, kills=(order("hold"),)))
    clock[0] += 1.1
    assert not enforcer.may_pass()
    assert client.aborted
    assert enforcer.decide(ME).code == "enforcement_unknown"


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
