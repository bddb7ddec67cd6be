"""report and note: what an incident leaves behind for the people who come later."""

from __future__ import annotations

import sys
from datetime import datetime, timezone

import click

from haltwire_cli.api import Api, with_api
from haltwire_cli.names import kill_id, kill_path
from haltwire_cli.options import json_option, plain_text
from haltwire_cli.output import escape
from haltwire_cli.report_text import report_text


@click.command()
@click.argument("kill", metavar="KILL_ID", type=kill_id)
@json_option
@with_api
def report(api: Api, kill: str, as_json: bool) -> None:
    """Print one Markdown page about a kill, for the incident channel.

    Who, why and when, the proof per proxy, requests to reconcile, counts, notes, the resume, and
    the events of the audit log with their hashes.
    """
    answer = api.get(kill_path(kill))
    if as_json:
        click.echo(answer.text, nl=False)
    else:
        click.echo(report_text(answer.document, datetime.now(timezone.utc)))


@click.command()
@click.argument("kill", metavar="KILL_ID", type=kill_id)
@click.argument("words", metavar="TEXT...", nargs=-1, required=True)
@json_option
@with_api
def note(api: Api, kill: str, words: tuple[str, ...], as_json: bool) -> None:
    """Add a note to a kill: what was found, who was told. TEXT - is read from stdin."""
    if words == ("-",):
        text = sys.stdin.buffer.read().decode(errors="replace")
    else:
        text = plain_text(" ".join(words))
    if not text.strip():
        raise click.UsageError("there is no text to note.")
    answer = api.post(f"{kill_path(kill)}/notes", {"text": text.strip()})
    if as_json:
        click.echo(answer.text, nl=False)
    else:
        click.echo(f"Noted on {escape(kill)}; `haltwire report {escape(kill)}` shows it.")
