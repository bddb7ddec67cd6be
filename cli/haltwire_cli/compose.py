"""What one command starts: both halves or one of them; their sockets, certificates and instructions.

Besides the children's entry (serve.py) this is the only module that knows both halves. It imports them
where it needs them, so that `haltwire --help` needs neither.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from haltwire_cli.certificates import addresses_of_this_host, names_of, serves_tls
from haltwire_cli.child import Child
from haltwire_cli.config import KEEP
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.listen import (
    ANYWHERE,
    Address,
    address_of,
    bind,
    is_exposed,
    is_loopback,
    url_of,
)
from haltwire_cli.listener_tls import LOOK_S, Issued, ListenerTls, Published, keep
from haltwire_cli.plans import ControlPlan, Plan, ProxyPlan
from haltwire_cli.port import Port
from haltwire_cli.supervisor import ChildFailedError, supervise

PROXY_BACKLOG = 4096
"mitmproxy's 100 costs a second per burst of 50 connections (SYN retransmission); Linux caps at somaxconn, 4096."
CONTROL_BACKLOG = 1024
RENEWAL_LOOK_S = 60.0
"How often our own certificate's age and this machine's addresses are looked at."

WARN_EVERY_S = 600.0
_KEEPS = 'UNSAFE: traffic goes on when the control server is silent, because of on-stale = "keep": a kill that does not reach this proxy stops nothing here, and is never confirmed.'

Ready = Callable[[Endpoints], None]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets, bound before anything is started; every worker inherits the same one."""

    control: socket.socket | None
    proxy: socket.socket | None

    def close(self) -> None:
        """Let go of them. Idempotent."""
        for listener in (self.control, self.proxy):
            if listener is not None:
                listener.close()


def run(plan: Plan, ready: Ready, tell: Tell) -> None:
    """Run what is planned until a signal; Failure when it cannot be started."""
    home = Home(plan.data_dir)
    with home.claimed() as claim:
        listeners = _listeners(plan)
        try:
            asyncio.run(_serve_until_stopped(plan, home, claim, listeners, ready, tell))
        except ChildFailedError as error:
            raise Failure(
                f"{error}; everything is stopped. What it said itself is above."
            ) from error
        except OSError as error:
            raise Failure(f"{plan.data_dir} cannot be used: {error}.") from error
        finally:
            listeners.close()


def _listeners(plan: Plan) -> Listeners:
    control = _bind(plan.control, CONTROL_BACKLOG, "--control-listen")
    try:
        return Listeners(control, _bind(plan.proxy, PROXY_BACKLOG, "--proxy-listen"))
    except BaseException:
        if control is not None:
            control.close()
        raise


def _bind(half: ControlPlan | ProxyPlan | None, backlog: int, option: str) -> socket.socket | None:
    if half is None:
        return None
    try:
        return bind(half.listen, backlog)
    except OSError as error:
        raise Failure(
            f"{error.strerror or error}; choose another address with {option}."
        ) from error


async def _serve_until_stopped(
    plan: Plan, home: Home, claim: int, listeners: Listeners, ready: Ready, tell: Tell
) -> None:
    from haltwire_proxy.authority import AuthorityError, ensure_ca

    try:
        ca_file = ensure_ca(plan.data_dir)
        tls = _listener_tls(plan, listeners)
    except AuthorityError as error:
        raise Failure(f"{error}.") from error
    control = address_of(listeners.control) if listeners.control else None
    if control and not (tls.control or is_loopback(control)):
        tell(
            f"INSECURE: {control} can be reached from other machines, and keys travel to it unencrypted, because of --insecure."
        )
    if plan.remote and is_exposed(plan.remote.url):
        tell(
            f"INSECURE: {plan.remote.url} is not encrypted: whoever is on the way can take the key, and lift every kill for this proxy; because of --insecure."
        )
    endpoints = Endpoints(
        url_of(address_of(listeners.proxy)) if listeners.proxy else None,
        url_of(control, "https" if tls.control else "http") if control else None,
        str(ca_file),
        str(tls.pins) if tls.control and tls.pins else None,
    )

    def on_ready() -> None:
        home.publish(endpoints)
        ready(endpoints)

    loop = asyncio.get_running_loop()
    background = [
        loop.create_task(keep(tls.look, tls.look_every_s, tell), name="keep certificates")
    ]
    if plan.proxy and plan.proxy.on_stale == KEEP:
        background.append(loop.create_task(_warn(tell), name="warn of keep"))
    try:
        stages = _Stages(plan, claim, listeners, tls, endpoints)
        # Once the workers and the control server have closed theirs, too, whoever connects is refused.
        await supervise(stages.all(), on_ready, listeners.close, tell)
    finally:
        home.unpublish()  # not earlier: an operator may still have to stop what drains
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


async def _warn(tell: Tell) -> None:
    while True:
        tell(_KEEPS)
        await asyncio.sleep(WARN_EVERY_S)


def _listener_tls(plan: Plan, listeners: Listeners) -> ListenerTls:
    from haltwire_proxy.leaf import RENEWED_AFTER, issue_leaf

    halves = ((plan.control, listeners.control), (plan.proxy, listeners.proxy))
    listens = tuple((half.listen, address_of(socket)) for half, socket in halves if half and socket)
    control = (
        plan.control is not None
        and listeners.control is not None
        and serves_tls(address_of(listeners.control), plan.own_tls, plan.control.insecure)
    )
    if plan.own_tls is not None:
        published = Published(plan.own_tls, plan.data_dir / "public" / "control.pem")
        return ListenerTls(plan.own_tls, control, published.file, published.look, LOOK_S)
    issued = Issued(
        partial(issue_leaf, plan.data_dir),
        lambda: names_of(listens, socket.gethostname()),
        RENEWED_AFTER,
    )
    return ListenerTls(issued.pair, control, None, issued.look, RENEWAL_LOOK_S)


def _addresses(bound: Address) -> list[str]:
    """Where other machines reach a listener."""
    if bound.host in ANYWHERE:
        return addresses_of_this_host()
    return [] if is_loopback(bound) else [bound.host]


class _Stages:
    """The children, in the order of their start. Their instructions are the only place where a key appears."""

    def __init__(
        self,
        plan: Plan,
        claim: int,
        listeners: Listeners,
        tls: ListenerTls,
        endpoints: Endpoints,
    ) -> None:
        self._plan, self._claim, self._listeners = plan, claim, listeners
        self._tls, self._endpoints = tls, endpoints
        self._pair = {"certificate": str(tls.pair.certificate), "key": str(tls.pair.key)}
        self._local_key = f"hwk_{secrets.token_urlsafe(32)}"
        self._environment = {
            name: value
            for name, value in os.environ.items()
            # mitmproxy would write the keys of all that it reads inside to where the others say.
            if not name.startswith("HALTWIRE_")
            and not name.endswith("SSLKEYLOGFILE")
            and name not in plan.secret_variables
        }

    def all(self) -> tuple[tuple[Child, ...], ...]:
        """The control server first, then the workers."""
        control, proxy = self._listeners.control, self._listeners.proxy
        stages: list[tuple[Child, ...]] = []
        if self._plan.control and control:
            stages.append((self._control(self._plan.control, control),))
        if self._plan.proxy and proxy:
            stages.append(self._workers(self._plan.proxy, proxy))
        return tuple(stages)

    def _child(
        self,
        name: str,
        role: str,
        listener: socket.socket,
        instructions: dict[str, Any],
        hung_after_s: float | None,
    ) -> Child:
        return Child(
            name=name,
            # -P: a file in the working directory must never stand in for one of our modules.
            argv=(sys.executable, "-P", "-O", "-m", "haltwire_cli.serve", role),
            instructions={
                **instructions,
                "data_dir": str(self._plan.data_dir),
                "listen_fd": listener.fileno(),
            },
            # Children keep the claim open too: whoever wants this directory next waits for the last of them.
            fds=(listener.fileno(), self._claim),
            environment=self._environment,
            hung_after_s=hung_after_s,
        )

    def _control(self, control: ControlPlan, listener: socket.socket) -> Child:
        proxy = self._listeners.proxy
        return self._child(
            "the control server",
            "control",
            listener,
            {
                "lease_ms": round(control.lease_s * 1000),
                "local_proxy_key": self._local_key if proxy else "",
                "proxy_url": control.proxy_url or self._endpoints.proxy_url or "",
                "proxy_anywhere": not control.proxy_url
                and proxy is not None
                and address_of(proxy).host in ANYWHERE,
                "addresses": _addresses(address_of(listener)),
                "tokens": [(one.selector, one.tls, one.digest) for one in control.tokens],
                "admin_key": control.admin_key or "",
                "tls": self._pair if self._tls.control else None,
            },
            control.hung_after_s,
        )

    def _workers(self, proxy: ProxyPlan, listener: socket.socket) -> tuple[Child, ...]:
        address = address_of(listener)
        own = [address]
        if self._listeners.control:
            own.append(address_of(self._listeners.control))
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "localhost"
        instructions = {
            **self._to_control(),
            "listener_tls": self._pair,
            "tls": proxy.tls,
            "tunnel_hosts": proxy.tunnel_hosts,
            "upstream_ca": str(proxy.upstream_ca) if proxy.upstream_ca else None,
            "own_addresses": [(one.host, one.port) for one in own],
            "allow_to": proxy.allow_to,
            "connect_ports": proxy.connect_ports,
            "limits": proxy.limits,
            "on_stale": proxy.on_stale,
            "hold_for_s": proxy.hold_for_s,
            "beyond_loopback": not is_loopback(address),
            "drain_s": proxy.drain_s,
        }
        port = Port(listener)
        workers = (
            self._child(
                f"proxy worker {number}",
                "proxy",
                listener,
                {**instructions, "proxy_id": f"{host}-{number}"},
                proxy.hung_after_s,
            )
            for number in range(1, proxy.workers + 1)
        )
        return tuple(replace(worker, drain_s=proxy.drain_s, port=port) for worker in workers)

    def _to_control(self) -> dict[str, Any]:
        """How a worker reaches the control server, whom it takes for it, and what it shows there."""
        remote = self._plan.remote
        if remote is not None:
            ca_file = str(remote.ca_file) if remote.ca_file else None
            is_https = remote.url.startswith("https:")
            return {
                "control_url": remote.url,
                "control_trust": ("authority", ca_file) if is_https else None,
                "proxy_key": remote.key,
                "wait_for_control": False,
            }
        pins = self._endpoints.control_certificate
        ours = ("pins", pins) if pins else ("ours", self._endpoints.ca_file)
        return {
            "control_url": self._endpoints.control_url,
            "control_trust": ours if self._tls.control else None,
            "proxy_key": self._local_key,
        }
