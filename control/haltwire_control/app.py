"""The control server as a process part: opens the data directory, serves, and closes everything again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from haltwire import __version__

from haltwire_control.admin_api import AdminApi
from haltwire_control.agents_api import AgentsApi
from haltwire_control.api import Api
from haltwire_control.auth import without_secrets
from haltwire_control.authorities import Authorities
from haltwire_control.calls import BODY_LIMIT, Gatekeeper, Route
from haltwire_control.configured import Configured
from haltwire_control.credentials import Credentials
from haltwire_control.datadir import DATABASE, LEDGER, DataDirectory
from haltwire_control.errors import ApiError, api_error
from haltwire_control.events import EventsApi
from haltwire_control.expiry import Expiry
from haltwire_control.fencing import Fencing
from haltwire_control.following import Following
from haltwire_control.killing import Killing
from haltwire_control.ledger_file import LedgerFile
from haltwire_control.openapi import openapi
from haltwire_control.perimeter import Runner, secure
from haltwire_control.public_api import PublicApi
from haltwire_control.recovering import note_cut_short
from haltwire_control.recovery_api import RecoveryApi
from haltwire_control.routes import route_table
from haltwire_control.service import Service, steady
from haltwire_control.sqlite import SqliteStore

log = logging.getLogger(__name__)
SHUTDOWN_S = 0.5
"Answers under way get this long; whoever wants the process gone waits for a second."
SWITCH_S = 0.0005
"How long one thread may keep the interpreter from another; Python's own choice is ten times that."
HANDSHAKE_S = 10.0
"How long a client may take for its TLS handshake."
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """What a control server is told by whoever starts it."""

    data_dir: str
    listen_fd: int
    "A bound and listening socket."
    lease_ms: int = 1000
    local_proxy_key: str = field(default="", repr=False)
    "Random per start and only in memory: lets in the workers that were started with it."
    proxy_url: str = ""
    proxy_anywhere: bool = False
    "Whether the proxy listens on every address of this machine."
    addresses: tuple[str, ...] = ()
    "Where other machines reach the listener: proxies let no agent go there."
    tokens: tuple[tuple[str, str | None, str], ...] = ()
    "Selector, TLS and digest of tokens that are to exist, as somebody else has made them."
    admin_key: str = field(default="", repr=False)
    "The secret of an admin's key that somebody else has made."
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    "What the listener speaks; None for plain HTTP."
    stop_fd: int = 0
    "When this ends, the server stops."


async def serve(config: ControlConfig, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or the end of `stop_fd`."""
    # A reader that checks a million hashes must not keep a kill waiting for the interpreter.
    sys.setswitchinterval(SWITCH_S)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def read() -> None:
        if not os.read(config.stop_fd, 4096):
            loop.remove_reader(config.stop_fd)
            stop.set()

    async with control_server(config):
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_reader(config.stop_fd, read)
        try:
            on_ready()
            await stop.wait()
        finally:
            loop.remove_reader(config.stop_fd)
            loop.remove_signal_handler(signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Running:
    """A control server that serves."""

    service: Service
    killing: Killing
    routes: list[Route]
    application: web.Application


@asynccontextmanager
async def control_server(config: ControlConfig) -> AsyncIterator[Running]:
    """A control server that serves while the context is open."""
    async with AsyncExitStack() as stack:
        directory = DataDirectory(config.data_dir)
        stack.callback(directory.release)
        directory.check_whole()
        store = SqliteStore(directory.private(DATABASE))
        stack.push_async_callback(store.close)
        ledger_path = directory.private(LEDGER)
        ledger_file = store.reserve.opened(lambda: LedgerFile(ledger_path))
        stack.push_async_callback(ledger_file.close)
        service = Service(store, ledger_file.ledger, config.lease_ms)
        service.hub.address = (tuple(config.addresses), _port(config.listen_fd))
        service.start()
        await service.begin_leases()
        killing, credentials = Killing(service), Credentials(service)
        await killing.start()
        await Configured(service).settle(directory, config.tokens, config.admin_key)
        await credentials.ensure_admin(directory)
        await note_cut_short(service)
        background = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [
            background.create_task(work, name=name)
            for work, name in (
                (service.run(), "housekeeping"),
                (killing.proving.follow(), "complete receipts"),
                (Fencing(service.hub, steady).follow(), "end leases in time"),
                (Expiry(service, killing).follow(), "end orders in time"),
                (ledger_file.follow(), "write the ledger"),
            )
        ]
        authorities = Authorities(directory, has_proxy=bool(config.local_proxy_key))
        public = PublicApi(service, Following(service, config.lease_ms), authorities)
        routes = route_table(
            AgentsApi(service),
            Api(service, killing),
            AdminApi(service, credentials, config.proxy_url, config.proxy_anywhere),
            EventsApi(service),
            public,
            RecoveryApi(service),
        )
        public.document = openapi(routes, __version__)
        app = application(routes, Gatekeeper(service, config.local_proxy_key))
        runner = Runner(app, SHUTDOWN_S)
        await runner.setup()
        # Not aiohttp's SockSite: it gives a handshake a minute.
        server = await asyncio.get_running_loop().create_server(
            _factory(runner),
            sock=socket.socket(fileno=config.listen_fd),
            ssl=config.tls,
            ssl_handshake_timeout=HANDSHAKE_S if config.tls else None,
            backlog=BACKLOG,
        )
        try:
            yield Running(service, killing, routes, app)
        finally:
            server.close()
            service.hub.drop_links("the control server stops")
            await runner.cleanup()
            for task in tasks:
                task.cancel()


def _port(listen_fd: int) -> int:
    with socket.socket(fileno=os.dup(listen_fd)) as listener:
        return int(listener.getsockname()[1])


def _factory(runner: web.AppRunner) -> web.Server:
    if runner.server is None:
        raise RuntimeError("the runner has not been set up")
    return runner.server


def application(routes: list[Route], gatekeeper: Gatekeeper) -> web.Application:
    """The routes as aiohttp serves them."""
    app = web.Application(client_max_size=BODY_LIMIT, middlewares=[_answer_errors])
    app.on_response_prepare.append(secure)
    for route in routes:
        path = route.path.replace("{agent}", "{agent:.+}")
        app.router.add_route(route.method, path, _handler(route, gatekeeper))
    return app


def _handler(
    route: Route, gatekeeper: Gatekeeper
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await route.handler(await gatekeeper.admit(route, request))

    return handle


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:
        known = api_error(error)
        if known is not None:
            return known.response()
        log.exception("%s %s failed", request.method, without_secrets(request.path))
        return ApiError(
            500, "internal_error", "the control server failed; its log says how"
        ).response()
