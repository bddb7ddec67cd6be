"""Name look-ups in threads of their own, so that slow DNS delays nobody but who asked.

A look-up cannot be interrupted: whoever waits for it may leave, but its place, of the few that each
agent has, is free again only when its thread has come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from haltwire.wire.names import AgentRef

THREADS = 64
PER_AGENT = 4

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
Answer = tuple[socket.AddressFamily, SocketAddress]
Resolve = Callable[[str, int], list[Answer]]


@dataclass(slots=True)
class _Share:
    """The places of one agent, kept while somebody waits for one or sits on one."""

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PER_AGENT))
    users: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    future: Future[list[Answer]]
    host: str
    port: int


class Lookups:
    """Resolves names for one event loop, at most four at once per agent."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        self._resolve = resolve or getaddrinfo
        self._shares: dict[AgentRef, _Share] = {}
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._running = 0

    async def find(self, host: str, port: int, agent: AgentRef) -> list[Answer]:
        """The whole answer set; socket.gaierror when there is none. The caller sets the time limit."""
        loop = asyncio.get_running_loop()
        share = self._shares.setdefault(agent, _Share())
        share.users += 1
        job = _Job(Future(), host, port)
        submitted = False

        def free(_: Future[list[Answer]]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the places with it
                loop.call_soon_threadsafe(self._free, agent, share)

        try:
            await share.places.acquire()
            self._running += 1
            job.future.add_done_callback(free)
            submitted = True
            self._submit(job)
            return await asyncio.wrap_future(job.future)
        finally:
            if not submitted:
                self._leave(agent, share)

    def close(self) -> None:
        """Let idle threads end. Busy ones are daemons: they never delay the end of the process."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _submit(self, job: _Job) -> None:
        self._jobs.put(job)
        if self._running > self._threads and self._threads < THREADS:
            # Not a ThreadPoolExecutor: the interpreter joins its threads at exit, and one of them
            # may sit in a resolver for half a minute.
            threading.Thread(target=self._work, name="lookup", daemon=True).start()
            self._threads += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(self._resolve(job.host, job.port))
            except BaseException as error:  # whoever waits gets it
                job.future.set_exception(error)

    def _free(self, agent: AgentRef, share: _Share) -> None:
        self._running -= 1
        share.places.release()
        self._leave(agent, share)

    def _leave(self, agent: AgentRef, share: _Share) -> None:
        share.users -= 1
        if share.users == 0:
            self._shares.pop(agent, None)


def getaddrinfo(host: str, port: int) -> list[Answer]:
    """Ask the system's resolver for stream addresses of both families."""
    # Bytes, since Python's IDNA codec refuses or rewrites some names that libc takes as they are.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]
