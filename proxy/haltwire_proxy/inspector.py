"""mitmproxy, embedded: it reads what must be read and decides nothing.

It never listens and never dials: connections are handed to it by the door, upstreams are opened by
our dialer. Hooks run inline, and a hook that raises ends the connection (stock mitmproxy would
log it and let the request through).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import cast

from haltwire.wire.refusals import Refusal
from mitmproxy import certs, connection, master, options
from mitmproxy.addons import proxyserver
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer, mode_specs, server
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.modes import TransparentProxy

from haltwire_proxy import layers
from haltwire_proxy.addon import Addon, refusal_of
from haltwire_proxy.authority import BASENAME
from haltwire_proxy.connections import Connection
from haltwire_proxy.destinations import Dialer
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.faults import FailClosed
from haltwire_proxy.floods import FloodError, Overdue, Rest, check_unread, handled
from haltwire_proxy.lobby import inner_lobby
from haltwire_proxy.patience import Patience
from haltwire_proxy.remains import let_go
from haltwire_proxy.streams import (
    Http,
    RefusedDialError,
)
from haltwire_proxy.transport import GatedReader, GatedWriter, adopt_stream
from haltwire_proxy.turnstile import Course, Turnstile
from haltwire_proxy.upstreams import drop_unused, open_upstream
from haltwire_proxy.waiting import MAX_WAITING_BYTES, waiting_bytes
from haltwire_proxy.watchdog import Watchdog

log = logging.getLogger(__name__)
_KEY_BITS = 2048  # theirs, for an authority that they would make; ours is there
LINGER_S = 5.0
"How long a connection may live on after a refusal: its answer must arrive, its body is discarded."


class Inspector:
    """Runs one mitmproxy handler per handed-over connection."""

    def __init__(
        self,
        enforcer: Enforcer,
        dialer: Dialer,
        addon: Addon,
        authority_dir: Path,
        upstream_roots: Path,
    ) -> None:
        self.enforcer = enforcer
        self.dialer = dialer
        self.addon = addon
        self.handlers: set[asyncio.Task[None]] = set()
        self.turnstile = Turnstile()
        self.lobby = inner_lobby(enforcer.limits)
        logging.getLogger("mitmproxy").setLevel(logging.CRITICAL)
        self.master = master.Master(options.Options())
        # Their log records would each cost a write to the loop's self-pipe and can wedge signals.
        self.master._legacy_log_events.uninstall()
        self.tls = layers.TlsConfig()
        self.master.addons.add(proxyserver.Proxyserver(), self.tls)
        self.options = self.master.options
        self.options.update(
            connection_strategy="lazy",
            upstream_cert=False,
            server=False,
            ssl_verify_upstream_trusted_ca=str(upstream_roots),
        )
        self.tls.certstore = certs.CertStore.from_store(authority_dir, BASENAME, _KEY_BITS)

    def adopt(
        self,
        transport: asyncio.Transport,
        owned: Connection,
        destination: tuple[str, int] | None,
        early: bytes,
    ) -> None:
        """Take over a client; `destination` is CONNECT's, None for plain proxied requests."""
        reader, writer = adopt_stream(transport, self.enforcer, owned, early)
        owned.client = writer
        handler = _Handler(self, owned, reader, writer, destination)
        writer.when_lost(handler.client_lost)
        owned.on_freeze.append(partial(drop_unused, handler, owned))
        task = asyncio.get_running_loop().create_task(
            self._serve(handler, owned, writer), name=f"inspect {owned.host}"
        )
        owned.tasks.append(task)
        self.handlers.add(task)
        task.add_done_callback(self.handlers.discard)

    async def _serve(self, handler: _Handler, owned: Connection, client: GatedWriter) -> None:
        try:
            await handler.handle_client()
            await client.settled()
        except asyncio.CancelledError:
            if not owned.severed:
                raise
        finally:
            with FailClosed("a connection could not be ended in order", client.abort):
                handler.abort_all()
            self.enforcer.connections.forget(owned)
            let_go(handler, owned, handler.course)


class _Handler(server.LiveConnectionHandler):
    """One client connection in mitmproxy's hands."""

    def __init__(
        self,
        inspector: Inspector,
        owned: Connection,
        reader: GatedReader,
        writer: GatedWriter,
        destination: tuple[str, int] | None,
    ) -> None:
        super().__init__(reader, writer, inspector.options, mode_specs.ProxyMode.parse("regular"))
        self.client.enforcer = inspector.enforcer  # type: ignore[attr-defined]
        self._inspector = inspector
        self._owned = owned
        self._linger: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self._waits: set[asyncio.Task[None]] = set()
        self.timeout_watchdog: Watchdog = Watchdog(
            inspector.options.tcp_timeout, self.on_timeout, owned
        )
        self.course = Course(inspector.turnstile, owned.identity.agent, self._handle)
        context = self.layer.context
        if destination is None:
            self.layer = Http(context, HTTPMode.regular)
        else:
            context.server.address = destination
            self.layer = TransparentProxy(context)
        self.client.owned = owned  # type: ignore[attr-defined]
        self.patience = Patience(
            inspector.enforcer.limits, owned, self.layer.context, self._give_up, inspector.lobby
        )

    def abort_all(self) -> None:
        """Leave no socket and no task behind."""
        if self._linger is not None:
            self._linger.cancel()
        self.timeout_watchdog.end()
        self.patience.end()
        while self.wakeup_timer:
            self.wakeup_timer.pop().cancel()
        for task in self._waits:
            task.cancel()
        for io in self.transports.values():
            if io.handler is not None:
                io.handler.cancel()
            if isinstance(io.writer, GatedWriter):
                io.writer.close()

    def _give_up(self, limit: str) -> None:
        """The client has taken too long."""
        if not any(isinstance(one, Http) for one in self.layer.context.layers):
            self._inspector.enforcer.tallies.count(f"limit.{limit}")
            self._inspector.enforcer.connections.cut([self._owned])
            return
        loop = asyncio.get_running_loop()
        told = loop.create_task(self.server_event(Overdue(limit)), name=f"over {limit}")
        self._owned.tasks.append(told)
        told.add_done_callback(self._owned.tasks.remove)
        self._linger = self._linger or loop.call_later(LINGER_S, self._owned.client.abort)

    def client_lost(self) -> None:
        """The client's socket has ended; while it is held, nobody would hear of it otherwise."""
        if self._owned.frozen:
            self._inspector.enforcer.connections.abandon(self._owned)

    async def handle_connection(
        self, connection: connection.Connection, opened: events.Event | None = None
    ) -> None:
        """Their method, but it ends only what it began: the same upstream may be opened anew meanwhile."""
        io = self.transports[connection]
        cancelled = None
        try:
            if opened is not None:
                await self.server_event(opened)
            while io.reader is not None and (data := await io.reader.read(65535)):
                await self.server_event(events.DataReceived(connection, data))
                with FailClosed("waiting for writers failed: the connection is cut", self._cut):
                    await self.drain_writers()
        except OSError:
            pass
        except asyncio.CancelledError as error:
            cancelled = error
        if connection is self.client and self._owned.waiters:
            # Whoever stops sending while a request of his waits wants nothing more.
            self._inspector.enforcer.connections.abandon(self._owned)
        if cancelled is None and not self._is_severed():
            connection.state &= ~ConnectionState.CAN_READ
        else:
            connection.state = ConnectionState.CLOSED
        try:
            await self.server_event(events.ConnectionClosed(connection))
            if connection.state is ConnectionState.CAN_WRITE:
                await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            cancelled = error
        if io.writer is not None:
            io.writer.close()
        if self.transports.get(connection) is io:
            del self.transports[connection]
        if cancelled is not None:
            del io, cancelled  # what is raised refers to this frame, and this frame would to it
            raise asyncio.CancelledError

    def server_event(self, event: events.Event) -> Coroutine[None, None, None]:
        """Their method, in turn with the other connections."""
        return self.course.take(event)

    def _handle(self, event: events.Event) -> Iterator[None]:
        """With hooks run inline: no task and no loop turn lies between gate and write, but where this yields."""
        with FailClosed("inspection failed: the connection is cut", self._cut):
            self.timeout_watchdog.register_activity()
            try:
                is_over = self._inspector.turnstile.is_over
                yield from handled(self.layer, event, self._perform, self._is_severed, is_over)
                check_unread(event, self.transports)
            except FloodError as flood:
                log.warning("%s: the connection is cut", flood)
                if flood.limit is not None:
                    self._inspector.enforcer.tallies.count(f"limit.{flood.limit}")
                self._cut()
        self._moved.set()

    def _perform(self, command: commands.Command, done: list[events.Event]) -> None:
        if isinstance(command, commands.StartHook):
            unfinished = self._run_hook(command)
            if unfinished is not None:
                self._await_hook(command, unfinished)
            elif command.blocking:
                done.append(events.HookCompleted(command))
        elif isinstance(command, commands.OpenConnection):
            task = asyncio.get_running_loop().create_task(
                self.open_connection(command), name="upstream"
            )
            self._owned.tasks.append(task)
            self.transports[command.connection] = server.ConnectionIO(handler=task)
        elif isinstance(command, commands.RequestWakeup):
            timer = asyncio.get_running_loop().create_task(self.wakeup(command), name="wakeup")
            self.wakeup_timer.add(timer)
        elif isinstance(command, (commands.Log, Rest)):
            pass
        elif not isinstance(command, commands.ConnectionCommand):
            raise RuntimeError(f"unexpected command {command}")
        elif command.connection not in self.transports:
            pass  # closed meanwhile
        elif isinstance(command, commands.SendData):
            writer = self.transports[command.connection].writer
            if writer is not None and not writer.is_closing():
                writer.write(command.data)
        elif isinstance(command, commands.CloseTcpConnection):
            self.close_connection(command.connection, command.half_close)
        elif isinstance(command, commands.CloseConnection):
            self.close_connection(command.connection, False)
        else:
            raise RuntimeError(f"unexpected command {command}")

    async def drain_writers(self) -> None:
        """Wait for what the caller reads for, and only for that.

        Theirs waits for all writers behind one lock: a full upload then stops the download that would
        let it go on. And it does not know what waits for an HTTP/2 window or behind a request.
        """
        client = self.transports.get(self.client)
        if client is None or client.writer is None:
            return
        upward = asyncio.current_task() is client.handler
        fed = [io for io in self.transports.values() if (io is not client) is upward]
        for io in fed:
            if io.writer is not None:
                try:
                    await io.writer.drain()
                except OSError as error:
                    if io.handler is not None:
                        io.handler.cancel(f"Error sending data: {error}")
        while self._is_full(upward=upward):
            self._moved.clear()
            await self._moved.wait()

    def _is_full(self, *, upward: bool) -> bool:
        return any(
            (upward and waiting_bytes(one) > MAX_WAITING_BYTES)
            or (isinstance(one, Http) and one.is_full(upward=upward))
            for one in self.layer.context.layers
        )

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Hooks that the handler itself starts (client connected and the like)."""
        self._run_hook(hook)

    def _await_hook(
        self, hook: commands.StartHook, unfinished: Coroutine[None, None, None]
    ) -> None:
        async def finish() -> None:
            try:
                with FailClosed("a hook failed: the connection is cut", self._cut):
                    await unfinished
                    self._note_refusal(hook)
                    await self.server_event(events.HookCompleted(hook))
            finally:
                _drop_task(self._owned)

        task = asyncio.get_running_loop().create_task(finish(), name=f"hook {hook.name}")
        self._owned.tasks.append(task)
        if hook.name == "requestheaders":
            self._waits.add(task)
            task.add_done_callback(self._waits.discard)

    def _run_hook(self, hook: commands.StartHook) -> Coroutine[None, None, None] | None:
        name = hook.name
        if name == "next_layer":
            layers.choose(cast("layer.NextLayer", hook.args()[0]))
        elif name in _TLS_HOOKS:
            getattr(self._inspector.tls, name)(*hook.args())
        else:
            run = getattr(self._inspector.addon, name, None)
            if run is not None:
                unfinished: Coroutine[None, None, None] | None = run(*hook.args())
                self._note_refusal(hook)
                return unfinished
        return None

    def _note_refusal(self, hook: commands.StartHook) -> None:
        refused = hook.name == "requestheaders" and refusal_of(hook.args()[0]) is not None
        if refused and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._end)

    def _end(self) -> None:
        # What may still finish beside what was refused, or stands still, goes on.
        owned = self._owned
        if owned.exchanges or owned.waiters or (owned.frozen and owned.client.unwritten()):
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._end)
        else:
            self._owned.client.abort()

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Their method with our dialer; a fault ends the connection, which would else wait for ever."""
        with FailClosed("an upstream could not be opened: the connection is cut", self._cut):
            await self._open(command)

    async def _open(self, command: commands.OpenConnection) -> None:
        owned, target = self._owned, command.connection
        opened = await open_upstream(
            self._inspector.enforcer, self._inspector.dialer, owned, target.address
        )
        if isinstance(opened, Refusal):
            self.transports.pop(target, None)
            _drop_task(owned)
            text = RefusedDialError.of(opened)
            target.error = text
            await self.server_event(events.OpenConnectionCompleted(command, text))
            return
        reader, writer = opened
        owned.upstreams[:] = [side for side in owned.upstreams if side.fileno() >= 0]
        owned.upstreams.append(writer)
        target.side = writer
        if not target.tls and not self.client.tls:
            target.alpn = self.client.alpn  # HTTP/2 without TLS goes on as it came
        target.state = ConnectionState.OPEN
        target.timestamp_start = time.time()  # else a layer behind an upgrade would open it again
        target.peername = writer.get_extra_info("peername")
        target.sockname = writer.get_extra_info("sockname")
        self.transports[target] = server.ConnectionIO(asyncio.current_task(), reader, writer)
        try:
            await self.handle_connection(target, events.OpenConnectionCompleted(command, None))
        finally:
            _drop_task(owned)

    def _cut(self) -> None:
        self._inspector.enforcer.connections.cut([self._owned])

    def _is_severed(self) -> bool:
        return self._owned.severed  # asked anew after every await


def _drop_task(owned: Connection) -> None:
    task = asyncio.current_task()
    if task in owned.tasks:
        owned.tasks.remove(task)


_TLS_HOOKS = frozenset({"tls_clienthello", "tls_start_client", "tls_start_server"})
