"""The promise itself, up to a hundred times: between a confirmed kill and its resume nothing of the agent arrives."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

from support.client import Wire
from support.system import System
from support.world import basic

MAILER = "agent://acme/prod/mailer"
ROUNDS = 100
ENOUGH, WITHIN_S = 20, 15.0
"On a busy machine fewer rounds prove it too; a test must not fail for being slow."
TROUBLE = (ConnectionError, asyncio.IncompleteReadError, TimeoutError, AssertionError)


class Counter:
    """An origin that notes, per agent, when each request's head has been read."""

    def __init__(self) -> None:
        self.arrived: dict[str, list[tuple[float, str]]] = {"mailer": [], "bystander": []}
        self.connections: dict[str, set[object]] = {"mailer": set(), "bystander": set()}

    async def __aenter__(self) -> Counter:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._server.close_clients()
        await asyncio.wait_for(self._server.wait_closed(), 5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, agent, number = head.split(b" ")[1].decode().rsplit("/", 2)
                self.arrived[agent].append((time.monotonic(), number))
                self.connections[agent].add(writer)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


async def _send(port: int, origin: Counter, agent: str, secret: str, connects: bool) -> None:
    """Numbered requests without end, over connections that live until they are cut."""
    there = f"127.0.0.1:{origin.port}"
    auth = f"Proxy-Authorization: {basic(f'acme.prod.{agent}', secret)}"
    numbers = itertools.count()
    while True:
        try:
            wire = await Wire.open(port)
            try:
                if connects:
                    answer = await wire.request("CONNECT", there, f"Host: {there}", auth)
                    assert answer is not None
                    assert answer.status == 200
                for number in numbers:
                    path = f"/{agent}/{number}"
                    if connects:
                        answer = await wire.request("GET", path, f"Host: {there}")
                    else:
                        target = f"http://{there}{path}"
                        answer = await wire.request("GET", target, f"Host: {there}", auth)
                    assert answer is not None
                    assert answer.status == 200
                    await asyncio.sleep(random.uniform(0, 0.004))
            finally:
                wire.close()
                Wire.opened.remove(wire)
        except TROUBLE:
            await asyncio.sleep(0.005)  # stopped: a careless agent tries again and again


async def test_nothing_arrives_between_a_confirmed_kill_and_its_resume(system: System):
    async def secret_of(agent: str, tls: str) -> str:
        url = await system.token(f"agent://acme/prod/{agent}", tls)
        return url.partition("@")[0].rpartition(":")[2]

    tunnelled = await secret_of("mailer", "tunnel")
    read = await secret_of("mailer", "intercept")
    bystander = await secret_of("bystander", "tunnel")
    stopped: list[tuple[float, float]] = []
    random.seed(7)
    async with Counter() as origin, asyncio.TaskGroup() as tasks:
        ways = [("mailer", tunnelled, True), ("mailer", read, True), ("mailer", read, False)]
        ways.append(("bystander", bystander, True))
        senders = [tasks.create_task(_send(system.port, origin, *way)) for way in ways]
        mailer = origin.arrived["mailer"]
        try:
            async with asyncio.timeout(2 * WITHIN_S):
                began = time.monotonic()
                while len(stopped) < ROUNDS and time.monotonic() - began < WITHIN_S:
                    count = len(mailer)
                    while len(mailer) < count + 2:
                        await asyncio.sleep(0.001)
                    _, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": MAILER})
                    answered = time.monotonic()
                    assert receipt["confirmed"] is True, receipt
                    # What the kernel had delivered before the cut is read by now.
                    await asyncio.sleep(random.uniform(0.01, 0.06))
                    called = time.monotonic()
                    await system.api("POST", "/v1/mesh/resume", {"selector": MAILER})
                    stopped.append((answered, called))
        finally:
            for sender in senders:
                sender.cancel()
    late = [
        (number, moment - answered)
        for moment, number in mailer
        for answered, called in stopped
        if answered < moment < called
    ]
    assert late == []
    assert len(stopped) >= ENOUGH
    assert len(origin.connections["bystander"]) == 1, "the other agent is not to notice"
    assert len(origin.arrived["bystander"]) > len(stopped)
