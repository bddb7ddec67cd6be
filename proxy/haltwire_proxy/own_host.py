"""Whether packets to an address end on this host, as its kernel would route them."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address

_RTM_NEWROUTE, _RTM_GETROUTE, _NLMSG_ERROR = 24, 26, 2
_NLM_F_REQUEST = 1
_RTA_DST = 1
_RTN_LOCAL = 2
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_TYPE_AT = _HEADER.size + 7
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})


def is_local(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host answers for it: its own addresses, all of loopback, and the unspecified one."""
    if address.is_loopback or address.is_unspecified:
        return True
    if sys.platform == "linux":
        try:
            return _routed_here(address)
        except OSError:  # no netlink in this sandbox
            pass
    return _can_be_bound(address)


def _routed_here(address: IPv4Address | IPv6Address) -> bool:
    # Not by binding: where net.ipv4.ip_nonlocal_bind is set (keepalived), every address can be bound.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    bits = len(address.packed) * 8
    destination = struct.pack("=HH", 4 + len(address.packed), _RTA_DST) + address.packed
    body = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + destination
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        head = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
        sock.sendto(head + body, (0, 0))
        answer = sock.recv(4096, socket.MSG_DONTWAIT)  # the kernel has answered within the send
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _RTM_NEWROUTE:
        return answer[_TYPE_AT] == _RTN_LOCAL
    if kind == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if code in _NO_ROUTE:
            return False
        raise OSError(code, "no route can be asked for")
    raise OSError(errno.EPROTO, "an unknown answer of the kernel's")


def _can_be_bound(address: IPv4Address | IPv6Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL  # not knowing is not allowing
    return True
