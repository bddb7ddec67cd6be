"""What a worker does about its lease, where it is not the enforcer's own business: timers, warnings, faults."""

import asyncio
import logging

import pytest
from haltwire.wire.messages import Renewed, Settings, Snapshot
from haltwire_proxy import lease as lease_module
from haltwire_proxy.clock import boottime, utc_now
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.staleness import DEFAULT, Phase, Rule
from support.scripted import until
from support.world import TOKENS


def leased(rule=DEFAULT, lease_ms=1000, clock=boottime):
    enforcer = Enforcer(clock, utc_now, rule=rule)
    enforcer.apply(Snapshot("e", 1, (), (), TOKENS, Settings(1000)))
    enforcer.renewed(Renewed(clock(), "e", 1, lease_ms))
    return enforcer


async def test_time_alone_ends_the_lease_and_then_the_hold():
    enforcer = leased(Rule(hold_for_s=0.3), lease_ms=100)
    phases = []
    look = enforcer.lease.look

    def noted():
        phase = look()
        if phases[-1:] != [phase]:
            phases.append(phase)
        return phase

    enforcer.lease.look = noted
    enforcer.lease.watch()
    await until(lambda: phases[-1] is Phase.REFUSING)
    assert phases == [Phase.FRESH, Phase.HOLDING, Phase.REFUSING]
    assert enforcer.tallies.totals["leases_lost"] == 1
    enforcer.renewed(Renewed(boottime(), "e", 1, 60_000))
    enforcer.lease.watch()
    assert enforcer.may_pass()


async def test_a_timer_that_fires_early_by_the_leases_clock_is_set_again():
    """The lease's clock may be behind the timer's only by what the machine does not count: then nothing ends."""
    clock = [100.0]
    enforcer = leased(lease_ms=50, clock=lambda: clock[0])
    enforcer.lease.watch()
    await asyncio.sleep(0.2)
    assert enforcer.may_pass()
    clock[0] += 1.0
    await until(lambda: enforcer.tallies.totals)
    assert not enforcer.may_pass()


@pytest.mark.parametrize("lasts", [False, True])
async def test_a_proxy_that_keeps_says_so_again_and_again(monkeypatch, caplog, lasts):
    monkeypatch.setattr(lease_module, "WARN_EVERY_S", 0.3 if lasts else 60.0)
    enforcer = leased(Rule("keep"), lease_ms=10)
    enforcer.lease.watch()

    def said():
        return [record for record in caplog.records if "UNPROTECTED" in record.message]

    await until(lambda: len(said()) == (2 if lasts else 1))
    if not lasts:
        await asyncio.sleep(0.6)
        assert len(said()) == 1
    assert enforcer.may_pass()


async def test_the_time_without_a_lease_is_counted_while_it_goes_on():
    enforcer = leased(lease_ms=10)
    enforcer.lease.watch()
    await until(lambda: enforcer.tallies.totals.get("stale_ms", 0) > 400)


def test_the_time_before_the_first_lease_is_none_that_was_lost():
    assert leased().tallies.totals == {}


def test_a_worker_that_cannot_stop_what_lives_ends(monkeypatch, caplog):
    """Nothing else would: what is not frozen would go on. With the process all its sockets are reset."""
    clock, ended = [100.0], []
    enforcer = leased(clock=lambda: clock[0])
    enforcer.give_up = lambda: ended.append(1)

    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(enforcer.connections, "freeze_stale", fail)
    clock[0] += 1.0
    assert not enforcer.may_pass()
    assert ended == [1]
    assert "could not be carried out" in caplog.text


def test_each_change_is_said_once(caplog):
    clock = [100.0]
    enforcer = leased(clock=lambda: clock[0])
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        clock[0] += 1.0
        enforcer.may_pass()
    enforcer.renewed(Renewed(clock[0], "e", 1, 1000))
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("no word from the control server: nothing passes")
    assert said[1].startswith("there is a lease again")


def test_a_worker_that_stood_still_does_not_say_that_the_control_server_did(caplog):
    clock = [100.0]
    enforcer = leased(clock=lambda: clock[0])
    caplog.set_level(logging.WARNING)
    clock[0] += 5.0
    assert not enforcer.may_pass()
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("this worker was stopped, starved or asleep, and its lease ran out")
