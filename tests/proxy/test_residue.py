"""The bound on what a proxy that stands still may yet send, against what a kernel really takes."""

import contextlib
import socket

import pytest
from haltwire_proxy import sever
from haltwire_proxy.limits import Limits, fitted
from haltwire_proxy.residue import agent_residual_max


def test_it_is_one_queue_for_each_tunnel_and_for_each_request_that_is_read_inside():
    limits = Limits(agent_connections=100, agent_requests=20)
    assert agent_residual_max(limits) == 120 * sever.UPSTREAM_SEND_BUFFER


def test_it_follows_the_descriptors_that_there_are():
    few = fitted(Limits(), 1024)
    assert few.agent_connections < Limits().agent_connections
    assert agent_residual_max(few) < agent_residual_max(Limits())


def fill(sock, piece):
    """What is queued after each write, until no more is taken."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(piece)
            yield sever.queued(sock.fileno()).unacknowledged


@pytest.mark.parametrize("piece", [100, 1448, 65_536, 1_000_000])
def test_a_queue_holds_no_more_however_it_is_filled(piece):
    """The peer reads nothing, so that all is queued but what its own kernel has taken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.socket() as sock:
            sever.bound_queue(sock)
            sock.connect(listener.getsockname())
            sock.setblocking(False)
            most = max(fill(sock, bytes(piece)))
            assert 0 < most <= sever.UPSTREAM_SEND_BUFFER
