"""recover: what a restored or damaged store lacks, and an admin's word that the result is how it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import click

from haltwire_cli.api import Api, with_api
from haltwire_cli.failures import FAILED
from haltwire_cli.options import json_option
from haltwire_cli.output import ago, count, escape, listed, table

SHOWN_MOST = 50
"Orders and tokens in a list that a person reads; --json has all."


@click.command()
@click.option("--accept", is_flag=True, help="Accept what was found, and be ready again.")
@json_option
@with_api
def recover(api: Api, accept: bool, as_json: bool) -> None:
    """Show what the store was found to lack, after a restored backup or a lost file.

    Until an admin accepts it nothing is resumed and no token is made; kills work, and every order
    that a proxy still enforces is in force. Exits 1 while there is something to accept.
    """
    answer = api.get("/v1/recovery")
    found = answer.document.get("recovery")
    needed = bool(answer.document.get("needed"))
    if accept and needed and isinstance(found, Mapping):
        named = {"recovery_id": found["recovery_id"], "version": found["version"]}
        answer = api.post("/v1/recovery/accept", named)
        found, needed = answer.document.get("recovery"), False
    if as_json:
        click.echo(answer.text, nl=False)
    elif not isinstance(found, Mapping):
        click.echo("There is nothing to recover: the store has all that its proxies know of.")
    else:
        click.echo(recovery_text(found, datetime.now(timezone.utc)))
    if needed:
        raise click.exceptions.Exit(FAILED)


def recovery_text(found: Mapping[str, Any], now: datetime) -> str:
    """What was found, for a person; `found` as the API shows it."""
    lines = [f"Found {ago(found.get('began_at'), now)}: {escape(found.get('why'))}."]
    proxies: Sequence[str] = found.get("proxies") or ()
    if proxies:
        lines.append(f"Known to: {escape(listed(proxies))}.")
    taken, kept = found.get("orders_taken") or (), found.get("orders_kept") or ()
    withheld = found.get("tokens_withheld") or ()
    lines += _part(
        f"{count(len(taken), 'order')} in force taken over from proxies, which the store lacked",
        ["KILL", "SELECTOR", "MODE", "BY"],
        [[o["kill_id"], o["selector"], o["mode"], o["actor"]] for o in taken],
    )
    lines += _part(
        f"{count(len(kept), 'order')} in force that a proxy no longer had: resumed after the backup, or issued since it was restored",
        ["KILL", "SELECTOR", "MODE", "BY"],
        [[o["kill_id"], o["selector"], o["mode"], o["actor"]] for o in kept],
    )
    lines += _part(
        f"{count(len(withheld), 'token')} withheld from proxies, perhaps revoked after the backup",
        ["TOKEN", "SELECTOR"],
        [[t["token_id"], t["selector"]] for t in withheld],
    )
    lines.append("")
    if found.get("accepted_at"):
        lines.append(
            f"Accepted by {escape(found.get('accepted_by'))}: everything is as shown from now on, and resumes and tokens work again."
        )
        return "\n".join(lines)
    lines += [
        "What no proxy remembers cannot be brought back. Before you accept, look at:",
        "  haltwire kills        an order that was issued after the backup, and that no proxy had, is gone: kill again",
        "  haltwire token list   tokens made after the backup are gone; revoke those that should be (a withheld one works again once accepted)",
        "  haltwire key list     keys revoked after the backup work again: revoke them",
        "Then: haltwire recover --accept",
    ]
    return "\n".join(lines)


def _part(title: str, headers: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    left = len(rows) - SHOWN_MOST
    more = [f"and {left:,} more; --json has all"] if left > 0 else []
    return ["", f"{title}:", table(headers, rows[:SHOWN_MOST]), *more]
