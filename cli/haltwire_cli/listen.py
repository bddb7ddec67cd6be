"""Addresses to listen on: reading, binding, and saying which program has one that is taken."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_ADDRESS = re.compile(
    r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})"
)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"What a URL calls this machine by."
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"What means every address of this machine, and the one that stands for it here."
_LISTENING = "0A"
_INTERPRETERS = ("python", "node", "ruby", "perl", "java")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` or `[IPV6]:PORT`; ValueError otherwise."""
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
        port = int(match["port"])
        if port > 65_535:
            raise ValueError(f"{text!r} names port {port}: ports end at 65535")
        return cls(match["six"] or match["host"], port)


def bind(address: Address, backlog: int) -> socket.socket:
    """A listening socket; OSError whose message is a sentence that names the address and, when taken, by whom."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"{address.host} has no address here: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        if not address.port:
            listener = _bound_for_good(listener)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, _sentence(address, Address(str(where[0]), int(where[1])), error)
        ) from error
    listener.setblocking(False)
    return listener


def _bound_for_good(chosen: socket.socket) -> socket.socket:
    """Another socket with the port that the system chose for this one, which it closes.

    A port that was asked for by its number stays with a socket that is shut (see port.py); one that the
    system chose does not.
    """
    with chosen:
        listener = socket.socket(chosen.family, chosen.type, chosen.proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(chosen.getsockname())
        except OSError:
            listener.close()
            raise
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where a socket really listens: its port is known once it is bound."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def is_exposed(url: str) -> bool:
    """Whether what is said to a server there goes over a network, unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK


def is_loopback(address: Address) -> bool:
    """Whether only this machine can reach it."""
    host = ipaddress.ip_address(address.host.partition("%")[0])
    return host.is_loopback


def url_of(address: Address, scheme: str = "http") -> str:
    """The URL that reaches it from this machine."""
    return f"{scheme}://{Address(ANYWHERE.get(address.host, address.host), address.port)}"


def holder_of(address: Address, proc: Path = Path("/proc")) -> str | None:
    """The program that listens there, as `name (pid N)`; None when that cannot be seen."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(address, proc)}
    for pid in sorted((p.name for p in proc.glob("[0-9]*")), key=int) if wanted else ():
        if any(link in wanted for link in open_files(proc / pid)):
            return f"{_program(proc / pid)} (pid {pid})"
    return None


def open_files(process: Path) -> Iterator[str]:
    """What a process of /proc has open, as the kernel names it; nothing where that may not be seen."""
    with suppress(OSError):  # another user's process, or one that has just ended
        for entry in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                yield str(entry.readlink())


def _listening_inodes(address: Address, proc: Path) -> set[str]:
    inodes = set()
    ours = _kernel_form(address.host)
    for table in ("tcp", "tcp6"):
        try:
            rows = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if len(fields) > 9 and fields[3] == _LISTENING:
                host, _, port = fields[1].rpartition(":")
                in_the_way = host == ours or not host.strip("0") or not ours.strip("0")
                if int(port, 16) == address.port and in_the_way:
                    inodes.add(fields[9])
    return inodes


def _kernel_form(host: str) -> str:
    """An address as /proc/net/tcp has it: words of four bytes in the machine's order."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _program(process: Path) -> str:
    """Its name, and for an interpreter the script's: never more of a command line, which may hold secrets."""
    try:
        name = (process / "comm").read_text().strip()
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a program"
    if name.startswith(_INTERPRETERS):
        script = next((word for word in words[1:] if word and not word.startswith("-")), "")
        if re.fullmatch(r"[\w./-]+", script):
            return f"{name} {Path(script).name}"
    return name


def _sentence(address: Address, resolved: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is taken by {holder_of(resolved) or 'another program'}"
    if error.errno == errno.EACCES:
        return f"{address} may not be used: ports below 1024 need more rights"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is no address of this machine"
    return f"{address} cannot be listened on: {os.strerror(error.errno or 0)}"
