"""The registry of live connections, with sockets that only remember what was done to them."""

import asyncio
import os
import select
import socket
import struct
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire_proxy import connections as connections_module
from haltwire_proxy import sever
from haltwire_proxy.connections import Connections, Exchange
from haltwire_proxy.identity import Identity
from haltwire_proxy.tally import Tallies

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)
MAILER, OTHER = AgentRef(("acme", "prod", "mailer")), AgentRef(("acme", "prod", "other"))


class Side:
    def __init__(self, log, name, written=0, fd=-1, waiting=0):
        self.log, self.name, self.written, self.fd, self.waiting = log, name, written, fd, waiting

    def fileno(self):
        return self.fd

    def unwritten(self):
        return self.waiting

    def abort(self):
        self.log.append(("abort", self.name))

    def freeze(self):
        self.log.append(("freeze", self.name))

    def thaw(self):
        self.log.append(("thaw", self.name))


def identity(agent, instance="i-1"):
    return Identity(agent, instance, "T1", None, True, "hwa_secret")


def registry():
    return Connections(Tallies(), lambda: NOW)


def test_only_what_matches_is_cut_and_forgotten():
    log: list = []
    connections = registry()
    victim = connections.register(identity(MAILER), "plain", "a.test", Side(log, "victim"))
    connections.register(identity(OTHER), "plain", "a.test", Side(log, "bystander"))
    assert connections.count == 2
    cuts = connections.cut(connections.matching(lambda agent: agent == MAILER, lambda _: True))
    assert [cut.tally for cut in cuts] == [victim.tally]
    assert log == [("abort", "victim")]
    assert connections.count == 1
    assert victim.tally.connections == 0


def test_an_instance_has_been_seen_until_its_connection_ended():
    """A receipt names who was there within the last minutes, also by one connection that was old."""
    moments = [NOW, NOW + timedelta(hours=2)]
    connections = Connections(Tallies(), lambda: moments.pop(0))
    connection = connections.register(identity(MAILER), "tunnel", "a.test", Side([], "c"))
    connections.forget(connection)
    assert connection.tally.last_seen_at == NOW + timedelta(hours=2)


def test_a_connection_is_cut_once_and_forgetting_is_idempotent():
    log: list = []
    connections = registry()
    connection = connections.register(identity(MAILER), "plain", "a.test", Side(log, "c"))
    assert len(connections.cut([connection])) == 1
    assert connections.cut([connection]) == []
    connections.forget(connection)
    assert (log, connections.count) == ([("abort", "c")], 0)


def test_all_upstreams_are_reset_before_any_client_is_closed(monkeypatch):
    log: list = []
    monkeypatch.setattr(sever, "reset", lambda fd: log.append(("reset", fd)))
    monkeypatch.setattr(sever, "queued", lambda fd: None)
    connections = registry()
    for number in (1, 2):
        connection = connections.register(
            identity(MAILER, f"i-{number}"), "tunnel", "a.test", Side(log, f"client {number}")
        )
        connection.upstreams.append(Side(log, f"upstream {number}", fd=100 + number))
    connections.cut(connections.everything())
    assert sorted(log[:2]) == [("reset", 101), ("reset", 102)]
    assert {name for what, name in log[2:] if what == "abort"} == {
        "client 1",
        "client 2",
        "upstream 1",
        "upstream 2",
    }


async def test_dials_in_progress_are_cancelled():
    connections = registry()
    connection = connections.register(identity(MAILER), "tunnel", "a.test", Side([], "c"))
    dial = asyncio.get_running_loop().create_task(asyncio.Event().wait())
    connection.tasks.append(dial)
    connections.cut([connection])
    await asyncio.wait([dial])
    assert dial.cancelled()


def test_what_had_been_sent_is_judged_by_the_kernel(monkeypatch):
    """10,000 written since byte 1,000, of which the body is 9,000."""
    cases = [
        # waiting in our buffer, unacknowledged, unsent, complete -> sent, acknowledged
        (0, 0, 0, True, "whole", 9000),
        (0, 0, 0, False, "partly", 9000),
        (0, 4000, 4000, True, "partly", 5000),
        (2000, 4000, 0, True, "partly", 3000),
        (0, 10_000, 10_000, True, "none", 0),
        (0, 10_000, 3000, True, "unknown", 0),
        (10_000, 0, 0, True, "none", 0),
    ]
    for waiting, unacknowledged, unsent, complete, sent, acked in cases:
        monkeypatch.setattr(
            sever, "queued", lambda fd, u=unacknowledged, n=unsent: sever.Queued(u, n)
        )
        connections = registry()
        connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "c"))
        upstream = Side([], "u", written=11_000, waiting=waiting)
        exchange = Exchange("POST", "a.test", "/send", NOW, upstream, 1000, bytes_up=9000)
        exchange.request_complete = complete
        connection.exchanges.append(exchange)
        (flight,) = connection.facts()
        assert (flight.sent, flight.bytes_up_acked) == (sent, acked), (waiting, unsent)


def test_a_request_is_whole_though_another_goes_on_behind_it(monkeypatch):
    """Over one HTTP/2 socket: 3,000 bytes were written behind its end, and 2,000 are not acknowledged."""
    monkeypatch.setattr(sever, "queued", lambda fd: sever.Queued(2000, 2000))
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "c"))
    upstream = Side([], "u", written=4000)
    exchange = Exchange("POST", "a.test", "/send", NOW, upstream, 0, bytes_up=900)
    exchange.request_complete, exchange.upstream_end = True, 1000
    connection.exchanges.append(exchange)
    (flight,) = connection.facts()
    assert (flight.sent, flight.bytes_up_acked) == ("whole", 900)
    exchange.upstream_end = 2001
    assert connection.facts()[0].sent == "partly"


def test_what_the_kernel_does_not_tell_is_unknown(monkeypatch):
    monkeypatch.setattr(sever, "queued", lambda fd: None)
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "c"))
    upstream = Side([], "u", written=10)
    connection.exchanges.append(Exchange("GET", "a.test", "/", NOW, upstream, 0))
    (flight,) = connection.facts()
    assert (flight.sent, flight.bytes_up_acked) == ("unknown", None)


def test_a_request_that_waits_for_its_upstream_has_sent_nothing():
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "c"))
    connection.exchanges.append(Exchange("GET", "a.test", "/", NOW))
    assert connection.facts()[0].sent == "none"


def test_a_tunnel_is_not_read():
    read_end, write_end = os.pipe()
    connections = registry()
    connection = connections.register(identity(MAILER), "tunnel", "a.test", Side([], "c"))
    connection.upstreams.append(Side([], "u", written=5, fd=read_end))
    (flight,) = connection.facts()
    assert (flight.method, flight.path, flight.sent) == ("CONNECT", None, "unknown")
    os.close(read_end)
    os.close(write_end)


def test_nothing_that_fails_on_one_connection_saves_the_next(monkeypatch, caplog):
    class Broken(Side):
        def abort(self):
            raise RuntimeError("injected")

    log: list = []
    connections = registry()
    broken = connections.register(identity(MAILER, "i-1"), "tunnel", "a.test", Broken(log, "1"))
    broken.upstreams.append(Side(log, "u"))
    broken.upstreams[0].fileno = lambda: 1 / 0 if not broken.severed else -1  # type: ignore
    connections.register(identity(MAILER, "i-2"), "plain", "a.test", Side(log, "2"))
    assert len(connections.cut(connections.everything())) == 2
    assert ("abort", "2") in log
    assert connections.count == 0


def test_a_socket_that_fails_saves_no_other():
    class Broken(Side):
        def fileno(self):
            raise RuntimeError("injected")

        unwritten = abort = fileno

    log: list = []
    connections = registry()
    first = connections.register(identity(MAILER), "tunnel", "a.test", Broken(log, "client"))
    first.upstreams.append(Broken(log, "broken"))
    second = connections.register(identity(MAILER), "tunnel", "a.test", Side(log, "client 2"))
    second.upstreams.append(Side(log, "upstream 2"))
    assert len(connections.cut([first, second])) == 2
    assert log == [("abort", "upstream 2"), ("abort", "client 2")]
    assert connections.count == 0


def test_what_http_2_keeps_back_has_not_been_sent():
    """All that was written may be acknowledged, and the request is not whole: a window is shut."""
    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname())
    side = Side([], "upstream", written=1000, fd=sock.fileno())
    held = Exchange("POST", "a.test", "/", NOW, side, 100)
    held.bytes_up, held.request_complete, held.held = 5000, True, lambda: 4200
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "client"))
    connection.exchanges.append(held)
    (flight,) = connection.facts()
    assert (flight.sent, flight.bytes_up, flight.bytes_up_acked) == ("partly", 5000, 800)
    sock.close()
    listener.close()


def held_tunnel(log, connections, fd=-1):
    connection = connections.register(
        identity(MAILER), "tunnel", "a.test", Side(log, "client", fd=fd)
    )
    connection.upstreams.append(Side(log, "upstream"))
    connections.freeze([connection])
    return connection


def test_freezing_stops_upstreams_first_and_thawing_lets_both_sides_go_on():
    log: list = []
    connections = registry()
    connection = held_tunnel(log, connections)
    connections.freeze([connection])  # again
    assert connection.held
    assert log == [("freeze", "upstream"), ("freeze", "client")]
    connections.thaw([connection])
    connections.thaw([connection])  # again
    assert not connection.held
    assert log[2:] == [("thaw", "upstream"), ("thaw", "client")]


def test_an_idle_client_that_is_read_stays_open_for_a_request_that_then_waits():
    log: list = []
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side(log, "client"))
    connection.upstreams.append(Side(log, "upstream"))
    connections.freeze([connection])
    assert log == [("freeze", "upstream")]


def test_a_busy_client_that_is_read_is_frozen():
    log: list = []
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side(log, "client"))
    connection.exchanges.append(Exchange("GET", "a.test", "/", NOW))
    connections.freeze([connection])
    assert log == [("freeze", "client")]


def test_a_cut_ends_what_is_held():
    log: list = []
    connections = registry()
    connection = held_tunnel(log, connections)
    lost: list = []
    connections.on_lost = lost.append
    assert len(connections.cut([connection])) == 1
    connections.thaw([connection])
    assert log[2:] == [("abort", "upstream"), ("abort", "client")]
    assert not connections.held
    assert lost == []


def test_one_that_cannot_be_frozen_is_cut_and_the_next_is_frozen(caplog):
    class Broken(Side):
        def freeze(self):
            raise RuntimeError("injected")

    log: list = []
    connections = registry()
    broken = connections.register(identity(MAILER), "tunnel", "a.test", Broken(log, "broken"))
    sound = connections.register(identity(MAILER), "tunnel", "a.test", Side(log, "sound"))
    connections.freeze([broken, sound])
    assert log == [("abort", "broken"), ("freeze", "sound")]
    assert list(connections.held) == [sound]


async def test_what_waits_is_let_go_in_its_order_when_it_is_thawed():
    connections = registry()
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "client"))
    connections.freeze([connection])
    order = []
    waiters = [asyncio.get_running_loop().create_future() for _ in range(3)]
    for number, waiter in enumerate(waiters):
        connection.waiters[waiter] = None
        waiter.add_done_callback(lambda _, number=number: order.append(number))
    waiters[1].cancel()
    connections.thaw([connection])
    await asyncio.wait(waiters)
    assert sorted(order) == [0, 1, 2]
    assert order.index(0) < order.index(2)


def test_who_goes_while_held_is_counted_once():
    connections = registry()
    lost: list = []
    connections.on_lost = lost.append
    connection = held_tunnel([], connections)
    connections.forget(connection)
    connections.forget(connection)
    assert lost == [connection]


def test_an_idle_connection_that_ends_while_held_is_no_loss():
    connections = registry()
    lost: list = []
    connections.on_lost = lost.append
    connection = connections.register(identity(MAILER), "inspected", "a.test", Side([], "client"))
    connections.freeze([connection])
    connections.forget(connection)
    assert lost == []


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    yield near, far
    near.close()
    far.close()


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_for_the_end(sock):
    """Until the kernel has heard of it."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(5000)


def test_a_client_that_resets_while_held_is_noticed_and_its_upstream_let_go(pair):
    near, far = pair
    log: list = []
    connections = registry()
    lost: list = []
    connections.on_lost = lost.append
    connection = held_tunnel(log, connections, fd=near.fileno())
    connections.look_for_lost()
    assert lost == []
    reset(far)
    wait_for_the_end(near)
    connections.look_for_lost()
    assert lost == [connection]
    assert ("abort", "upstream") in log
    assert connections.count == 0


def test_a_tunnels_client_that_only_ends_its_direction_is_still_there(pair):
    near, far = pair
    connections = registry()
    held_tunnel([], connections, fd=near.fileno())
    far.shutdown(socket.SHUT_WR)
    wait_for_the_end(near)
    connections.look_for_lost()
    assert connections.count == 1


@pytest.mark.parametrize("how", ["look", "thaw"])
def test_an_upstream_that_gives_up_while_held_is_counted_once(pair, how):
    near, far = pair
    connections = registry()
    lost: list = []
    connections.on_lost = lost.append
    connection = connections.register(identity(MAILER), "tunnel", "a.test", Side([], "client"))
    connection.upstreams.append(Side([], "upstream", fd=near.fileno()))
    connections.freeze([connection])
    reset(far)
    wait_for_the_end(near)
    if how == "look":
        connections.look_for_lost()
        assert connection.held
    connections.thaw([connection])
    assert lost == [connection]


def test_an_upstream_that_has_said_all_before_is_no_loss(pair):
    near, far = pair
    far.sendall(b"the end of the answer")
    far.close()
    wait_for_the_end(near)
    connections = registry()
    lost: list = []
    connections.on_lost = lost.append
    connection = connections.register(identity(MAILER), "tunnel", "a.test", Side([], "client"))
    connection.upstreams.append(Side([], "upstream", fd=near.fileno()))
    connections.freeze([connection])
    connections.look_for_lost()
    connections.thaw([connection])
    assert lost == []


def test_a_look_is_bounded_and_the_next_one_goes_on(monkeypatch):
    monkeypatch.setattr(connections_module, "LOOKED_AT", 2)
    looked = []
    monkeypatch.setattr(connections_module, "_client_left", lambda one: looked.append(one.number))
    connections = registry()
    connections.freeze(
        [
            connections.register(identity(MAILER), "tunnel", "a.test", Side([], str(number)))
            for number in range(3)
        ]
    )
    for _ in range(3):
        connections.look_for_lost()
    assert looked == [1, 2, 3, 1, 2]
