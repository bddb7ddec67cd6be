"""One child of a supervisor: started, asked whether it lives, started again when it ends or hangs, and stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from haltwire_cli.notify import VARIABLES
from haltwire_cli.port import Port
from haltwire_cli.pulse import Pulse

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0
STEADY_AFTER_S = 10.0
"A child that lived this long is started again without delay growing any further."
MAX_LINE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Child:
    """How to start one process, and how long it may take to start, to answer and to stop."""

    name: str
    argv: tuple[str, ...]
    instructions: Mapping[str, Any]
    fds: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_within_s: float = 30.0
    stop_within_s: float = 3.0
    drain_s: float = 0.0
    "How long it was told to let go on what is under way when it is to stop; `stop_within_s` comes on top."
    hung_after_s: float | None = None
    "Once it is ready: how long it may not answer before it is killed. None for ever."
    port: Port | None = None
    "What it shares with others and serves; one of `fds` is its socket."

    @property
    def stops_within_s(self) -> float:
        """How long it may take to stop, all in all."""
        return self.drain_s + self.stop_within_s


class Running:
    """One child, and the process that it is at the moment."""

    def __init__(self, child: Child, tell: Callable[[str], None]) -> None:
        self.child = child
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._pulse = Pulse()
        self._started = 0.0
        self._ready: asyncio.Future[bool] | None = None
        self._hung = self._stopping = False
        self._tending: asyncio.Task[None] | None = None

    @property
    def is_answering(self) -> bool:
        """False while it runs and does not answer; one that is being started again is looked after."""
        process, ready = self._process, self._ready
        runs = process is not None and process.returncode is None
        serves = ready is not None and ready.done() and ready.result()
        return not (runs and serves) or self._pulse.answers(time.monotonic())

    async def start(self, again: bool = False) -> str | None:
        """Start the process and wait until it says that it is ready; otherwise the sentence that tells why not.

        One that is started `again` may take as long as it answers: what it waits for may be down, too.
        """
        self._started = time.monotonic()
        self._hung = False
        child = self.child
        variables = {n: v for n, v in child.environment.items() if n not in VARIABLES}
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *child.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=child.fds,
                env=variables,
                start_new_session=True,
                limit=MAX_LINE_BYTES,
            )
        except OSError as error:
            return f"{child.name} could not be started: {error}"
        loop = asyncio.get_running_loop()
        self._pulse = Pulse(child.hung_after_s)
        self._ready = ready = loop.create_future()
        self._tending = loop.create_task(self._tend(process, ready), name=f"tend {child.name}")
        if process.stdin is not None:
            process.stdin.write(json.dumps(child.instructions).encode() + b"\n")
        while not ready.done():
            since = self._pulse.heard_at if again else None
            left = (since or self._started) + child.start_within_s - time.monotonic()
            if left <= 0:
                problem = f"was not ready within {child.start_within_s:g} s"
                break
            await asyncio.wait({ready}, timeout=left)
        else:
            if ready.result():
                return None
            # Closing its stdout is not ending: a child that said no is not waited for either.
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 1.0)
            problem = f"ended before it was ready ({_ending(process.returncode)})"
        self.kill()
        await process.wait()
        return f"{child.name} {problem}"

    async def keep(self) -> None:
        """Start it again whenever it ends, for as long as it takes: others may live, and go on."""
        delay = FIRST_DELAY_S
        while self._process is not None:
            code = await self._process.wait()
            if time.monotonic() - self._started > STEADY_AFTER_S:
                delay = FIRST_DELAY_S
            problem: str | None = f"{self.child.name} {self._end_of(code)}"
            while problem:
                self._tell(f"{problem}; starting it again in {delay:g} s")
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY_S)
                problem = await self.start(again=True)
            self._tell(f"{self.child.name} is back")

    async def stop(self) -> None:
        """Ask it to end, wait for its grace, then end it."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self.child.stops_within_s)
            except TimeoutError:
                self._tell(f"{self.child.name} did not stop in time and was killed")
                self.kill()
                await process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)

    def kill(self) -> None:
        """End it now."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _tend(self, process: asyncio.subprocess.Process, ready: asyncio.Future[bool]) -> None:
        """Hear it and ask it until it ends."""
        port, loop = self.child.port, asyncio.get_running_loop()
        if port is not None:
            port.began()
        hearing = loop.create_task(self._hear(process, ready), name=f"hear {self.child.name}")
        asking = loop.create_task(self._ask(process, ready), name=f"ask {self.child.name}")
        try:
            await process.wait()
        finally:
            was_ready = ready.done() and ready.result()
            if port is not None:
                port.ended(was_ready)
            for task in (hearing, asking):
                task.cancel()
            await asyncio.gather(hearing, asking, return_exceptions=True)
            if not ready.done():
                ready.set_result(False)

    async def _hear(self, process: asyncio.subprocess.Process, ready: asyncio.Future[bool]) -> None:
        """Read all that it says: at a pipe that nobody reads it would stand still at its next print."""
        pulse = self._pulse
        async for line in _lines(process.stdout):
            pulse.take(line, time.monotonic())
            if not ready.done() and _says_ready(line):
                pulse.begin_anew()  # while it started it had no time to answer
                ready.set_result(True)
        if not ready.done():
            ready.set_result(False)

    async def _ask(self, process: asyncio.subprocess.Process, ready: asyncio.Future[bool]) -> None:
        pulse = self._pulse
        while process.stdin is not None:
            before = time.monotonic()
            question = pulse.question(before)
            if question is not None:
                process.stdin.write(question)
            await asyncio.sleep(pulse.every_s)
            now = time.monotonic()
            hung = pulse.hung(now, late_s=now - before - pulse.every_s)
            if hung and ready.done() and not self._stopping:
                self._hung = True
                self.kill()
                return

    def _end_of(self, code: int) -> str:
        if self._hung:
            return f"did not answer for {self.child.hung_after_s:g} s and was killed"
        return f"ended ({_ending(code)})"


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """What is said, line by line; of one that does not end, only its last part."""
    rest = b""
    while stream is not None and (piece := await stream.read(MAX_LINE_BYTES)):
        *whole, rest = (rest + piece).split(b"\n")
        rest = rest[-MAX_LINE_BYTES:]
        for line in whole:
            yield line


def _says_ready(line: bytes) -> bool:
    # Lines before the answer are a library's chatter, not ours.
    try:
        said = json.loads(line)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("ready") is True


def _ending(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
