"""How sockets die."""

import contextlib
import os
import socket
import struct

import pytest
from haltwire_proxy import sever


@pytest.fixture
def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    listener.close()
    with near, far:
        far.settimeout(2)
        yield near, far


def _fill(sock: socket.socket) -> int:
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 65536)
    return sent


def _drain(sock: socket.socket) -> tuple[int, str]:
    received = 0
    try:
        while chunk := sock.recv(65536):
            received += len(chunk)
    except ConnectionResetError:
        return received, "reset"
    return received, "orderly"


def test_a_reset_drops_what_is_queued_and_keeps_the_descriptor(pair):
    near, far = pair
    sent = _fill(near)
    assert sever.reset(near.fileno())
    received, ended = _drain(far)
    assert ended == "reset"
    assert received < sent
    assert os.fstat(near.fileno())


def test_an_armed_socket_resets_when_it_is_closed(pair):
    near, far = pair
    sever.arm(near)
    sent = _fill(near)
    near.close()
    assert _drain(far)[1] == "reset"
    assert sent > 0


def test_a_disarmed_socket_delivers_when_it_is_closed(pair):
    near, far = pair
    sever.arm(near)
    near.sendall(b"last words")
    sever.disarm(near)
    near.close()
    assert _drain(far) == (10, "orderly")


def test_disarming_a_closed_socket_is_nothing(pair):
    near, _ = pair
    near.close()
    sever.disarm(near)


def test_what_is_queued_is_told_until_it_is_acknowledged(pair):
    near, far = pair
    assert sever.queued(near.fileno()) == sever.Queued(0, 0)
    sent = _fill(near)
    queued = sever.queued(near.fileno())
    assert queued is not None
    assert 0 < queued.unsent <= queued.unacknowledged < sent
    far.setblocking(False)


def test_a_closed_descriptor_has_no_queue_and_is_not_reset():
    assert sever.queued(-1) is None
    assert not sever.reset(-1)


def test_linger_is_what_arm_says(pair):
    near, _ = pair
    sever.arm(near)
    raw = near.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert struct.unpack("ii", raw) == (1, 0)
