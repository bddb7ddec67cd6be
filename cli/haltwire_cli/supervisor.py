"""Processes: start them stage by stage, start again what dies or hangs, stop them all. It knows nothing of what they do.

Guarantees, in this order:
1. A child gets its instructions as one line on stdin and never in its arguments or environment.
2. stdin stays open as long as this process lives: its end tells the child that nobody watches it.
3. Children live in sessions of their own, so that a terminal's Ctrl-C reaches this process alone.
4. Once all were ready, what ends is started again for as long as it takes, and takes nobody with it.
5. After the first signal every child is gone within the sum of its stages' grace; after the second, at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from haltwire_cli.child import Child, Running
from haltwire_cli.notify import Notifier

PATIENCE_S = 1.0
"Whoever waits this long for the end is told what for."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildFailedError(Exception):
    """Raised by `supervise` when a child cannot be started at first; the sentence names it."""


async def supervise(
    stages: Sequence[Sequence[Child]],
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
    tell: Callable[[str], None],
    notifier: Notifier | None = None,
) -> None:
    """Run the children until SIGINT, SIGTERM or SIGHUP; each stage is ready before the next one starts.

    `on_ready` is called once, when all are ready; `on_stop` once, before the first child is stopped. Stages
    stop one after the other, the last one first. systemd is told, when it asks in our environment. Runs in
    the main thread: children end with the thread that has started them (see orphan.py).
    """
    service = notifier or Notifier.of(os.environ, os.getpid())

    def say(sentence: str) -> None:
        tell(sentence)
        service.status(sentence)

    running = [[Running(child, say) for child in stage] for stage in stages]
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
    beating = loop.create_task(_beat(service, every), name="watchdog")
    try:
        if await _unless(stop, _start(running)):
            on_ready()
            service.ready(f"{len(every)} processes run")
            await _unless(stop, _keep(every))
    finally:
        stop.set()
        on_stop()
        service.stopping("stopping", sum(_grace(stage) for stage in running))
        for stage in reversed(running):
            await _stop(stage, say)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        for one in every:
            if one.child.port is not None:
                one.child.port.end()


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


async def _start(stages: Sequence[Sequence[Running]]) -> None:
    for stage in stages:
        for problem in await asyncio.gather(*(one.start() for one in stage)):
            if problem:
                raise ChildFailedError(problem)


async def _keep(every: Sequence[Running]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in every:
            group.create_task(one.keep(), name=f"keep {one.child.name}")


async def _stop(stage: Sequence[Running], say: Callable[[str], None]) -> None:
    drain_s = max((one.child.drain_s for one in stage), default=0.0)
    sentence = f"waiting up to {drain_s:g} s for what is under way; another signal stops it at once"
    waiting = asyncio.get_running_loop().call_later(PATIENCE_S, say, sentence)
    if not drain_s:
        waiting.cancel()
    try:
        await asyncio.gather(*(one.stop() for one in stage))
    finally:
        waiting.cancel()


async def _beat(service: Notifier, every: Sequence[Running]) -> None:
    """Tell the watchdog of systemd that we live, while every child that runs answers."""
    while service.watchdog_s is not None:
        if all(one.is_answering for one in every):
            service.alive()
        await asyncio.sleep(service.watchdog_s / 2)


def _grace(stage: Sequence[Running]) -> float:
    return max((one.child.stops_within_s for one in stage), default=0.0)
