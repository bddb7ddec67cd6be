"""What a kill or a resume came to: followed until it is proven, told, and put into an exit code.

Imported when the order has gone out, so that nothing in here delays it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import click
from haltwire.wire.receipts import PROXY_PENDING

from haltwire_cli.api import Answer, Api
from haltwire_cli.failures import DONE, FAILED, NOT_FOUND, NOT_PROVEN, STILL_KILLED
from haltwire_cli.following import Followed, Lines, follow, is_complete
from haltwire_cli.receipt_lines import is_draining
from haltwire_cli.receipt_text import dry_run_text, kill_text, lifted_text, resume_text

Json = Mapping[str, Any]
WAIT_S = 2.0
DRAINED_S = 3.0
"How much longer than its grace a drain is followed: its end has to be reported."


def conclude_kill(
    api: Api, answer: Answer, *, asked: str, started: float, wait_s: float | None, as_json: bool
) -> int:
    """Follow and tell an order that was answered; the exit code.

    `asked`: the mode. `started`: on the monotonic clock. `wait_s`: from then on; None is as long as makes sense.
    """
    first = answer.document
    until = started + (_followed_for(first) if wait_s is None else wait_s)
    if is_complete(first) or time.monotonic() >= until:
        text, followed = answer.text, Followed(first, None)
    else:
        followed = follow(api, first, until, _lines(as_json))
        text = f"{json.dumps(followed.receipt)}\n"
    receipt, lifted = followed.receipt, followed.lifted
    if as_json:
        click.echo(text, nl=False)
    elif receipt.get("dry_run"):
        click.echo(dry_run_text(receipt))
    else:
        weaker = "" if first["mode"] == asked else asked
        now = datetime.now(timezone.utc)
        click.echo(kill_text(receipt, now, lifted=lifted is not None, asked=weaker))
        if lifted is not None:
            click.echo(lifted_text(lifted))
    return NOT_PROVEN if lifted is not None else _kill_code(receipt)


def conclude_resume(answer: Answer, *, carve_out: bool, as_json: bool) -> int:
    """Tell a resume that was answered; the exit code."""
    if as_json:
        click.echo(answer.text, nl=False)
    else:
        click.echo(resume_text(answer.document, carve_out))
    return _resume_code(answer.document)


def _kill_code(receipt: Json) -> int:
    """0 only when everything is proven to have stopped; of a dry run, when somebody would be."""
    agents = receipt.get("matched", {}).get("agents")
    if receipt.get("dry_run"):
        return DONE if agents else NOT_FOUND
    if not receipt.get("ok"):
        return FAILED
    if receipt.get("confirmed") and not is_draining(receipt):
        return DONE
    return NOT_FOUND if agents == 0 else NOT_PROVEN


def _resume_code(receipt: Json) -> int:
    """0 only when nothing that was named is stopped any more."""
    if not receipt.get("ok"):
        return FAILED
    if receipt.get("still_killed_by"):
        return STILL_KILLED
    if receipt.get("unconfirmed_because") == PROXY_PENDING:
        return NOT_PROVEN
    unknown = not receipt.get("lifted") and receipt.get("matched", {}).get("agents") == 0
    return NOT_FOUND if unknown else DONE


def _followed_for(receipt: Json) -> float:
    return (receipt.get("grace_s") or 0.0) + DRAINED_S if is_draining(receipt) else WAIT_S


def _lines(as_json: bool) -> Lines:
    return Lines(None) if as_json else Lines(sys.stdout, is_terminal=sys.stdout.isatty())
