"""How the demo tells its story: lines that stay and, on a terminal, one block below them that is redrawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from haltwire_cli.demo_checks import Books, Finding

REDRAWS_PER_S = 10
PLAIN_EVERY_S = 1.0
_BAR = 30


@dataclass(frozen=True, slots=True)
class Row:
    """One replica, as the provider sees it and as it says itself."""

    instance: str
    accepted: int
    share: float
    "How much of its work is done, 0 to 1; drawn, never printed."
    state: str


def rows_of(books: Books, total: int, states: dict[str, str]) -> list[Row]:
    """A row per replica, in the order of `states`."""
    halves = {half.instance: half for half in books.half_read}
    rows = []
    for instance, state in states.items():
        accepted = books.accepted.get(instance, 0)
        if half := halves.get(instance):
            state = f"{half.read:,} of {half.expected:,} bytes read"
        rows.append(Row(instance, accepted, min(1.0, accepted / total), state))
    return rows


class Screen:
    """Where the story is told."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal

    def say(self, text: str = "", indent: int = 0, style: str = "") -> None:
        """Lines that stay."""
        for line in text.split("\n"):
            self._console.print(Text(" " * indent + line, style), soft_wrap=True, highlight=False)

    def command(self, text: str) -> None:
        """What a user would type now."""
        self.say(f"$ haltwire {text}", style="bold")

    def finding(self, finding: Finding) -> None:
        """What a check came to."""
        if finding.ok:
            self.say(f"ok      {finding.sentence}", style="green")
        else:
            self.say(f"FAILED  {finding.sentence}", style="bold red")

    @contextmanager
    def progress(self, rows: Callable[[], list[Row]]) -> Iterator[Callable[[], None]]:
        """Show the rows until the end of the block; what it yields is to be called again and again."""
        if self._live:
            with Live(
                get_renderable=lambda: _drawn(rows()),
                console=self._console,
                refresh_per_second=REDRAWS_PER_S,
                transient=True,
            ):
                yield lambda: None
            return
        told, told_at = "", time.monotonic()

        def tell() -> None:
            nonlocal told, told_at
            line = plain_line(rows())
            if line != told and time.monotonic() - told_at >= PLAIN_EVERY_S:
                told, told_at = line, time.monotonic()
                self.say(line, indent=2)

        yield tell


def plain_line(rows: list[Row]) -> str:
    """The rows on one line."""
    return "the provider has accepted " + ", ".join(
        f"{row.accepted} from {row.instance} ({row.state})" for row in rows
    )


def _drawn(rows: list[Row]) -> Text:
    text = Text("\n  the provider has accepted\n")
    for row in rows:
        full = round(row.share * _BAR)
        text.append(f"  {row.instance}  {row.accepted:>6,}  ")
        text.append("━" * full, "green")
        text.append("━" * (_BAR - full), "bright_black")
        text.append(f"  {row.state}\n")
    return text
