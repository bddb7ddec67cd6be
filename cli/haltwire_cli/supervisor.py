"""Processes: start them stage by stage, start again what dies, stop them all. It knows nothing of what they do.

Guarantees, in this order:
1. A child gets its instructions as one line on stdin and never in its arguments or environment.
2. stdin stays open as long as this process lives: its end tells the child that nobody watches it.
3. Children live in sessions of their own, so that a terminal's Ctrl-C reaches this process alone.
4. After the first signal every child is gone within the sum of its stages' grace; after the second, at once.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0
STEADY_AFTER_S = 10.0
"A child that lived this long is started again without delay growing any further."
MAX_FAILED_STARTS = 10
"With delays of 0.1 s doubling up to 5 s: half a minute in which a full disk may be cleared."
MAX_LINE_BYTES = 65_536
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Child:
    """How to start one process, and how long it may take to start and to stop."""

    name: str
    argv: tuple[str, ...]
    instructions: Mapping[str, Any]
    fds: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_within_s: float = 30.0
    stop_within_s: float = 3.0


class ChildFailedError(Exception):
    """Raised by `supervise` when a child cannot be started; the sentence names it."""


async def supervise(
    stages: Sequence[Sequence[Child]],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
    tell: Callable[[str], None],
) -> None:
    """Run the children until SIGINT, SIGTERM or SIGHUP; each stage is ready before the next one starts.

    `on_ready` is called once, when all are ready; `on_stop` once, before the first child is stopped.
    """
    running = [[_Running(child, tell) for child in stage] for stage in stages]
    every = [one for stage in running for one in stage]
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            for one in every:
                one.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, asked)
    try:
        if await _unless(stop, _start(running)):
            on_ready()
            await _unless(stop, _keep(every))
    finally:
        on_stop()
        stop.set()
        for stage in reversed(running):
            await asyncio.gather(*(one.stop() for one in stage))


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work to its end and say True, or drop it when the stop is asked for."""
    loop = asyncio.get_running_loop()
    tasks = loop.create_task(work), loop.create_task(stop.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return False
        tasks[0].result()
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _start(stages: Sequence[Sequence[_Running]]) -> None:
    for stage in stages:
        for problem in await asyncio.gather(*(one.start() for one in stage)):
            if problem:
                raise ChildFailedError(problem)


async def _keep(every: Sequence[_Running]) -> None:
    problem: ChildFailedError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for one in every:
                group.create_task(one.keep(), name=f"keep {one.child.name}")
    except* ChildFailedError as failed:
        problem = next(e for e in failed.exceptions if isinstance(e, ChildFailedError))
    if problem:
        raise problem


class _Running:
    """One child, and the process that it is at the moment."""

    def __init__(self, child: Child, tell: Callable[[str], None]) -> None:
        self.child = child
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._started = 0.0
        self._drain: asyncio.Task[None] | None = None

    async def start(self) -> str | None:
        """Start the process and wait until it says that it is ready; otherwise the sentence that tells why not."""
        self._started = time.monotonic()
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self.child.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=self.child.fds,
                env=dict(self.child.environment),
                start_new_session=True,
                limit=MAX_LINE_BYTES,
            )
        except OSError as error:
            return f"{self.child.name} could not be started: {error}"
        try:
            async with asyncio.timeout(self.child.start_within_s):
                ready = await self._handshake(process)
        except TimeoutError:
            problem = f"was not ready within {self.child.start_within_s:g} s"
        else:
            if ready:
                self._drain = asyncio.get_running_loop().create_task(_discard(process))
                return None
            # Closing its stdout is not ending: a child that said no is not waited for either.
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 1.0)
            problem = f"ended before it was ready ({_ending(process.returncode)})"
        self.kill()
        await process.wait()
        return f"{self.child.name} {problem}"

    async def keep(self) -> None:
        """Start it again whenever it ends; ChildFailedError when that fails too often in a row."""
        delay, failed = FIRST_DELAY_S, 0
        while self._process is not None:
            code = await self._process.wait()
            if time.monotonic() - self._started > STEADY_AFTER_S:
                delay = FIRST_DELAY_S
            problem: str | None = f"{self.child.name} ended ({_ending(code)})"
            while problem:
                self._tell(f"{problem}; starting it again in {delay:g} s")
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY_S)
                problem = await self.start()
                failed = failed + 1 if problem else 0
                if problem and failed >= MAX_FAILED_STARTS:
                    raise ChildFailedError(f"{problem}, {failed} times in a row")
            self._tell(f"{self.child.name} is back")

    async def stop(self) -> None:
        """Ask it to end, wait for its grace, then end it."""
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self.child.stop_within_s)
            except TimeoutError:
                self._tell(f"{self.child.name} did not stop in time and was killed")
                self.kill()
                await process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)

    def kill(self) -> None:
        """End it now."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _handshake(self, process: asyncio.subprocess.Process) -> bool:
        if process.stdin is None or process.stdout is None:
            return False
        with suppress(ConnectionError):
            process.stdin.write(json.dumps(self.child.instructions).encode() + b"\n")
            await process.stdin.drain()
        # Lines before the answer are a library's chatter, not ours.
        while line := await process.stdout.readline():
            with suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("ready") is True:
                    return True
        return False


async def _discard(process: asyncio.subprocess.Process) -> None:
    # A pipe that nobody reads fills up, and then the child stands still at its next print.
    while process.stdout is not None and await process.stdout.read(MAX_LINE_BYTES):
        pass


def _ending(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
