"""A shared listening socket while nobody serves it: refused, kept, and open again with the next process."""

import asyncio
import socket
import sys

import pytest
from haltwire_cli import port as module
from haltwire_cli.listen import Address, bind
from haltwire_cli.port import Port

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux shuts a listening socket"
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "UNSERVED_S", 0.3)


@pytest.fixture(params=["a free port", "a port by its number"])
def listener(request):
    number = 0
    if request.param != "a free port":
        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
    with bind(Address("127.0.0.1", number), 1000) as listener:
        yield listener


def is_refused(listener: socket.socket) -> bool:
    try:
        with socket.create_connection(listener.getsockname(), 5):
            return False
    except ConnectionRefusedError:
        return True


async def until_refused(listener: socket.socket) -> None:
    async with asyncio.timeout(10):
        while not is_refused(listener):
            await asyncio.sleep(0.02)


def serve_again(listener: socket.socket) -> None:
    """As a worker does."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.listen(1000)


async def test_who_waits_is_refused_once_nobody_has_lived_for_a_while(listener):
    port = Port(listener)
    port.began()
    port.began()
    waits = socket.create_connection(listener.getsockname(), 5)
    port.ended(was_ready=True)
    await asyncio.sleep(0.6)
    assert not is_refused(listener)  # one lives
    port.ended(was_ready=True)
    assert not is_refused(listener)  # the next one may be here in a moment
    await until_refused(listener)
    with waits, pytest.raises(ConnectionResetError):
        waits.recv(1)


async def test_the_next_process_opens_it_at_the_same_port(listener):
    """Also with connections of its predecessors still about, which lay claim to the port."""
    port = Port(listener)
    port.began()
    listener.setblocking(True)
    client = socket.create_connection(listener.getsockname(), 5)
    accepted, _ = listener.accept()
    where = listener.getsockname()
    port.ended(was_ready=True)
    await until_refused(listener)
    port.began()
    serve_again(listener)
    assert listener.getsockname() == where
    assert not is_refused(listener)
    client.close()
    accepted.close()


async def test_nobody_else_gets_the_port_while_it_is_shut(listener):
    """Agents send their secrets there. Seen when SO_REUSEADDR was not taken away: another socket was bound to it."""
    port = Port(listener)
    port.began()
    port.ended(was_ready=True)
    await until_refused(listener)
    for reuse in (0, 1):
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            with pytest.raises(OSError, match="in use"):
                thief.bind(listener.getsockname())


async def test_one_that_began_in_time_keeps_it_open(listener):
    port = Port(listener)
    port.began()
    port.ended(was_ready=True)
    port.began()
    await asyncio.sleep(0.6)
    assert not is_refused(listener)


async def test_processes_that_never_get_as_far_as_serving_do_not_keep_clients_waiting(listener):
    port = Port(listener)
    port.began()
    port.ended(was_ready=True)
    port.began()
    await asyncio.sleep(0.6)
    assert not is_refused(listener)
    port.ended(was_ready=False)
    await asyncio.sleep(0)  # the time is over already
    await asyncio.sleep(0.01)
    assert is_refused(listener)


async def test_after_the_end_nothing_is_shut(listener):
    port = Port(listener)
    port.began()
    port.ended(was_ready=True)
    port.end()
    await asyncio.sleep(0.6)
    assert not is_refused(listener)
