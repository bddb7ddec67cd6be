"""How a socket dies so that nothing queued in it leaves any more.

Closing, shutting down or aborting a TCP socket still sends what the kernel has queued (measured:
4 MB to a slow reader). Only a reset drops it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
from dataclasses import dataclass

UPSTREAM_SEND_BUFFER = 256 * 1024
"Bytes that the kernel may hold for an upstream: the most that can be unacknowledged at a kill."

_LINGER_RESET = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)
_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes that have not been sent at all
_ENDINGS = {7: "reset", 8: "ended", 9: "ended", 11: "ended"}
"States of tcp_info (include/net/tcp_states.h): CLOSE; CLOSE_WAIT, LAST_ACK, CLOSING."
_LINUX = sys.platform == "linux"
# Linux doubles the value and counts its own overhead within it.
_SEND_BUFFER = struct.pack("i", UPSTREAM_SEND_BUFFER // (2 if _LINUX else 1))
_UNSPECIFIED = struct.pack("H14x", socket.AF_UNSPEC)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Queued:
    """What the kernel still holds of the bytes written to a socket."""

    unacknowledged: int
    unsent: int


def arm(sock: socket.socket) -> None:
    """Let the end of this process reset the connection instead of sending what is queued."""
    _set(sock, socket.SO_LINGER, _LINGER_RESET)


def disarm(sock: socket.socket) -> None:
    """Let an orderly close deliver what is queued. A socket that is gone needs nothing."""
    try:
        _set(sock, socket.SO_LINGER, _LINGER_OFF)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
            raise


def bound_queue(sock: socket.socket) -> None:
    """Let the kernel hold at most `UPSTREAM_SEND_BUFFER` bytes for an upstream."""
    _set(sock, socket.SO_SNDBUF, _SEND_BUFFER)


def reset(fd: int) -> bool:
    """Send the reset now, inside the call; the descriptor stays open. False where only closing resets.

    `connect(AF_UNSPEC)` dissolves a TCP connection at once on Linux. Elsewhere the armed linger does
    it when the descriptor is closed.
    """
    if not _LINUX:
        return False
    return bool(_libc.connect(fd, _UNSPECIFIED, len(_UNSPECIFIED)) == 0)


def queued(fd: int) -> Queued | None:
    """What the kernel holds for this socket, or None when it does not tell."""
    if not _LINUX or fd < 0:
        return None
    try:
        return Queued(_ioctl(fd, termios.TIOCOUTQ), _ioctl(fd, _SIOCOUTQNSD))
    except OSError:
        return None


def holds_bytes(fd: int) -> bool:
    """Whether the kernel says that it holds bytes which the peer has not acknowledged."""
    if not _LINUX or fd < 0:
        return False
    try:
        return _ioctl(fd, termios.TIOCOUTQ) > 0
    except OSError:
        return False


def ending(fd: int) -> str | None:
    """Whether the peer has `reset` the connection or `ended` its direction; None when it has not, or nobody can tell."""
    if not _LINUX or fd < 0:
        return None
    state, length = ctypes.create_string_buffer(1), ctypes.c_uint(1)
    if _libc.getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, state, ctypes.byref(length)) != 0:
        return None
    return _ENDINGS.get(state.raw[0])


def readable(fd: int) -> int:
    """Bytes that have arrived and are not read yet."""
    try:
        return _ioctl(fd, termios.FIONREAD)
    except OSError:
        return 0


def _set(sock: socket.socket, option: int, value: bytes) -> None:
    # Not sock.setsockopt: uvloop's makes a socket object for each call, which takes five times as long.
    if _libc.setsockopt(sock.fileno(), socket.SOL_SOCKET, option, value, len(value)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ioctl(fd: int, request: int) -> int:
    answer: bytes = fcntl.ioctl(fd, request, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])
