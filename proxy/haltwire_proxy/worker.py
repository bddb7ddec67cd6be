"""One proxy worker: its parts put together, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import aiohttp

from haltwire_proxy.addon import Addon
from haltwire_proxy.agent_api import AgentApi
from haltwire_proxy.authority import ensure_ca, upstream_roots
from haltwire_proxy.clock import boottime, utc_now
from haltwire_proxy.control_host import ControlHost, LearningResolver
from haltwire_proxy.destinations import Dialer, Rules
from haltwire_proxy.door import Door
from haltwire_proxy.draining import drain
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.inspector import Inspector
from haltwire_proxy.limits import MOST_DESCRIPTORS, parse
from haltwire_proxy.link import Link
from haltwire_proxy.services import Services
from haltwire_proxy.staleness import Rule

log = logging.getLogger(__name__)
BACKLOG = 4096
"asyncio's default of 100 overflows under a burst of clients: p95 1 s instead of 22 ms."


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All that a worker is told by whoever starts it."""

    proxy_id: str
    listen_fd: int
    control_url: str
    proxy_key: str
    data_dir: str
    tls: str = "tunnel"
    tunnel_hosts: tuple[str, ...] = ()
    upstream_ca: str | None = None
    own_addresses: tuple[tuple[str, int], ...] = ()
    "Our own listeners: never reachable through the proxy."
    allow_to: tuple[str, ...] = ()
    beyond_loopback: bool = False
    connect_ports: tuple[int, ...] = ()
    limits: tuple[str, ...] = ()
    "NAME=VALUE, see limits.py."
    on_stale: str = "hold"
    "`hold`, `refuse` or `keep`: what becomes of traffic beyond the lease, see staleness.py."
    hold_for_s: float = 10.0
    control_tls: ssl.SSLContext | None = None
    "Whom to take for the control server, when its URL is https."
    listener_tls: ssl.SSLContext | None = None
    "For clients that speak TLS to the proxy itself."
    drain_s: float = 0.0
    "How long what is under way may go on when it is to stop."
    stop_fd: int = 0
    "Its end means that the parent is gone."
    wait_for_control: bool = True
    "Whether it is ready only once it has a lease; without, nothing passes until then all the same."


async def serve(config: WorkerConfig, on_ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or the end of `stop_fd`; then let end what is under way, cut what is left and say bye.

    Nobody waits for what is under way after a second SIGTERM, or when the parent is gone.
    """
    data_dir = Path(config.data_dir)
    ca_file = ensure_ca(data_dir)
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: (hurry if stop.is_set() else stop).set())
    _watch_parent(loop, config.stop_fd, stop, hurry)
    async with AsyncExitStack() as closing:
        control = ControlHost(config.control_url)
        connector = aiohttp.TCPConnector(
            ssl=config.control_tls or True, resolver=LearningResolver(control)
        )
        session = await closing.enter_async_context(
            aiohttp.ClientSession(trust_env=False, connector=connector)
        )
        rule = Rule(config.on_stale, config.hold_for_s)
        enforcer = Enforcer(boottime, utc_now, parse(config.limits), most_descriptors(), rule)
        dialer = Dialer(
            Rules(
                beyond_loopback=config.beyond_loopback,
                allow_to=tuple(ip_network(cidr) for cidr in config.allow_to),
                own=tuple(config.own_addresses),
                control=control,
                connect_ports=tuple(config.connect_ports),
            )
        )
        agent_api = AgentApi(session, config.control_url, ca_file)
        inspector = Inspector(
            enforcer,
            dialer,
            Addon(enforcer, agent_api),
            data_dir / "ca",
            upstream_roots(data_dir, Path(config.upstream_ca) if config.upstream_ca else None),
        )
        services = Services(
            enforcer,
            dialer,
            inspector,
            agent_api,
            config.tls,
            config.tunnel_hosts,
            config.listener_tls,
        )
        leased = on_ready if config.wait_for_control else lambda: None
        link = Link(
            session,
            enforcer,
            config.control_url,
            config.proxy_key,
            config.proxy_id,
            leased,
            ca_file.read_text(),
            control,
        )
        # mitmproxy's modules are a hundred thousand objects that never die: no collection goes through them again.
        gc.freeze()
        listener = socket.socket(fileno=config.listen_fd)
        # It may have been shut, while connections of earlier workers still linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server = await loop.create_server(lambda: Door(services), sock=listener, backlog=BACKLOG)
        following = loop.create_task(link.run(), name="link")
        if not config.wait_for_control:
            on_ready()
        try:
            await stop.wait()
            server.close()
            await drain(services, config.drain_s, hurry)
        finally:
            server.close()
            services.closed = True
            enforcer.connections.cut(enforcer.connections.everything())
            for door in tuple(services.doors):
                door.abort()
            for call in tuple(agent_api.sessions):
                call.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.say_bye(), 2)
            following.cancel()
            await asyncio.gather(following, *inspector.handlers, return_exceptions=True)


def most_descriptors() -> int:
    """How many descriptors this process may have, after having asked for all that the system grants.

    A login shell's 1,024 is made for programs that call select(); we and what we start do not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, MOST_DESCRIPTORS) if hard != resource.RLIM_INFINITY else MOST_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS grants less than it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MOST_DESCRIPTORS)


def _watch_parent(loop: asyncio.AbstractEventLoop, fd: int, *events: asyncio.Event) -> None:
    def readable() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            for event in events:
                event.set()

    loop.add_reader(fd, readable)
