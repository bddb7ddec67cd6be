"""mitmproxy, embedded: it reads what must be read and decides nothing.

It never listens and never dials: connections are handed to it by the door, upstreams are opened by
our dialer. Hooks run inline, and a hook that raises ends the connection (stock mitmproxy would
log it and let the request through).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import cast

from haltwire.wire.refusals import Refusal
from mitmproxy import certs, connection, master, options
from mitmproxy.addons import proxyserver, tlsconfig
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer, layers, mode_specs, server
from mitmproxy.proxy.layers import tls as tls_layers
from mitmproxy.proxy.layers.http import HTTPMode

from haltwire_proxy.addon import Addon, refusal_of
from haltwire_proxy.authority import BASENAME
from haltwire_proxy.connections import Connection
from haltwire_proxy.destinations import Dialer
from haltwire_proxy.enforcer import Enforcer, failed
from haltwire_proxy.streams import MAX_PAUSED_EVENTS, Http, RefusedDialError
from haltwire_proxy.transport import GatedWriter, StreamProtocol, adopt_stream

log = logging.getLogger(__name__)
_KEY_BITS = 2048  # theirs, for an authority that they would make; ours is there
LINGER_S = 5.0
"How long a connection may live on after a refusal: its answer must arrive, its body is discarded."


class _TlsConfig(tlsconfig.TlsConfig):
    """Their TLS set-up with our authority; the store is set, never made from options."""

    def configure(self, updated: set[str]) -> None:
        """Nothing: see Inspector."""


class _Watchdog(server.TimeoutWatchdog):
    """Their idle timer, which ends with its connection also when that is cut."""

    _task: asyncio.Task[None] | None = None
    _ended = False

    async def watch(self) -> None:
        """Their method, remembered."""
        self._task = asyncio.current_task()
        if not self._ended:
            await super().watch()

    def end(self) -> None:
        """Idempotent; also before it has begun."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()


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
        logging.getLogger("mitmproxy").setLevel(logging.CRITICAL)
        self.master = master.Master(options.Options())
        # Their log records would each cost a write to the loop's self-pipe and can wedge signals.
        self.master._legacy_log_events.uninstall()
        self.tls = _TlsConfig()
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
        task = asyncio.get_running_loop().create_task(
            self._serve(handler, owned), name=f"inspect {owned.host}"
        )
        owned.tasks.append(task)
        self.handlers.add(task)
        task.add_done_callback(self.handlers.discard)

    async def _serve(self, handler: _Handler, owned: Connection) -> None:
        try:
            await handler.handle_client()
        except asyncio.CancelledError:
            if not owned.severed:
                raise
        finally:
            handler.abort_all()
            self.enforcer.connections.forget(owned)


class _Handler(server.LiveConnectionHandler):
    """One client connection in mitmproxy's hands."""

    def __init__(
        self,
        inspector: Inspector,
        owned: Connection,
        reader: asyncio.StreamReader,
        writer: GatedWriter,
        destination: tuple[str, int] | None,
    ) -> None:
        super().__init__(reader, writer, inspector.options, mode_specs.ProxyMode.parse("regular"))
        self._inspector = inspector
        self._owned = owned
        self._linger: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self.timeout_watchdog: _Watchdog = _Watchdog(inspector.options.tcp_timeout, self.on_timeout)
        context = self.layer.context
        if destination is None:
            self.layer = Http(context, HTTPMode.regular)
        else:
            context.server.address = destination
            self.layer = layers.modes.TransparentProxy(context)
        self.client.owned = owned  # type: ignore[attr-defined]

    def abort_all(self) -> None:
        """Leave no socket and no task behind."""
        if self._linger is not None:
            self._linger.cancel()
        self.timeout_watchdog.end()
        while self.wakeup_timer:
            self.wakeup_timer.pop().cancel()
        for io in self.transports.values():
            if io.handler is not None:
                io.handler.cancel()
            if isinstance(io.writer, GatedWriter):
                io.writer.close()

    async def server_event(self, event: events.Event) -> None:
        """Their method, with hooks run inline: no task and no loop turn lies between gate and write."""
        async with self._server_event_lock:
            self.timeout_watchdog.register_activity()
            waiting: deque[events.Event] = deque((event,))
            try:
                while waiting:
                    for command in self.layer.handle_event(waiting.popleft()):
                        # A cut ends sockets, which mitmproxy could take for the end of a response
                        # without a length, or for a reason to connect anew.
                        if self._is_severed():
                            return
                        self._perform(command, waiting)
            except Exception:
                log.exception("inspection failed: the connection is cut")
                self._inspector.enforcer.connections.cut([self._owned])
            finally:
                self._moved.set()

    def _perform(self, command: commands.Command, waiting: deque[events.Event]) -> None:
        if isinstance(command, commands.StartHook):
            unfinished = self._run_hook(command)
            if unfinished is not None:
                self._await_hook(command, unfinished)
            elif command.blocking:
                waiting.append(events.HookCompleted(command))
        elif isinstance(command, commands.OpenConnection):
            task = asyncio.get_running_loop().create_task(
                self.open_connection(command), name="upstream"
            )
            self._owned.tasks.append(task)
            self.transports[command.connection] = server.ConnectionIO(handler=task)
        elif isinstance(command, commands.RequestWakeup):
            timer = asyncio.get_running_loop().create_task(self.wakeup(command), name="wakeup")
            self.wakeup_timer.add(timer)
        elif isinstance(command, commands.Log):
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
            (upward and len(one._paused_event_queue) > MAX_PAUSED_EVENTS)
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
                await unfinished
                await self.server_event(events.HookCompleted(hook))
            except Exception:
                log.exception("a hook failed: the connection is cut")
                self._inspector.enforcer.connections.cut([self._owned])
            finally:
                _drop_task(self._owned)

        task = asyncio.get_running_loop().create_task(finish(), name=f"hook {hook.name}")
        self._owned.tasks.append(task)

    def _run_hook(self, hook: commands.StartHook) -> Coroutine[None, None, None] | None:
        name = hook.name
        if name == "next_layer":
            _next_layer(cast("layer.NextLayer", hook.args()[0]))
        elif name in _TLS_HOOKS:
            getattr(self._inspector.tls, name)(*hook.args())
        else:
            run = getattr(self._inspector.addon, name, None)
            if run is not None:
                unfinished: Coroutine[None, None, None] | None = run(*hook.args())
                if name == "requestheaders" and refusal_of(hook.args()[0]) is not None:
                    self._end_soon()
                return unfinished
        return None

    def _end_soon(self) -> None:
        if self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._owned.client.abort)

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Their method with our dialer; a fault ends the connection, which would else wait for ever."""
        try:
            await self._open(command)
        except Exception:
            log.exception("an upstream could not be opened: the connection is cut")
            self._inspector.enforcer.connections.cut([self._owned])

    async def _open(self, command: commands.OpenConnection) -> None:
        # The gate is asked before the dial, since bytes that are neither TLS nor HTTP come here
        # unjudged, and again once the dial is done.
        inspector, owned, target = self._inspector, self._owned, command.connection
        address = target.address
        refusal = inspector.enforcer.decide(owned.identity)
        transport = None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=64 * 1024, loop=loop)
        protocol = StreamProtocol(reader, loop=loop)
        if address is None:
            refusal = failed()
        elif refusal is None:
            host, port = address[:2]
            dialled = await inspector.dialer.dial(host, port, owned.identity.agent, protocol)
            if isinstance(dialled, Refusal):
                refusal = dialled
            else:
                transport = dialled
                refusal = inspector.enforcer.decide(owned.identity)
        if transport is None or refusal is not None or self._is_severed():
            if transport is not None:
                transport.abort()
            self._not_opened(target)
            text = RefusedDialError.of(refusal or failed())
            target.error = text
            await self.server_event(events.OpenConnectionCompleted(command, text))
            return
        writer = GatedWriter(transport, protocol, reader, inspector.enforcer, owned, upward=True)
        owned.upstreams[:] = [side for side in owned.upstreams if side.fileno() >= 0]
        owned.upstreams.append(writer)
        target.side = writer
        target.state = ConnectionState.OPEN
        target.peername = transport.get_extra_info("peername")
        target.sockname = transport.get_extra_info("sockname")
        self.transports[target] = server.ConnectionIO(asyncio.current_task(), reader, writer)
        try:
            await self.server_event(events.OpenConnectionCompleted(command, None))
            await self.handle_connection(target)
        finally:
            _drop_task(owned)

    def _is_severed(self) -> bool:
        return self._owned.severed  # asked anew after every await

    def _not_opened(self, target: connection.Connection) -> None:
        self.transports.pop(target, None)
        _drop_task(self._owned)


def _drop_task(owned: Connection) -> None:
    task = asyncio.current_task()
    if task in owned.tasks:
        owned.tasks.remove(task)


_TLS_HOOKS = frozenset({"tls_clienthello", "tls_start_client", "tls_start_server"})


def _next_layer(undecided: layer.NextLayer) -> None:
    """What speaks inside a CONNECT that we read: TLS, then HTTP; else bytes, passed on unread."""
    context, data = undecided.context, undecided.data_client()
    inside_tls = any(isinstance(done, tls_layers.ClientTLSLayer) for done in context.layers)
    if not data:
        return
    if not inside_tls and data[0] == 0x16:
        outer = tls_layers.ServerTLSLayer(context)
        outer.child_layer = tls_layers.ClientTLSLayer(context)
        undecided.layer = outer
    elif context.client.alpn in (b"h2", b"http/1.1", b"http/1.0") or data[:3].isalpha():
        undecided.layer = Http(context, HTTPMode.transparent)
    else:
        owned: Connection = context.client.owned  # type: ignore[attr-defined]
        owned.kind = "tunnel"  # its receipt must not say that all of it was read
        owned.tally.requests += 1
        owned.tally.tunnelled = True
        undecided.layer = layers.TCPLayer(context, ignore=True)
