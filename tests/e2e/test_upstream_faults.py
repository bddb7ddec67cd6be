"""Destinations that fail in every way, under load: the agent is told so, and nobody else feels it.

One agent sends to all of them at once, in the open, through tunnels and read inside TLS. Meanwhile
another is served, kills are proven in time, and afterwards no descriptor is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import socket
import ssl
import struct
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.client import serving
from support.disks import children_of
from support.numbered import Agent, Arrival, Origin, Place
from support.system import System
from support.world import basic

LOAD_S = 5.0
CALLERS = 3
"Of each way to each destination."
GIVES_UP_S = 2.0
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this"


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RST as soon as something has come."""
    with contextlib.suppress(OSError):
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half an answer."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HALF)
        await writer.drain()
    writer.transport.abort()


async def _rubbish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """No HTTP, no TLS."""
    with contextlib.suppress(OSError):
        await reader.read(1)
        writer.write(bytes(range(256)) * 4)
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.transport.abort()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads everything, says nothing."""
    with contextlib.suppress(OSError):
        while await reader.read(65_536):
            pass
    writer.transport.abort()


@contextlib.contextmanager
def _full():
    """A listener whose queue is full: a SYN gets no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
async def destinations():
    """host:port by what is wrong with it."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for name, handler in (
            ("resets", _reset),
            ("answers by half", _half),
            ("talks rubbish", _rubbish),
            ("says nothing", _silent),
        ):
            server, port = await serving(handler)
            stack.callback(server.close)
            stack.callback(server.close_clients)
            found[name] = f"127.0.0.1:{port}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            found["refuses"] = f"127.0.0.1:{free.getsockname()[1]}"
            found["does not accept"] = f"127.0.0.1:{stack.enter_context(_full())}"
            found["has no address"] = "no-such-name.invalid:443"
            yield found


async def _ask(system: System, auth: str, way: str, host: str, context: ssl.SSLContext) -> str:
    """What the agent is told, in words."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    try:
        async with asyncio.timeout(GIVES_UP_S):
            target, credentials = f"http://{host}/x", f"Proxy-Authorization: {auth}\r\n"
            if way != "plain":
                writer.write(
                    f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{credentials}\r\n".encode()
                )
                told = await _told(reader, connect=True)
                if told != "200":
                    return told
                if way == "read":
                    await writer.start_tls(context, server_hostname=host.rpartition(":")[0])
                target, credentials = "/x", ""
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{credentials}\r\n".encode())
            return await _told(reader)
    except TimeoutError:
        return "nothing"
    except (OSError, EOFError, asyncio.IncompleteReadError):
        return "closed"
    except ValueError:
        return "its rubbish"
    finally:
        writer.transport.abort()


async def _told(reader: asyncio.StreamReader, *, connect: bool = False) -> str:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise ValueError from error
    if not head.startswith(b"HTTP/1.1 "):
        raise ValueError(head[:20])
    status = head.split(b" ", 2)[1].decode()
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    if connect and status == "200":
        return status
    body = await reader.readexactly(int(length[1])) if length else b""
    code = re.search(rb'"error": ?"(\w+)"', body)
    return f"{status} {code[1].decode()}" if code else status


UNREACHABLE = {"502 upstream_unreachable", "504 upstream_unreachable"}
TOLD: dict[str, set[str]] = {
    "resets": {*UNREACHABLE, "closed"},
    "answers by half": {*UNREACHABLE, "closed"},
    "talks rubbish": {*UNREACHABLE, "closed", "its rubbish"},
    "says nothing": {*UNREACHABLE, "nothing"},
    "refuses": UNREACHABLE,
    "does not accept": {*UNREACHABLE, "nothing"},
    "has no address": UNREACHABLE,
}
"What may be said; where a destination is only dialled once TLS has begun, inside it."


def _descriptors(pids: list[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


async def test_destinations_that_fail_cost_the_others_nothing(tmp_path, authority, destinations):
    arrivals: list[Arrival] = []
    async with (
        System(
            tmp_path / "data",
            "--workers",
            "2",
            "--upstream-ca",
            str(authority.ca_file),
            # On a quick machine its callers, who begin anew each time, would be told to slow down.
            "--limit",
            "agent_handshakes=100000",
            "--limit",
            "agent_refusals=100000",
        ) as system,
        Origin(arrivals.append) as plain,
        Origin(arrivals.append, authority.server_context("localhost")) as tls,
    ):

        async def secret(name: str, kind: str) -> str:
            url = await system.token(f"agent://acme/bad/{name}", kind)
            return url.partition("@")[0].rpartition(":")[2]

        secrets = [await secret("beside", kind) for kind in ("tunnel", "intercept")]
        place = Place(system.port, plain, tls, str(system.ca_file), str(authority.ca_file))
        beside = Agent("beside", "bad", *secrets, place)
        ways = {
            "plain": await secret("caller", "tunnel"),
            "tunnel": await secret("caller", "tunnel"),
            "read": await secret("caller", "intercept"),
        }
        context = ssl.create_default_context(cafile=str(system.ca_file))
        told: dict[str, Counter[str]] = defaultdict(Counter)

        async def call(name: str, host: str, way: str) -> None:
            auth = basic("acme.bad.caller", ways[way])
            while True:
                told[name][await _ask(system, auth, way, host, context)] += 1
                await asyncio.sleep(0.03)

        workers = [
            pid
            for pid in children_of(system.process.pid)
            if b"\0proxy\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        async with asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(beside.send(w, random.Random(1))) for w in beside.ways]
            while {one.way for one in arrivals} != set(beside.ways):
                await asyncio.sleep(0.02)
            before = _descriptors(workers)
            calling = [
                tasks.create_task(call(name, host, way))
                for (name, host), way, _ in itertools.product(
                    destinations.items(), ways, range(CALLERS)
                )
            ]
            until, halted, most = time.monotonic() + LOAD_S, [], len(arrivals)
            while time.monotonic() < until:
                _, receipt = await system.api(
                    "POST", "/v1/mesh/kill", {"selector": "agent://acme/bad/caller"}
                )
                assert receipt["confirmed"], receipt
                halted.append(receipt["halted_in_ms"])
                await system.api("POST", "/v1/mesh/resume", {"selector": "agent://acme/bad/caller"})
                await asyncio.sleep(1.0)
            for task in calling:
                task.cancel()
            served = len(arrivals) - most
            async with asyncio.timeout(15):
                while _descriptors(workers) > before + 8:
                    await asyncio.sleep(0.1)
            for task in sending:
                task.cancel()
    print({name: dict(counts) for name, counts in told.items()}, halted, served, beside.refused)
    assert max(halted) < 2000
    assert served > 50
    assert not beside.refused
    for name, allowed in TOLD.items():
        said = set(told[name]) - {"403 agent_killed"}
        assert said, f"{name} was never asked"
        assert said <= allowed | {"closed"}, (name, told[name])
