"""Two network namespaces: one with `haltwire up` behind it, one with agents and origins, and a name server of our own.

Their addresses are made up: nothing leaves the machine. Sockets are made inside a namespace and used from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from support.system import CLEAN, run

PROXY_PUBLIC, ORIGIN_PUBLIC = "11.0.0.1", "11.0.0.2"
PROXY_PRIVATE, ORIGIN_PRIVATE = "10.9.0.1", "10.9.0.2"
ORIGIN_OTHER = "192.168.9.2"
METADATA = "169.254.169.254"
PROXY_PORT, CONTROL_PORT = 8080, 8081


def missing() -> str | None:
    """Why there can be no lab here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for network namespaces"
    if shutil.which("ip") is None:
        return "needs ip of iproute2"
    probe = f"hw{os.getpid()}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


class Namespace:
    """A network namespace of this machine's."""

    def __init__(self, name: str) -> None:
        self.name = name
        _ip("netns", "add", name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        _ip("-n", self.name, *arguments)

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket that is in it for good, wherever it is used."""
        made = []

        def make() -> None:
            fd = os.open(f"/var/run/netns/{self.name}", os.O_RDONLY)
            try:
                os.setns(fd, os.CLONE_NEWNET)
            finally:
                os.close(fd)
            made.append(socket.socket(socket.AF_INET, kind))

        # A thread of its own: nobody else is taken along.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def listener(self, host: str, port: int) -> socket.socket:
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
        return sock

    def remove(self) -> None:
        _ip("netns", "del", self.name)


class NameServer:
    """Answers A queries from `zones`: a list of addresses, or a list of such lists, one for each query."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.zones: dict[str, list] = {}
        self.asked: Counter[str] = Counter()
        self._ends = threading.Event()
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End its thread."""
        self._ends.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                query, peer = self._socket.recvfrom(4096)
                self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        name, kind = ".".join(labels).lower(), int.from_bytes(query[at + 1 : at + 3])
        known = self.zones.get(name)
        if kind == 1:
            self.asked[name] += 1
        if known and isinstance(known[0], list):
            known = known[min(self.asked[name], len(known)) - 1]
        records = [_record(b"\xc0\x0c", one, kind) for one in known or []]
        found = b"".join(filter(None, records))
        count = sum(map(bool, records))
        flags = b"\x81\x80" if known else b"\x81\x83"
        head = query[:2] + flags + b"\0\1" + count.to_bytes(2) + b"\0\0\0\0"
        return head + query[12 : at + 5] + found


def _record(name: bytes, text: str, kind: int) -> bytes:
    family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
    if family is None or (":" in text) != (family == socket.AF_INET6):
        return b""
    packed = socket.inet_pton(family, text)
    return name + kind.to_bytes(2) + b"\0\1\0\0\0\0" + len(packed).to_bytes(2) + packed


class Lab:
    """The place, with a running `haltwire up` that agents elsewhere reach."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder, self._options = folder, options
        self._namespaces: list[Namespace] = []

    async def __aenter__(self) -> Lab:
        try:
            self._build()
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        process = getattr(self, "process", None)
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 20)
        if hasattr(self, "names"):
            self.names.close()
        for namespace in self._namespaces:
            namespace.remove()

    def _build(self) -> None:
        for role in ("gw", "out"):
            self._namespaces.append(Namespace(f"hw{os.getpid()}{role}"))
        self.gateway, self.outside = self._namespaces
        _ip("link", "add", "v0", "netns", self.gateway.name, "type", "veth",
            "peer", "name", "v0", "netns", self.outside.name)  # fmt: skip
        for namespace, addresses in (
            (self.gateway, (PROXY_PUBLIC, PROXY_PRIVATE, "192.168.9.1", "169.254.0.1")),
            (self.outside, (ORIGIN_PUBLIC, ORIGIN_PRIVATE, ORIGIN_OTHER, METADATA)),
        ):
            for address in addresses:
                bits = "16" if address.startswith("169.254") else "24"
                namespace.ip("addr", "add", f"{address}/{bits}", "dev", "v0")
            namespace.ip("link", "set", "v0", "up")
        name_socket = self.gateway.socket(socket.SOCK_DGRAM)
        name_socket.bind(("127.0.0.1", 53))
        self.names = NameServer(name_socket)

    async def _start(self) -> None:
        self.data_dir = self._folder / "data"
        resolver = self._folder / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self._prefix = (
            "ip", "netns", "exec", self.gateway.name, "sh", "-c",
            'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver),
            sys.executable, "-m", "haltwire_cli",
        )  # fmt: skip
        self.process = await asyncio.create_subprocess_exec(
            *self._prefix, "up", "--data-dir", str(self.data_dir), "--workers", "1", "--drain-for", "0s",
            "--proxy-listen", f"0.0.0.0:{PROXY_PORT}", "--control-listen", f"127.0.0.1:{CONTROL_PORT}",
            *self._options,
            env=CLEAN, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(40):
            while not (self.data_dir / "endpoints.json").exists():
                if self.process.returncode is not None:
                    raise AssertionError((await self.process.stdout.read()).decode())
                await asyncio.sleep(0.02)

    async def secret(self, agent: str, tls: str = "tunnel") -> str:
        """The secret of a new token."""
        made = await run(
            *self._prefix, "token", "create", agent, "--tls", tls, "--json", "--data-dir", str(self.data_dir)
        )  # fmt: skip
        return json.loads(made.out)["secret"]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of an agent's to the proxy."""
        sock = self.outside.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (PROXY_PUBLIC, PROXY_PORT))
        return await asyncio.open_connection(sock=sock)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr}")
