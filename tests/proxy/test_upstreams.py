"""Opening an upstream: asked before and after the dial, waiting while it is held, begun anew after a hold."""

import asyncio

import pytest
from haltwire.wire.refusals import Refusal
from haltwire_proxy import destinations
from support.client import tunnel
from support.scripted import QUIET_S, Stage, until
from support.world import INTERCEPTED

READER = ("acme.prod.reader~i-1", INTERCEPTED)
AGENT = "agent://acme/prod/reader"


@pytest.fixture
async def stage():
    async with Stage() as running:
        yield running


class Dials:
    """Every dial of a world's, each done by the next of the given steps; those beyond are real."""

    def __init__(self, world, monkeypatch, *steps):
        self._dial, self._steps, self.made = world.dialer.dial, list(steps), []
        monkeypatch.setattr(world.dialer, "dial", self)

    async def __call__(self, *to):
        self.made.append(to)
        step = self._steps.pop(0) if self._steps else self._dial
        return await step(*to)


def connected(monkeypatch, first):
    """Have this done as soon as an upstream has been connected, the first time; what it gave."""
    made, given = destinations._Judge.connection_made, []

    def connection_made(judge, transport):
        made(judge, transport)
        if not given:
            given.append(first())

    monkeypatch.setattr(destinations._Judge, "connection_made", connection_made)
    return given


async def asked(world, stage):
    wire = await tunnel(world.port, stage.host, *READER)
    await wire.request("GET", "/x", f"Host: {stage.host}", read=False)
    return wire


async def silent(wire):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), QUIET_S)


async def test_a_dial_in_progress_is_dropped_and_redone(world, stage, monkeypatch):
    async def hang(*_):
        await asyncio.Event().wait()

    dials = Dials(world, monkeypatch, hang, hang)
    wire = await asked(world, stage)
    for turn in (1, 2):
        await until(lambda turn=turn: len(dials.made) == turn)
        hold = world.hold(AGENT)
        await silent(wire)
        assert len(dials.made) == turn
        world.resume(hold.ack.kills[0])
    await (await stage.asked()).answer()
    assert (await wire.answer()).status == 200
    assert len(dials.made) == 3


async def test_a_hold_that_comes_with_the_last_step_of_a_dial_is_kept(world, stage, monkeypatch):
    holds = connected(monkeypatch, lambda: world.hold(AGENT))
    wire = await asked(world, stage)
    await silent(wire)
    played = await stage.connection()
    await until(lambda: played.end)
    assert played.received == b""
    world.resume(holds[0].ack.kills[0])
    await (await stage.asked(2)).answer()
    assert (await wire.answer()).status == 200


async def test_a_hold_that_has_gone_again_when_the_dial_ends_costs_one_dial(
    world, stage, monkeypatch
):
    async def hold_and_resume(*to):
        world.resume(world.hold(AGENT).ack.kills[0])
        return await dials._dial(*to)

    dials = Dials(world, monkeypatch, hold_and_resume)
    wire = await asked(world, stage)
    await (await stage.asked()).answer()
    assert (await wire.answer()).status == 200
    assert len(dials.made) == 2


async def test_a_kill_that_comes_with_the_last_step_of_a_dial_wins(world, stage, monkeypatch):
    connected(monkeypatch, lambda: world.kill(AGENT))
    wire = await asked(world, stage)
    assert await wire.ended() == b""
    played = await stage.connection()
    await until(lambda: played.end)
    assert played.received == b""


async def test_a_drain_that_comes_during_the_dial_is_told(world, stage, monkeypatch):
    async def drain_it(*to):
        world.drain(AGENT)
        return await dials._dial(*to)

    dials = Dials(world, monkeypatch, drain_it)
    wire = await asked(world, stage)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")
    played = await stage.connection()
    await until(lambda: played.end)
    assert played.received == b""


async def test_why_there_is_none_is_told_after_the_hold(world, stage, monkeypatch):
    async def hold_it(*_):
        world.hold(AGENT)
        await asyncio.Event().wait()

    async def refused(*_):
        return Refusal("upstream_unreachable", "nobody there")

    dials = Dials(world, monkeypatch, hold_it, refused)
    wire = await asked(world, stage)
    await silent(wire)
    (kill_id,) = (order.kill_id for order in world.enforcer.replica.view.orders)
    world.resume(kill_id)
    answer = await wire.answer()
    assert (answer.status, answer.json()["message"]) == (502, "nobody there")
    assert len(dials.made) == 2


async def test_a_client_that_goes_while_its_upstream_waits_takes_the_dial_along(
    world, stage, monkeypatch
):
    async def hang(*_):
        await asyncio.Event().wait()

    dials = Dials(world, monkeypatch, hang)
    wire = await asked(world, stage)
    await until(lambda: dials.made)
    hold = world.hold(AGENT)
    await asyncio.sleep(0.05)
    wire.close()

    def looked():
        world.enforcer.connections.look_for_lost()
        return not world.enforcer.connections.count and not world.inspector.handlers

    await until(looked)
    world.resume(hold.ack.kills[0])
    await asyncio.sleep(QUIET_S)
    assert len(dials.made) == 1
