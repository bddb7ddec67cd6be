"""What becomes of a connection when our own code fails on it: it is refused or cut, whatever was raised.

`except Exception` is not enough: a panic in the Rust code under mitmproxy is a BaseException, and what a
loop's callback raises is only logged, with the connection left as it stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)
PASSED = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""Not faults: somebody wants a task, a generator or this process ended. With the process every socket
is reset."""


class FailClosed:
    """Runs a block; when it raises, that is logged and `close` is called instead of passing it on."""

    __slots__ = ("_close", "_what")

    def __init__(self, what: str, close: Callable[[], object]) -> None:
        self._what, self._close = what, close

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, _: TracebackType | None
    ) -> bool:
        if kind is None or issubclass(kind, PASSED):
            return False
        log.error("%s", self._what, exc_info=fault)
        self._close()
        return True
