"""What proxies say they have done in all, added up over their processes. Pure.

A proxy's word is taken with care: whoever holds a proxy key can say anything, so names and their number are
bounded, and no total ever falls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

MOST_NAMES = 128
"Different names in all: there are 20 refusals and as many limits; each is a time series for ever."
_NAME = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32})?")
_MOST = 2**53
"What a float, which Prometheus makes of it, holds exactly."


class Totals:
    """Totals by name."""

    def __init__(self) -> None:
        self._by_process: dict[str, dict[str, int]] = {}
        self._past: Counter[str] = Counter()
        "Of processes that have ended."
        self._names: set[str] = set()

    def use(self, process: str, said: Mapping[Any, Any]) -> None:
        """Note what one process says; what makes no sense in it is left out."""
        totals = self._by_process.setdefault(process, {})
        for name, value in said.items():
            if type(value) is int and 0 <= value <= _MOST and self._knows(name):
                totals[name] = max(value, totals.get(name, 0))

    def end(self, alive: Iterable[str]) -> None:
        """Fold the totals of processes that have ended."""
        for process in self._by_process.keys() - set(alive):
            self._past.update(self._by_process.pop(process))

    def sums(self) -> dict[str, int]:
        """Over all processes, those that have ended included."""
        sums = Counter(self._past)
        for totals in self._by_process.values():
            sums.update(totals)
        return dict(sums)

    def _knows(self, name: object) -> bool:
        if name in self._names:
            return True
        if len(self._names) >= MOST_NAMES or not isinstance(name, str) or not _NAME.fullmatch(name):
            return False
        self._names.add(name)
        return True
