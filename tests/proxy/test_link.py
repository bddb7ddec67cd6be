"""The link against a control server that says what a test wants."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from haltwire.wire import messages
from haltwire.wire.messages import (
    Ack,
    Bye,
    Delta,
    Hello,
    Renew,
    Renewed,
    Report,
    Settings,
    Snapshot,
    Usage,
)
from haltwire_proxy import link as link_module
from haltwire_proxy.clock import boottime, utc_now
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.identity import Identity
from haltwire_proxy.link import Link
from haltwire_proxy.residue import agent_residual_max
from support.scripted import until
from support.world import TOKENS, kill

LEASE_MS = 400


class Control:
    """Accepts links; grants leases while `granting`; keeps what it hears."""

    def __init__(self):
        self.heard = []
        self.keys = []
        self.granting = True
        self.revision = 1
        self.orders = ()
        self.connected = asyncio.Event()
        self.links = []
        self._changed = asyncio.Event()

    async def serve(self, request):
        self.keys.append(request.headers["Authorization"])
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.links.append(socket)
        async for message in socket:
            said = messages.loads(message.data)
            self.heard.append(said)
            self._changed.set()
            if isinstance(said, Hello):
                await self.tell(
                    Snapshot("e", self.revision, self.orders, (), TOKENS, Settings(LEASE_MS))
                )
                self.connected.set()
            elif isinstance(said, Renew) and self.granting:
                await self.tell(Renewed(said.sent_at_boot, "e", self.revision, LEASE_MS))
        return socket

    async def tell(self, message):
        await self.links[-1].send_str(messages.dumps(message))

    async def hear(self, kind, check=lambda _: True):
        async with asyncio.timeout(5):
            while True:
                for said in self.heard:
                    if isinstance(said, kind) and check(said):
                        return said
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def control(aiohttp_server):
    made = Control()
    app = web.Application()
    app.router.add_get("/v1/proxies/connect", made.serve)
    made.server = await aiohttp_server(app)
    return made


@pytest.fixture
async def linked(control):
    enforcer = Enforcer(boottime, utc_now)
    ready = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        made = Link(
            session, enforcer, str(control.server.make_url("/")), "hwk_key", "w1", ready.set
        )
        task = asyncio.get_running_loop().create_task(made.run())
        made.enforcer, made.ready, made.task = enforcer, ready, task
        yield made
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_says_hello_and_is_ready_with_a_snapshot_and_a_lease(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    hello = await control.hear(Hello)
    assert (hello.proxy_id, hello.revision, hello.epoch) == ("w1", 0, None)
    assert hello.pid > 0
    assert hello.on_stale == "hold"
    assert hello.agent_residual_max == agent_residual_max(linked.enforcer.limits) > 0
    assert hello.started_ticks > 0
    assert control.keys == ["Bearer hwk_key"]
    assert linked.enforcer.lease_left() > 0
    assert len(linked.enforcer.tokens) == len(TOKENS)


async def test_a_delta_is_acknowledged_by_name_and_then_reported(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    order = kill("agent://acme/prod/mailer", revision=2)
    control.revision = 2
    await control.tell(Delta(1, 2, kills=(order,)))
    ack = await control.hear(Ack, lambda a: a.kills)
    report = await control.hear(Report)
    assert (ack.kills, ack.revision) == ((order.kill_id,), 2)
    assert report.kill_id == order.kill_id
    assert control.heard.index(ack) < control.heard.index(report)


async def test_a_gap_brings_a_new_snapshot(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    order = kill("agent://acme/prod/mailer", revision=2)
    control.revision, control.orders = 3, (order,)
    await control.tell(Delta(2, 3))
    ack = await control.hear(Ack, lambda a: a.kills)
    assert ack.revision == 3
    assert len([said for said in control.heard if isinstance(said, Hello)]) == 2
    assert linked.enforcer.replica.view.revision == 3


async def test_a_lost_link_is_made_again_and_the_next_hello_names_what_is_enforced(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    order = kill("agent://acme/prod/mailer", revision=2)
    control.revision, control.orders = 2, (order,)
    await control.tell(Delta(1, 2, kills=(order,)))
    await control.hear(Ack, lambda a: a.kills)
    await control.links[-1].close()
    hello = await control.hear(Hello, lambda h: h.revision == 2)
    assert hello.orders == (order,)


async def test_without_renewals_the_lease_ends_and_with_them_all_goes_on(control, linked):
    """Nothing is written here: the link's own timers see to it."""
    await asyncio.wait_for(linked.ready.wait(), 5)
    connection = live(linked)
    control.granting = False
    await until(lambda: connection.stale)
    assert linked.enforcer.lease_left() == 0
    control.granting = True
    await until(lambda: not connection.stale)
    assert not connection.severed


async def test_the_loss_of_the_link_alone_changes_nothing(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    connection = live(linked)
    for _ in range(3):
        control.connected.clear()
        await control.links[-1].close()
        await asyncio.wait_for(control.connected.wait(), 5)
        assert not connection.severed
    await until(lambda: not connection.frozen)


async def test_a_fault_of_our_own_does_not_end_the_link_for_good(
    control, linked, monkeypatch, caplog
):
    await asyncio.wait_for(linked.ready.wait(), 5)

    def fail(_):
        raise RuntimeError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(linked.enforcer, "apply", fail)
        await control.tell(Delta(1, 2))
        async with asyncio.timeout(5):
            while not control.links[-1].closed:
                await asyncio.sleep(0.01)
    control.revision = 2
    await control.hear(Renew, lambda said: said.revision == 2)


async def test_a_link_on_which_nothing_comes_any_more_is_made_again(control, linked, monkeypatch):
    """Without the watch over the link (removed once) no second hello came, and nothing would pass for ever."""
    monkeypatch.setattr(link_module, "SILENT_AT_LEAST_S", 0.3)
    await asyncio.wait_for(linked.ready.wait(), 5)
    control.granting = False
    async with asyncio.timeout(10):
        while len([said for said in control.heard if isinstance(said, Hello)]) < 2:
            await asyncio.sleep(0.01)
    control.granting = True
    async with asyncio.timeout(10):
        while linked.enforcer.lease_left() == 0:
            await asyncio.sleep(0.01)


async def test_a_link_that_renews_is_kept(control, linked, monkeypatch):
    monkeypatch.setattr(link_module, "SILENT_AT_LEAST_S", 0.3)
    await control.hear(Renew)
    async with asyncio.timeout(10):
        while len([said for said in control.heard if isinstance(said, Renew)]) < 12:
            await asyncio.sleep(0.01)
    assert len([said for said in control.heard if isinstance(said, Hello)]) == 1


async def test_who_accepts_and_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(link_module, "CONNECT_WITHIN_S", 0.2)
    accepted = []
    twice = asyncio.Event()

    async def silent(reader, writer):
        accepted.append(writer)
        if len(accepted) == 2:
            twice.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as session:
        made = Link(
            session,
            Enforcer(boottime, utc_now),
            f"http://127.0.0.1:{port}",
            "hwk_",
            "w1",
            lambda: None,
        )
        task = asyncio.get_running_loop().create_task(made.run())
        await asyncio.wait_for(twice.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    server.close()
    for writer in accepted:
        writer.transport.abort()
    await server.wait_closed()


async def test_usage_is_told_when_something_changed(control, linked):
    from haltwire.wire.names import AgentRef

    await asyncio.wait_for(linked.ready.wait(), 5)
    linked.enforcer.tallies.seen("T1", AgentRef(("acme", "prod", "mailer")), "i-1", utc_now())
    usage = await control.hear(Usage, lambda u: u.instances)
    assert usage.instances[0].instance == "i-1"


async def test_its_last_word_is_bye(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    await linked.say_bye()
    assert (await control.hear(Bye)).proxy_id == "w1"


async def pauses_of_a_lost_link(monkeypatch):
    pauses = []
    enough = asyncio.Event()

    async def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 8:
            enough.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(link_module.asyncio, "sleep", pause)
    async with aiohttp.ClientSession() as session:
        lost = Link(
            session, Enforcer(boottime, utc_now), "http://127.0.0.1:1", "hwk_", "w1", lambda: None
        )
        task = asyncio.get_running_loop().create_task(lost.run())
        await asyncio.wait_for(enough.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return pauses


async def test_it_tries_for_ever_with_growing_pauses(monkeypatch):
    monkeypatch.setattr(link_module, "QUICK_FOR_S", 0.0)
    pauses = await pauses_of_a_lost_link(monkeypatch)
    assert max(pauses) <= link_module.LAST_RETRY_S * 1.5
    assert sum(pauses[4:]) > sum(pauses[:4])


async def test_after_a_short_outage_it_is_back_well_within_a_second(monkeypatch):
    """A control server that is started anew is back in seconds, and agents wait for its proxies."""
    pauses = await pauses_of_a_lost_link(monkeypatch)
    assert max(pauses) <= link_module.QUICK_RETRY_S * 1.5 < 0.7


class Client:
    """A client's socket that only remembers its end."""

    written = 0

    def __init__(self):
        self.ended = asyncio.Event()

    def fileno(self):
        return -1

    def unwritten(self):
        return 0

    def abort(self):
        self.ended.set()

    def freeze(self):
        pass

    thaw = freeze


def live(linked):
    (token,) = (token for token in TOKENS if str(token.selector) == "agent://acme/prod/mailer")
    who = Identity(token.selector.agent, "i-1", token.token_id, None, True, "hwa_secret")
    return linked.enforcer.connections.register(who, "tunnel", "a.test", Client())


async def order_one(control, mode, **more):
    order = kill("agent://acme/prod/mailer", revision=2, mode=mode, **more)
    control.revision, control.orders = 2, (order,)
    await control.tell(Delta(1, 2, kills=(order,)))
    await control.hear(Ack, lambda a: a.kills)
    return order


async def test_the_grace_of_a_drain_is_counted_here_and_its_end_is_told(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    connection = live(linked)
    await order_one(control, "drain", grace_s=0.3)
    first = await control.hear(Report, lambda r: r.live == 1)
    assert first.instances[0].connections_cut == 0
    await asyncio.wait_for(connection.client.ended.wait(), 5)
    last = await control.hear(Report, lambda r: r.live == 0)
    assert last.instances[0].connections_cut == 1


async def test_a_hold_tells_once_more_when_it_is_lifted_and_after_its_acknowledgement(
    control, linked
):
    await asyncio.wait_for(linked.ready.wait(), 5)
    live(linked)
    order = await order_one(control, "hold")
    await control.hear(Report, lambda r: r.instances[0].connections_held == 1)
    control.revision, control.orders = 3, ()
    await control.tell(Delta(2, 3, lifted=(order.kill_id,)))
    ack = await control.hear(Ack, lambda a: a.revision == 3)
    final = await control.hear(Report, lambda r: r.instances[0].connections_live == 1)
    assert (final.kill_id, final.instances[0].connections_held) == (order.kill_id, 0)
    assert control.heard.index(ack) < control.heard.index(final)


async def test_what_goes_on_is_told_again_on_a_new_link(control, linked):
    await asyncio.wait_for(linked.ready.wait(), 5)
    live(linked)
    await order_one(control, "drain", grace_s=30.0)
    await control.hear(Report, lambda r: r.live == 1)
    control.heard.clear()
    await control.links[-1].close()
    await control.hear(Hello)
    await control.hear(Report, lambda r: r.live == 1)


async def test_totals_are_told_when_nothing_else_has_changed_and_again_on_a_new_link(
    control, linked
):
    """Limits are come up against by those who are nobody, too."""
    await asyncio.wait_for(linked.ready.wait(), 5)
    linked.enforcer.tallies.count("limit.head_s")
    told = await control.hear(Usage, lambda u: u.totals)
    assert told.totals == {"limit.head_s": 1}
    control.heard.clear()
    await control.links[-1].close()
    await control.hear(Usage, lambda u: u.totals == {"limit.head_s": 1})


async def test_one_that_lets_nobody_in_is_asked_ever_more_rarely(control, linked):
    """It counted as connected, and was asked again after 50 ms each time: all five links took 0.22 s."""
    control.granting = False
    began = asyncio.get_running_loop().time()
    await control.hear(Hello)
    for times in range(2, 6):
        await control.links[-1].close()
        async with asyncio.timeout(10):
            while sum(isinstance(said, Hello) for said in control.heard) < times:
                await asyncio.sleep(0.005)
    # 50 ms, then twice that each time, each of it at least half.
    assert asyncio.get_running_loop().time() - began > 0.375


async def test_it_tells_its_ca_and_hears_where_the_control_server_is(control):
    class Place:
        heard = None

        def announced(self, settings):
            self.heard = settings

    place, ready = Place(), asyncio.Event()
    async with aiohttp.ClientSession() as session:
        url = str(control.server.make_url("/"))
        enforcer = Enforcer(boottime, utc_now)
        made = Link(session, enforcer, url, "hwk_key", "w1", ready.set, "PEM", place)
        task = asyncio.get_running_loop().create_task(made.run())
        await asyncio.wait_for(ready.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await control.hear(Hello)).authority == "PEM"
    assert place.heard == Settings(LEASE_MS)
