"""Follows the receipt of a kill as it fills: says each change as a line, until nothing more is to come or time is over."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TextIO

from haltwire.wire.receipts import APPLIED, FENCED, GONE, NO_PROXY, PENDING, PROXY_PENDING

from haltwire_cli.api import Api
from haltwire_cli.failures import Failure
from haltwire_cli.names import kill_path
from haltwire_cli.output import ahead, count, escape, milliseconds
from haltwire_cli.receipt_lines import added, cut_at_deadline, drain_end, fenced_text, is_draining
from haltwire_cli.receipt_text import silent_proxies, verdict

Json = Mapping[str, Any]
OFTEN_S, OFTEN_FOR_S, SELDOM_S = 0.1, 5.0, 0.5
"A proxy answers in milliseconds or not for long, so that the first seconds are looked at closely."


@dataclass(frozen=True, slots=True)
class Followed:
    """What is known when the following has ended."""

    receipt: Json
    lifted: Json | None
    "The order, when somebody lifted it meanwhile."


class Lines:
    """Where changes are told: nowhere without `out`. On a terminal, one more line is drawn again and again below them."""

    def __init__(self, out: TextIO | None, *, is_terminal: bool = False) -> None:
        self._out = out
        self._is_terminal = is_terminal
        self._drawn = False

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"{line}\n")

    def draw(self, line: str) -> None:
        """A line that stands until the next one."""
        if self._is_terminal:
            self._write(f"\r\x1b[?7l{line}\x1b[K\x1b[?7h")  # cut off at the edge, not wrapped
            self._drawn = True

    def clear(self) -> None:
        """Take away what is drawn."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()


def follow(api: Api, receipt: Json, until: float, lines: Lines) -> Followed:
    """Ask again until the receipt is complete, the order is lifted, or the monotonic clock shows `until`.

    A control server that does not answer is asked again: the order stands, whatever becomes of it.
    """
    kill_id, started = receipt["kill_id"], time.monotonic()
    answers = True
    lines.say(f"{escape(kill_id)}: {verdict(receipt, _now())}")
    for line in changes(None, receipt):
        lines.say(f"  {line}")
    try:
        while not is_complete(receipt) and (left := until - time.monotonic()) > 0:
            lines.draw(waiting_text(receipt, _now(), left))
            often = time.monotonic() - started < OFTEN_FOR_S
            time.sleep(min(OFTEN_S if often else SELDOM_S, left))
            try:
                document = api.get(kill_path(kill_id)).document
            except Failure as failure:
                if answers:
                    lines.clear()
                    failure.show()
                answers = False
                continue
            answers = True
            before, receipt = receipt, document.get("receipt") or receipt
            for line in changes(before, receipt):
                lines.say(f"  {line}")
            if not document["kill"]["in_force"]:
                return Followed(receipt, document["kill"])
        return Followed(receipt, None)
    finally:
        lines.clear()


def is_complete(receipt: Json) -> bool:
    """Whether a receipt says all that it ever will, as far as stopping goes."""
    because = receipt.get("unconfirmed_because")
    if receipt.get("dry_run") or receipt.get("durable") is False or because == NO_PROXY:
        return True
    return because != PROXY_PENDING and not is_draining(receipt)


def changes(before: Json | None, after: Json) -> Iterable[str]:
    """What a newer receipt says that an older one did not; of the first, how each proxy stands."""
    states = {p["proxy_id"]: p["state"] for p in (before or {}).get("proxies", ())}
    for proxy in after.get("proxies", ()):
        name, state = f"proxy {escape(proxy['proxy_id'])}", proxy["state"]
        if state == states.get(proxy["proxy_id"]):
            continue
        if state == APPLIED:
            yield f"{name}: confirmed after {milliseconds(proxy.get('latency_ms'))}"
        elif state == FENCED:
            yield f"{name}: {fenced_text(proxy, after)}"
        elif state == GONE:
            yield f"{name}: has ended, with all its connections"
        elif state == PENDING:
            yield f"{name}: SILENT, no answer yet"
    if before is None:
        return
    if before["mode"] != after["mode"]:
        yield f"the order has become a {escape(after['mode'])}"
    elif is_draining(after):
        live = added(after["proxies"], "connections_live")
        if live is not None and live != added(before["proxies"], "connections_live"):
            yield f"{count(live, 'connection')} left"
    elif is_draining(before):
        cut = cut_at_deadline(after)
        yield f"cut at the deadline: {count(cut, 'connection')}" if cut else "no connection left"


def waiting_text(receipt: Json, now: datetime, left_s: float) -> str:
    """What is waited for, for the line that is drawn again and again."""
    if silent := silent_proxies(receipt):
        return f"waiting for {', '.join(silent)}, {left_s:.0f} s more; Ctrl-C leaves the order in force"
    live = added(receipt.get("proxies", ()), "connections_live")
    left = f"{count(live, 'connection')} left" if live else "draining"
    return f"{left}, cut {ahead(drain_end(receipt), now)}; Ctrl-C leaves the order in force"


def _now() -> datetime:
    return datetime.now(timezone.utc)
