"""A control server on a free port, a client for it, and a worker that speaks the link."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiohttp
from haltwire.wire import messages
from haltwire.wire.messages import (
    Ack,
    Bye,
    CutInstance,
    Delta,
    Hello,
    InstanceUsage,
    Mismatch,
    Renew,
    Renewed,
    Report,
    Snapshot,
    Usage,
)
from haltwire.wire.names import AgentRef
from haltwire_control import ledger_file
from haltwire_control import service as service_module
from haltwire_control.app import ControlConfig, control_server
from haltwire_control.presence import this_machine

PROXY_KEY = "hwk_" + "p" * 43


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def set_wall_clock(monkeypatch: Any, by: timedelta) -> None:
    """Set the wall clock of control servers in this process that far from the right time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + by

    for module in (service_module, ledger_file):
        monkeypatch.setattr(module, "datetime", Clock)


@dataclass
class Reply:
    status: int
    body: Any
    headers: Any = None


@dataclass
class Control:
    """A running control server, seen from outside."""

    url: str
    data_dir: Path
    service: Any
    killing: Any
    routes: Any
    app: Any
    session: aiohttp.ClientSession
    workers: list[Worker] = field(default_factory=list)

    @property
    def admin_key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    async def call(
        self, method: str, path: str, body: Any = None, key: str | None = "", **headers: str
    ) -> Reply:
        """One call, as the admin unless a key is given; None sends no key."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key or self.admin_key}"
        given = {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body}
        async with self.session.request(method, self.url + path, headers=sent, **given) as answer:
            is_json = answer.content_type == "application/json"
            content = await answer.json() if is_json else await answer.read()
            return Reply(answer.status, content, answer.headers)

    async def kill(self, selector: str, **more: Any) -> Reply:
        return await self.call("POST", "/v1/mesh/kill", {"selector": selector, **more})

    async def resume(self, selector: str, **more: Any) -> Reply:
        return await self.call("POST", "/v1/mesh/resume", {"selector": selector, **more})

    async def token(self, selector: str, **more: Any) -> str:
        made = await self.call("POST", "/v1/tokens", {"selector": selector, **more})
        return made.body["secret"]

    async def key(self, name: str, role: str) -> str:
        return (await self.call("POST", "/v1/keys", {"name": name, "role": role})).body["secret"]

    async def beat(self, secret: str, **body: Any) -> Reply:
        return await self.call("POST", "/v1/mesh/heartbeat", body, key=secret)

    async def events(self, query: str = "limit=1000") -> list[dict]:
        return (await self.call("GET", f"/v1/mesh/events?{query}")).body["events"]

    async def event_types(self) -> list[str]:
        return [event["event_type"] for event in await self.events()]


@asynccontextmanager
async def running_control(data_dir: Path, **options: Any) -> AsyncIterator[Control]:
    """A control server in this process, with a client."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    port = listener.getsockname()[1]
    usual = {"local_proxy_key": PROXY_KEY, "proxy_url": "http://127.0.0.1:8080"}
    config = ControlConfig(str(data_dir), listener.detach(), **(usual | options))
    async with control_server(config) as running, aiohttp.ClientSession() as session:
        control = Control(
            f"http://127.0.0.1:{port}",
            data_dir,
            running.service,
            running.killing,
            running.routes,
            running.application,
            session,
        )
        try:
            yield control
        finally:
            for worker in control.workers:
                await worker.leave()


class Worker:
    """A proxy worker without a proxy: it applies, acknowledges and reports."""

    def __init__(
        self, control: Control, proxy_id: str = "w-1", key: str = PROXY_KEY, **hello: Any
    ) -> None:
        here = this_machine()
        self._key = key
        self.control = control
        control.workers.append(self)
        self.hello = Hello(
            **{
                "proxy_id": proxy_id,
                "host": here.host,
                "boot_id": here.boot_id,
                "pid": os.getpid(),
                "pid_namespace": here.pid_namespace,
                "started_ticks": my_ticks(),
                "version": "0",
                "epoch": None,
                "revision": 0,
                **hello,
            }
        )
        self.epoch: str | None = self.hello.epoch
        self.revision = self.hello.revision
        self.orders: dict[str, Any] = {}
        self.tokens: dict[str, Any] = {}
        self.received: list[Any] = []
        self.acknowledges = True
        self.instances: tuple[CutInstance, ...] = ()
        self.released: tuple[CutInstance, ...] = ()
        "What the last report of a lifted hold says."
        self.live = 0
        self.residual: int | None = None
        self.connections_cut = 0
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    async def join(self) -> Worker:
        """Connect and wait for the snapshot."""
        self.socket = await self.control.session.ws_connect(
            self.control.url + "/v1/proxies/connect",
            headers={"Authorization": f"Bearer {self._key}"},
        )
        await self.say(self.hello)
        self._task = asyncio.get_running_loop().create_task(self._follow())
        await self.until(lambda: any(isinstance(m, Snapshot) for m in self.received))
        return self

    @property
    def task(self) -> asyncio.Task[None]:
        """Ends with the link."""
        assert self._task is not None
        return self._task

    async def leave(self) -> None:
        """Lose the link."""
        if self.socket is not None:
            await self.socket.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.socket = self._task = None

    async def bye(self) -> None:
        await self.say(Bye(self.hello.proxy_id))
        await self.leave()

    async def say(self, message: Any) -> None:
        await self.socket.send_str(messages.dumps(message))

    async def renew(self) -> Renewed:
        """Ask for a lease and wait for it."""
        before = len(self.received)
        await self.say(Renew(time.monotonic(), utc_now(), self.epoch, self.revision))
        await self.until(lambda: any(isinstance(m, Renewed) for m in self.received[before:]))
        return next(m for m in self.received[before:] if isinstance(m, Renewed))

    async def use(self, *instances: InstanceUsage, mismatches: tuple[Mismatch, ...] = ()) -> None:
        await self.say(Usage(1, instances, mismatches))
        await self.renew()  # answered after the usage was taken in

    async def until(self, is_so: Any, timeout: float = 5) -> None:
        async with asyncio.timeout(timeout):
            while not is_so():
                self._heard.clear()
                await self._heard.wait()

    def acknowledge(self, *kills: str) -> Any:
        return self.say(Ack(self.epoch, self.revision, kills, self.connections_cut))

    async def report(self, kill_id: str, *instances: CutInstance, live: int | None = None) -> None:
        """The report of an order; as set for the worker unless said."""
        live = self.live if live is None else live
        told = instances or self.instances
        await self.say(Report(kill_id, utc_now(), told, live, self.residual))

    async def _follow(self) -> None:
        async for message in self.socket:
            decoded = messages.loads(message.data)
            self.received.append(decoded)
            before = self.orders.copy()
            changed = self._apply(decoded)
            self._heard.set()
            if changed is not None and self.acknowledges:
                await self.acknowledge(*changed)
                for kill_id in changed:
                    await self.report(kill_id)
                for kill_id in before.keys() - self.orders:
                    if before[kill_id].mode == "hold":
                        await self.report(kill_id, *self.released, live=0)
        self._heard.set()

    def _apply(self, message: Any) -> tuple[str, ...] | None:
        if isinstance(message, Snapshot):
            before = self.orders if message.epoch == self.epoch else {}
            self.epoch, self.revision = message.epoch, message.revision
            self.orders = {order.kill_id: order for order in message.orders}
            self.tokens = {rule.token_id: rule for rule in message.tokens}
            return tuple(k for k, order in self.orders.items() if before.get(k) != order)
        if isinstance(message, Delta):
            assert message.previous == self.revision, "a gap between revisions"
            self.revision = message.revision
            self.orders.update({order.kill_id: order for order in message.kills})
            for kill_id in message.lifted:
                del self.orders[kill_id]
            self.tokens.update({rule.token_id: rule for rule in message.tokens})
            for token_id in message.revoked:
                del self.tokens[token_id]
            return tuple(order.kill_id for order in message.kills)
        return None


def my_ticks() -> int:
    stat = Path("/proc/self/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])


def usage(agent: str, instance: str, **more: Any) -> InstanceUsage:
    now = utc_now()
    values = {
        "first_seen_at": now,
        "last_seen_at": now,
        "connections": 1,
        "requests": 1,
        "refused": 0,
        "bytes_up": 10,
        "bytes_down": 20,
    }
    return InstanceUsage(AgentRef.parse(agent), instance, **values | more)


def cut(agent: str, instance: str, **more: Any) -> CutInstance:
    values = {"seen_at": utc_now(), "connections_cut": 1, "last_byte_at": utc_now()}
    return CutInstance(AgentRef.parse(agent), instance, **values | more)
