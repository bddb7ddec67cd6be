"""What is done to a side that fails, and what a side's kernel says of its peer."""

from __future__ import annotations

import select
import socket
import struct

import pytest
from haltwire_proxy import sides

LINGER_0 = struct.pack("ii", 1, 0)


class Socket:
    """A side over a real socket."""

    def __init__(self, sock: socket.socket, unwritten: int = 0) -> None:
        self._sock = sock
        self._unwritten = unwritten
        self.written = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def unwritten(self) -> int:
        return self._unwritten

    def abort(self) -> None:
        raise OSError("no")

    freeze = thaw = abort


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        yield near, far


def arrived(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    assert poll.poll(5000)


def test_a_side_that_cannot_be_closed_stops_nobody(pair, caplog):
    sides.abort(Socket(pair[0]))
    assert "could not be aborted" in caplog.text


def test_a_side_that_is_closed_already_is_reset_without_a_word(pair, caplog):
    pair[0].close()
    sides.reset(Socket(pair[0]))
    assert caplog.text == ""


def test_a_reset_reaches_the_peer(pair):
    near, far = pair
    sides.reset(Socket(near))
    arrived(far)
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_what_is_on_the_way_is_ours_and_the_kernels(pair):
    near, far = pair
    assert sides.on_the_way([Socket(near)]) == 0
    assert sides.on_the_way([Socket(near, 7), Socket(near, 5)]) == 12
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    near.setblocking(False)
    sent = near.send(b"x" * 4_000_000)
    assert 7 < sides.on_the_way([Socket(near, 7)]) <= sent + 7


def test_a_peer_that_only_sends_no_more_has_left_when_half_counts(pair):
    near, far = pair
    assert not sides.has_left(Socket(near), half=True)
    far.shutdown(socket.SHUT_WR)
    arrived(near)
    assert sides.has_left(Socket(near), half=True)
    assert not sides.has_left(Socket(near), half=False)


def test_a_peer_that_resets_has_left(pair):
    near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    far.close()
    arrived(near)
    assert sides.has_left(Socket(near), half=False)


def test_an_upstream_with_something_to_say_has_not_left(pair):
    near, far = pair
    far.send(b"x")
    far.shutdown(socket.SHUT_WR)
    arrived(near)
    assert not sides.any_left([Socket(near)])
    near.recv(1)
    arrived(near)
    assert sides.any_left([Socket(near)])
