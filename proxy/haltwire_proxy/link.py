"""The link to the control server: one WebSocket, for ever reconnecting.

Order: a kill is cut, acknowledged, reported. Losing the link changes nothing at once; losing the
lease cuts everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp
from haltwire import __version__
from haltwire.wire import messages
from haltwire.wire.messages import (
    Bye,
    Delta,
    Hello,
    Renew,
    Renewed,
    Report,
    Snapshot,
    Usage,
)

from haltwire_proxy.clock import boottime, utc_now
from haltwire_proxy.control_host import ControlHost
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.residue import agent_residual_max
from haltwire_proxy.trouble import Trouble

log = logging.getLogger(__name__)
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 2.0
QUICK_RETRY_S, QUICK_FOR_S = 0.4, 10.0
"At first no pause is longer: a control server that is started anew is back within seconds, and agents wait."
USAGE_EVERY_S = 0.25
LEAST_PAUSE_S = 0.02
"Between two usage reports, also when new instances come in a crowd."
DEFAULT_LEASE_S = 1.0
CONNECT_WITHIN_S = 5.0
CLOSE_WITHIN_S = 0.5
SILENT_AT_LEAST_S = 2.0
"A link without a new lease for this long, and for a whole lease, is a dead one; its peer may never say so."
_MAX_MESSAGE = 64 * 1024 * 1024


class Link:
    """Keeps an enforcer in step with the control server."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        enforcer: Enforcer,
        control_url: str,
        key: str,
        proxy_id: str,
        on_ready: Callable[[], None],
        authority: str | None = None,
        control: ControlHost | None = None,
    ) -> None:
        self._session = session
        self._enforcer = enforcer
        self._trouble = Trouble(control_url)
        self._url = control_url.rstrip("/") + "/v1/proxies/connect"
        self._key = key
        self._proxy_id = proxy_id
        self._on_ready = on_ready
        self._authority = authority
        self._control = control
        self._ready = self._leased = False
        self._leaving = False
        self._sequence = 0
        self._lease_s = DEFAULT_LEASE_S
        self._new = asyncio.Event()
        enforcer.tallies.on_new = self._new.set
        self._drain_end: asyncio.TimerHandle | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._silent_s = 0.0
        "How long no lease has come, as counted in steps: a process that stood still has not waited."

    async def run(self) -> None:
        """Connect, follow, and connect again with backoff and jitter, until cancelled or bye is said."""
        delay, lost_at = FIRST_RETRY_S, boottime()
        self._enforcer.lease.watch()
        while True:
            try:
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    connected = await self._session.ws_connect(
                        self._url,
                        headers={"Authorization": f"Bearer {self._key}"},
                        max_msg_size=_MAX_MESSAGE,
                        compress=0,
                    )
                self._leased = False
                try:
                    await self._follow(connected)
                finally:
                    # A peer that is gone without a word closes nothing; when time is up, we do.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(CLOSE_WITHIN_S):
                            await connected.close()
                if self._leaving:
                    return
                self._trouble.failed(None)
                if self._leased:  # one that lets nobody in is not to be asked twenty times a second
                    delay, lost_at = FIRST_RETRY_S, boottime()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._trouble.failed(error)
            except Exception:
                # A fault here must not end the link for good: this proxy would refuse for ever.
                log.exception("the link failed")
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            is_short = boottime() - lost_at < QUICK_FOR_S
            delay = min(QUICK_RETRY_S if is_short else LAST_RETRY_S, delay * 2)

    async def say_bye(self) -> None:
        """Tell the control server that nothing passes here any more."""
        self._leaving = True
        if self._socket is not None and not self._socket.closed:
            try:
                await self._socket.send_str(messages.dumps(Bye(self._proxy_id)))
                await self._socket.close()
            except (aiohttp.ClientError, ConnectionError):
                log.warning("the control server was not told that this proxy stops")

    async def _follow(self, connected: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = connected
        self._silent_s = 0.0
        await connected.send_str(messages.dumps(self._hello()))
        try:
            async with asyncio.TaskGroup() as tasks:
                renewals = tasks.create_task(self._renew(connected), name="renew the lease")
                reports = tasks.create_task(self._report(connected), name="report usage")
                watch = tasks.create_task(self._watch_link(), name="watch the link")
                async for message in connected:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    await self._take(connected, message.data)
                renewals.cancel()
                reports.cancel()
                watch.cancel()
        except* (ConnectionError, TimeoutError, aiohttp.ClientError, ValueError) as failures:
            log.warning("link lost: %s", failures.exceptions[0])
        finally:
            self._socket = None

    async def _take(self, connected: aiohttp.ClientWebSocketResponse, text: str) -> None:
        message = messages.loads(text)
        if isinstance(message, Renewed):
            self._silent_s = 0.0
            self._enforcer.renewed(message)
            self._enforcer.lease.watch()
            self._tell_leased()
        elif isinstance(message, (Snapshot, Delta)):
            if isinstance(message, Snapshot) and self._control is not None:
                self._control.announced(message.settings)
            enforced = self._enforcer.apply(message)
            if isinstance(message, Snapshot):
                self._lease_s = message.settings.lease_ms / 1000
                await self._renew_now(connected)
                await self._report_all(connected)
            if enforced is not None:
                self._watch_drains()
                await connected.send_str(messages.dumps(enforced.ack))
                await self._send_reports(connected, enforced.reports())
            if self._enforcer.replica.needs_snapshot:
                log.warning("a change was missed: asking for a snapshot")
                await connected.close()

    def _tell_leased(self) -> None:
        if self._leased or self._enforcer.lease_left() <= 0:
            return
        self._leased = True
        self._trouble.over()
        if not self._ready:
            self._ready = True
            self._on_ready()

    def _watch_drains(self) -> None:
        if self._drain_end is not None:
            self._drain_end.cancel()
            self._drain_end = None
        left = self._enforcer.next_drain_end()
        if left is not None:
            loop = asyncio.get_running_loop()
            self._drain_end = loop.call_later(left + 0.001, self._end_drains)

    def _end_drains(self) -> None:
        self._enforcer.end_drains()
        self._new.set()
        self._watch_drains()

    async def _renew(self, connected: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 4)
            await self._renew_now(connected)

    async def _watch_link(self) -> None:
        """TimeoutError when the other side is silent: a new link may lead to one that is not."""
        while self._silent_s < max(SILENT_AT_LEAST_S, self._lease_s):
            step = self._lease_s / 4
            await asyncio.sleep(step)
            self._silent_s += step
        raise TimeoutError(f"the control server was silent for {self._silent_s:g} s")

    async def _renew_now(self, connected: aiohttp.ClientWebSocketResponse) -> None:
        view = self._enforcer.replica.view
        await connected.send_str(
            messages.dumps(
                Renew(
                    boottime(),
                    utc_now(),
                    view.epoch if view else None,
                    view.revision if view else 0,
                )
            )
        )

    async def _report(self, connected: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await asyncio.sleep(LEAST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(USAGE_EVERY_S):
                    await self._new.wait()
            self._new.clear()
            self._enforcer.connections.look_for_lost()
            await self._send_reports(connected, self._enforcer.changed_reports())
            tallies = self._enforcer.tallies
            instances, mismatches = tallies.take_changes(), tallies.take_mismatches()
            totals = tallies.take_totals()
            if instances or mismatches or totals:
                self._sequence += 1
                await connected.send_str(
                    messages.dumps(
                        Usage(
                            self._sequence,
                            instances,
                            mismatches,
                            self._enforcer.connections.count,
                            totals,
                        )
                    )
                )

    @staticmethod
    async def _send_reports(
        connected: aiohttp.ClientWebSocketResponse, reports: Iterable[Report]
    ) -> None:
        for report in reports:
            await connected.send_str(messages.dumps(report))

    async def _report_all(self, connected: aiohttp.ClientWebSocketResponse) -> None:
        self._sequence += 1
        everything = Usage(
            self._sequence,
            self._enforcer.tallies.all(),
            connections=self._enforcer.connections.count,
            totals=dict(self._enforcer.tallies.totals),
        )
        await connected.send_str(messages.dumps(everything))

    def _hello(self) -> Hello:
        view = self._enforcer.replica.view
        return Hello(
            proxy_id=self._proxy_id,
            host=socket.gethostname(),
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            pid=os.getpid(),
            pid_namespace=_pid_namespace(),
            started_ticks=_started_ticks(),
            version=__version__,
            epoch=view.epoch if view else None,
            revision=view.revision if view else 0,
            head_hash=view.head_hash if view else None,
            orders=view.orders if view else (),
            token_ids=tuple(view.token_ids) if view else None,
            authority=self._authority,
            on_stale=self._enforcer.lease.rule.on_stale,
            agent_residual_max=agent_residual_max(self._enforcer.limits),
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started_ticks() -> int:
    # Field 22 of proc_pid_stat(5), counted behind the command name, which may hold spaces.
    stat = _read("/proc/self/stat")
    return int(stat.rpartition(")")[2].split()[19]) if stat else 0
