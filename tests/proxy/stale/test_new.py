"""Beyond the lease, what comes in: it waits without any contact, and is let through or told why not."""

import asyncio

import pytest
from haltwire_proxy.staleness import Rule
from support.client import Wire
from support.held import READER, opened
from support.scripted import QUIET_S, until
from support.world import SECRET, World, basic

AUTH = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
READER_AUTH = f"Proxy-Authorization: {basic(*READER)}"
KINDS = pytest.mark.parametrize("kind", ["tunnel", "plain", "inspected"])


@pytest.fixture
async def refusing(data_dir, authority):
    rule = Rule("refuse")
    async with World(data_dir, authority.ca_file, "http://127.0.0.1:1", rule=rule) as running:
        yield running


@pytest.fixture
async def blank(data_dir, authority):
    """A worker that has never heard of a control server."""
    world = World(data_dir, authority.ca_file, "http://127.0.0.1:1")
    world.granting = False
    async with world as running:
        yield running


class Asking:
    """One that asks while the lease is over."""

    def __init__(self, world, kind, stage, plain_stage):
        self.world, self.kind = world, kind
        self.stage = stage if kind == "inspected" else plain_stage

    async def begin(self):
        if self.kind == "inspected":
            self.wire = await opened(self.world, self.stage)
            await self.wire.request("GET", "/x", f"Host: {self.stage.host}", read=False)
            return
        self.wire = await Wire.open(self.world.port)
        host = self.stage.host
        method, target = ("CONNECT", host) if self.kind == "tunnel" else ("GET", f"http://{host}/x")
        await self.wire.request(method, target, f"Host: {host}", AUTH, read=False)

    async def waits(self):
        connections = self.world.enforcer.connections
        await until(lambda: [one for one in connections.everything() if one.waiters])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.wire.reader.read(1), QUIET_S)
        assert self.stage.played == []

    async def is_let_through(self):
        if self.kind != "tunnel":
            await (await self.stage.asked()).answer()
        answer = await self.wire.answer(head=self.kind == "tunnel")
        assert answer.status == 200
        await self.stage.connection()

    async def is_refused(self):
        answer = await self.wire.answer()
        assert (answer.status, answer.json()["error"]) == (503, "enforcement_unknown")
        assert answer.headers["retry-after"]
        assert await self.wire.ended() == b""
        assert self.stage.played == []


@pytest.fixture
def asking(world, stage, plain_stage):
    return lambda kind: Asking(world, kind, stage, plain_stage)


@KINDS
async def test_it_waits_and_is_let_through_when_the_lease_is_back(world, asking, kind):
    world.go_stale()
    one = asking(kind)
    await one.begin()
    await one.waits()
    assert world.enforcer.connections.held == {}
    world.renew()
    await one.is_let_through()


@KINDS
async def test_it_waits_no_longer_than_the_hold_and_is_told(world, asking, kind):
    world.go_stale()
    one = asking(kind)
    await one.begin()
    await one.waits()
    world.slept += 10.0
    world.enforcer.lease.watch()
    await one.is_refused()
    assert world.enforcer.tallies.totals["refused.enforcement_unknown"] == 1


@pytest.mark.parametrize("kind", ["tunnel", "plain"])
async def test_after_the_hold_it_is_refused_at_once_and_with_the_lease_let_through(
    world, asking, kind
):
    world.lose_lease()
    one = asking(kind)
    await one.begin()
    await one.is_refused()
    world.renew()
    another = asking(kind)
    await another.begin()
    await another.is_let_through()


@pytest.mark.parametrize("kind", ["tunnel", "plain"])
async def test_a_proxy_that_is_to_refuse_does_so_at_once(refusing, stage, plain_stage, kind):
    refusing.go_stale()
    one = Asking(refusing, kind, stage, plain_stage)
    await one.begin()
    await one.is_refused()


async def test_a_proxy_that_is_to_refuse_does_so_inside_tls_too(refusing, stage, plain_stage):
    wire = await opened(refusing, stage)
    refusing.go_stale()
    answer = await wire.request("GET", "/x", f"Host: {stage.host}")
    assert (answer.status, answer.json()["error"]) == (503, "enforcement_unknown")
    assert stage.played == []


@KINDS
async def test_an_order_that_comes_meanwhile_is_what_it_hears(world, asking, kind):
    """Judged anew, before anything of it goes on."""
    world.go_stale()
    one = asking(kind)
    await one.begin()
    await one.waits()
    world.kill("agent://acme/prod/*")
    assert await one.wire.ended() == b""
    world.renew()
    assert one.stage.played == []


async def test_a_dial_is_interrupted_and_begun_anew(world, asking, monkeypatch):
    dial, dials = world.dialer.dial, []

    async def first_hangs(*to):
        dials.append(to[0])
        if len(dials) == 1:
            await asyncio.Event().wait()
        return await dial(*to)

    monkeypatch.setattr(world.dialer, "dial", first_hangs)
    one = asking("tunnel")
    await one.begin()
    await until(lambda: dials)
    world.go_stale()
    await one.waits()
    assert len(dials) == 1
    world.renew()
    await one.is_let_through()
    assert len(dials) == 2


@pytest.mark.parametrize("kind", ["tunnel", "inspected"])
async def test_who_was_dialling_when_the_process_fell_asleep_is_told(
    world, asking, monkeypatch, kind
):
    dialling = asyncio.Event()

    async def hangs(*_):
        dialling.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.dialer, "dial", hangs)
    one = asking(kind)
    await one.begin()
    await asyncio.wait_for(dialling.wait(), 5)
    world.lose_lease()
    world.enforcer.lease.watch()
    await one.is_refused()


async def test_a_dial_that_is_done_when_the_lease_has_ended_is_not_used(world, asking, monkeypatch):
    """Without the decision in `Door._join` this failed: nothing stood still."""
    dial, dials = world.dialer.dial, []

    async def ends_meanwhile(*to):
        dials.append(to)
        if len(dials) == 1:
            world.go_stale(noticed=False)
        return await dial(*to)

    monkeypatch.setattr(world.dialer, "dial", ends_meanwhile)
    one = asking("tunnel")
    await one.begin()
    await until(lambda: one.world.enforcer.connections.stale)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.wire.reader.read(1), QUIET_S)
    world.renew()
    assert (await one.wire.answer(head=True)).status == 200


async def test_a_client_that_gives_up_waiting_is_forgotten(world, asking):
    world.go_stale()
    one = asking("tunnel")
    await one.begin()
    await one.waits()
    one.wire.close()
    await until(lambda: not world.enforcer.connections.count)
    assert world.enforcer.connections.stale == {}


@pytest.mark.parametrize("noticed", [True, False])
async def test_the_agent_api_answers_on_a_connection_that_is_kept(world, plain_stage, noticed):
    """Until now its answers were forwarding writes, which a lost lease stopped: the agent heard nothing."""
    wire = await Wire.open(world.port)
    fields = (f"Host: {plain_stage.host}", AUTH)
    await wire.request("GET", f"http://{plain_stage.host}/x", *fields, read=False)
    await (await plain_stage.asked()).answer()
    await wire.answer()
    world.go_stale()
    if not noticed:
        world.slept += 11.0
    answer = await wire.request(
        "GET", "http://haltwire.internal/ca.pem", "Host: haltwire.internal", AUTH
    )
    assert (answer.status, answer.body) == (200, world.ca_file.read_bytes())


# Nothing has ever been heard of a control server: whose a secret is cannot be known.


@KINDS
async def test_before_the_first_word_it_waits_and_is_then_who_it_is(
    blank, stage, plain_stage, kind
):
    wire = await Wire.open(blank.port)
    one = Asking(blank, kind, stage, plain_stage)
    host, auth = one.stage.host, READER_AUTH if kind == "inspected" else AUTH
    method, target = ("GET", f"http://{host}/x") if kind == "plain" else ("CONNECT", host)
    await wire.request(method, target, f"Host: {host}", auth, read=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), QUIET_S)
    blank.snapshot()
    blank.renew()
    if kind == "plain":
        await (await one.stage.asked()).answer()
    assert (await wire.answer(head=kind != "plain")).status == 200


async def test_before_the_first_word_credentials_are_judged_by_nothing_and_then_refused(blank):
    wire = await Wire.open(blank.port)
    await wire.request("CONNECT", "a.test:443", "Host: a.test:443", read=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), QUIET_S)
    blank.snapshot()
    blank.renew()
    assert (await wire.answer()).status == 407
    # A client that waits for the challenge answers it on this connection.
    answer = await wire.request("CONNECT", "127.0.0.1:1", "Host: 127.0.0.1:1", AUTH)
    assert answer.status == 502


async def test_without_a_first_word_it_is_told_when_the_hold_is_over_and_then_at_once(blank):
    wire = await Wire.open(blank.port)
    await wire.request("CONNECT", "a.test:443", AUTH, read=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), QUIET_S)
    blank.slept += 10.0
    blank.enforcer.lease.watch()
    for one in (wire, await Wire.open(blank.port)):
        if one is not wire:
            await one.request("CONNECT", "a.test:443", AUTH, read=False)
        answer = await one.answer()
        assert (answer.status, answer.json()["error"]) == (503, "enforcement_unknown")
        assert answer.headers["retry-after"]


async def test_who_leaves_before_the_first_word_leaves_nothing_behind(blank):
    wire = await Wire.open(blank.port)
    await wire.request("CONNECT", "a.test:443", AUTH, read=False)
    await until(lambda: blank.enforcer.lease._waiting)
    wire.close()
    await until(lambda: not blank.enforcer.lease._waiting)
    await until(lambda: not blank.services.doors)


async def test_who_waits_for_the_first_word_makes_way_like_any_stranger(blank, monkeypatch):
    monkeypatch.setattr("haltwire_proxy.lobby.SPARED_S", 0.0)
    blank.limit(address_waiting=1)
    first = await Wire.open(blank.port)
    await first.request("CONNECT", "a.test:443", AUTH, read=False)
    await until(lambda: blank.enforcer.lease._waiting)
    second = await Wire.open(blank.port)
    await second.request("CONNECT", "a.test:443", AUTH, read=False)
    assert (await first.answer()).status == 429
    blank.snapshot()
    blank.renew()
    await first.ended()
    second.close()
