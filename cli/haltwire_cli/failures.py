"""Exit codes, and the one sentence on stderr that goes with them."""

from __future__ import annotations

import click

from haltwire_cli.output import escape

DONE, FAILED, USAGE, NOT_FOUND, NOT_ALLOWED, NOT_PROVEN, STILL_KILLED = range(7)


class Failure(click.ClickException):
    """Ends the command; the sentence says what to do next."""

    def __init__(self, sentence: str, exit_code: int = FAILED) -> None:
        super().__init__(escape(sentence))
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for classes alone
