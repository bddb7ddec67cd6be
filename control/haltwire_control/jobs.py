"""What waits for the store's writer: kills first, then the rest in order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from haltwire_control.store import Committed, Step, StoreError


@dataclass(slots=True, eq=False)
class Job:
    """A step that somebody waits for."""

    step: Step[Any]
    fallback: Step[Any] | None
    urgent: bool
    future: asyncio.Future[Any]
    error: Exception | None = None
    committed: Committed[Any] | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is an answer to deliver."""
        return self.committed is not None or self.error is not None


class Jobs:
    """A queue between the event loop, which puts, and one writer thread, which takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._urgent: deque[Job] = deque()
        self._ordinary: deque[Job] = deque()
        self._closed = False

    def put(self, job: Job) -> None:
        """Queue a job; StoreError when nobody takes any more."""
        with self._changed:
            if self._closed:
                raise StoreError("the store is closed")
            self._queue(job).append(job)
            self._changed.notify()

    def take(self, most: int, timeout: float | None) -> list[Job] | None:
        """All urgent jobs, or else the next ordinary ones; empty after the timeout; None when all is done."""
        with self._changed:
            while not (self._urgent or self._ordinary):
                if self._closed:
                    return None
                if not self._changed.wait(timeout):
                    return []
            if self._urgent:
                jobs = list(self._urgent)
                self._urgent.clear()
                return jobs
            return [self._ordinary.popleft() for _ in range(min(most, len(self._ordinary)))]

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that one transaction could not hold go first in the next."""
        with self._changed:
            for job in reversed(list(jobs)):
                self._queue(job).appendleft(job)

    def close(self) -> None:
        """Take no more; what is queued is still done."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _queue(self, job: Job) -> deque[Job]:
        return self._urgent if job.urgent else self._ordinary
