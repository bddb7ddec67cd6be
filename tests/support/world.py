"""A worker's parts in this process, told directly what is in force: no control server, real sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiohttp
from haltwire.wire.messages import Delta, Renewed, Settings, Snapshot, TokenRule
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_proxy.addon import Addon
from haltwire_proxy.agent_api import AgentApi
from haltwire_proxy.authority import ensure_ca, upstream_roots
from haltwire_proxy.clock import boottime, utc_now
from haltwire_proxy.destinations import Dialer, Rules
from haltwire_proxy.door import Door
from haltwire_proxy.enforcer import Enforced, Enforcer
from haltwire_proxy.inspector import Inspector
from haltwire_proxy.lobby import inner_lobby
from haltwire_proxy.overload import Overload
from haltwire_proxy.services import Services
from haltwire_proxy.staleness import DEFAULT, Rule

SECRET = "hwa_" + "s" * 43
INTERCEPTED = "hwa_" + "i" * 43
BYSTANDER = "hwa_" + "b" * 43


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def rule(secret: str, selector: str, tls: str | None = None) -> TokenRule:
    return TokenRule("T" + secret[4:8].upper(), digest(secret), Selector.parse(selector), tls)


TOKENS = (
    rule(SECRET, "agent://acme/prod/mailer"),
    rule(INTERCEPTED, "agent://acme/prod/reader", "intercept"),
    rule(BYSTANDER, "agent://acme/prod/bystander"),
)


def kill(
    selector: str,
    revision: int = 2,
    reason: str | None = "wrong e-mails",
    mode: str = "cut",
    **more: Any,
) -> Kill:
    return Kill(
        f"K{revision:012d}",
        Selector.parse(selector),
        mode,
        reason,
        "key:ada",
        datetime.now(timezone.utc),
        revision,
        **more,
    )


def basic(label: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{label}:{secret}".encode()).decode()


class World:
    """One worker on a port of its own; `kill`, `resume` and `lose_lease` act at once.

    Its boottime is the machine's, moved by `slept`: as if the process had not run for so long.
    """

    def __init__(
        self,
        data_dir: Path,
        upstream_ca: Path | None,
        control_url: str,
        listener_tls: ssl.SSLContext | None = None,
        rule: Rule = DEFAULT,
    ) -> None:
        self.data_dir = data_dir
        self._listener_tls = listener_tls
        self._upstream_ca = upstream_ca
        self._control_url = control_url
        self._rule = rule
        self.revision = 1
        self.slept = 0.0
        self.granting = True
        "Whether a change comes with a lease on it."

    def boottime(self) -> float:
        return boottime() + self.slept

    async def __aenter__(self) -> World:
        self.ca_file = ensure_ca(self.data_dir)
        self.session = aiohttp.ClientSession()
        self.enforcer = Enforcer(self.boottime, utc_now, rule=self._rule)
        self.dialer = Dialer(Rules(beyond_loopback=False, allow_to=(), own=()))
        self.agent_api = AgentApi(self.session, self._control_url, self.ca_file)
        self.inspector = Inspector(
            self.enforcer,
            self.dialer,
            Addon(self.enforcer, self.agent_api),
            self.data_dir / "ca",
            upstream_roots(self.data_dir, self._upstream_ca),
        )
        self.services = Services(
            self.enforcer,
            self.dialer,
            self.inspector,
            self.agent_api,
            "tunnel",
            (),
            self._listener_tls,
        )
        if self.granting:
            self.snapshot()
            self.renew()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Door(self.services), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.enforcer.connections.cut(self.enforcer.connections.everything())
        for door in tuple(self.services.doors):
            door.abort()
        for call in tuple(self.agent_api.sessions):
            call.close()
        await asyncio.gather(*self.inspector.handlers, return_exceptions=True)
        await self.session.close()
        self.dialer.close()

    def proxy_url(self, label: str, secret: str) -> str:
        return f"http://{label}:{secret}@127.0.0.1:{self.port}"

    def snapshot(self, *orders: Kill, tokens: tuple[TokenRule, ...] = TOKENS) -> Enforced | None:
        return self.enforcer.apply(
            Snapshot("epoch", self.revision, orders, (), tokens, Settings(lease_ms=1000))
        )

    def renew(self, lease_ms: int = 3_600_000) -> None:
        self.enforcer.renewed(Renewed(self.boottime(), "epoch", self.revision, lease_ms))

    def limit(self, **limits: float) -> None:
        """Set limits for what comes from now on; what is counted begins anew."""
        self.enforcer.limits = replace(self.enforcer.limits, **limits)
        self.services.overload = Overload(self.enforcer, self.agent_api)
        self.inspector.lobby = inner_lobby(self.enforcer.limits)

    def kill(
        self, selector: str, reason: str | None = "wrong e-mails", mode: str = "cut", **more: Any
    ) -> Enforced:
        order = kill(selector, self.revision + 1, reason, mode, **more)
        enforced = self._delta(kills=(order,))
        assert enforced is not None
        self._watch_drains()
        return enforced

    def hold(self, selector: str) -> Enforced:
        return self.kill(selector, mode="hold")

    def drain(self, selector: str, grace_s: float = 30.0) -> Enforced:
        return self.kill(selector, mode="drain", grace_s=grace_s)

    def resume(self, kill_id: str) -> Enforced | None:
        return self._delta(lifted=(kill_id,))

    def revoke(self, token_id: str) -> None:
        self._delta(revoked=(token_id,))

    def lose_lease(self) -> None:
        """So long ago that nothing is held any more; nobody has noticed."""
        self.granting = False
        self.enforcer.replica._lease_end_boot = 0.0

    def go_stale(self, *, noticed: bool = True) -> None:
        """The lease ends now."""
        self.granting = False
        self.enforcer.replica._lease_end_boot = self.boottime()
        if noticed:
            self.enforcer.lease.look()

    def _watch_drains(self) -> None:
        left = self.enforcer.next_drain_end()
        if left is not None:
            asyncio.get_running_loop().call_later(left + 0.001, self.enforcer.end_drains)

    def _delta(self, **changes) -> Enforced | None:
        self.revision += 1
        enforced = self.enforcer.apply(Delta(self.revision - 1, self.revision, **changes))
        if self.granting:
            self.renew()
        return enforced


async def raw_request(port: int, request: bytes, timeout: float = 5) -> bytes:
    """Send bytes to the proxy and read until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), timeout)
    finally:
        writer.transport.abort()
