"""Signs of life: a supervisor asks its child over the child's stdin, and the child's event loop answers on its stdout.

One question is open at a time: a pipe cannot fill up while one side stands still.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress

MOST_BETWEEN_S = 1.0
"How often a child is asked at least."
LATE_S = 0.5
"Who looks this much later than he wanted has stood still himself, and does not know who else has."
_ANSWERS_WITHIN_S = 2.0
"What counts as answering where nobody is killed for not doing so."


class Pulse:
    """What one child's answers say. The clock is the caller's, in seconds."""

    def __init__(self, hung_after_s: float | None = None) -> None:
        self._hung_after_s = hung_after_s
        self._number = 0
        self._asked_at: float | None = None
        "When the open question was asked; None when there is none."
        self.heard_at: float | None = None
        "When the child last answered."
        within = _ANSWERS_WITHIN_S if hung_after_s is None else hung_after_s
        self.every_s = min(MOST_BETWEEN_S, within / 8)
        self._within_s = within

    def question(self, now: float) -> bytes | None:
        """What to write to the child now; None while an answer is awaited."""
        if self._asked_at is not None:
            return None
        self._number += 1
        self._asked_at = now
        return b"%d\n" % self._number

    def take(self, line: bytes, now: float) -> None:
        """A line that the child has written. Only the answer to the open question counts."""
        with suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("alive") == self._number:
                self._asked_at, self.heard_at = None, now

    def begin_anew(self) -> None:
        """Forget what was asked: the child is judged by what it is asked from now on."""
        self._asked_at = None

    def answers(self, now: float) -> bool:
        """Whether no question has been open for too long."""
        return self._asked_at is None or now - self._asked_at <= self._within_s

    def hung(self, now: float, late_s: float) -> bool:
        """Whether to give the child up. Who looks late asks again instead: he may be the one who stood still."""
        if late_s > LATE_S:
            self.begin_anew()
        return self._hung_after_s is not None and not self.answers(now)


def answering(questions: int = 0, answers: int = 1) -> int:
    """Answer on the running loop from now on; returns a descriptor that ends when the questions do."""
    loop = asyncio.get_running_loop()
    ended, ends = os.pipe()
    begun = b""

    def readable() -> None:
        nonlocal begun
        data = os.read(questions, 4096)
        if not data:
            loop.remove_reader(questions)
            os.close(ends)
            return
        *whole, begun = (begun + data).split(b"\n")
        for number in whole:
            # On a line of its own, also behind a library's chatter that has no end of line.
            with suppress(OSError):
                os.write(answers, b'\n{"alive": %d}\n' % int(number))

    loop.add_reader(questions, readable)
    return ended
