"""kill and resume: what is asked for. What became of it is told by conclusion.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from haltwire.wire.orders import CUT, DRAIN, HOLD

from haltwire_cli.api import Answer, Api, Refused, with_api
from haltwire_cli.failures import Failure
from haltwire_cli.names import KILL_ID, selector_or_all
from haltwire_cli.options import duration, json_option, plain_text

DAY_S = 86_400.0
FIRST_S = 0.5
"How long the first answer may take: as good as always everything is proven by then."
GRACE_S = 30.0
ANSWER_S = 10.0
"How much longer than the proofs may take, the answer may take."
LONGEST_REASON = 1000
"As much as the control server takes."

all_option = click.option("--all", "everything", is_flag=True, help="All agents.")


def reason_text(text: str) -> str:
    """A kind of value: a reason. Nothing that is wrong with one may stand between a person and a stop."""
    return plain_text(text)[:LONGEST_REASON]


reason_option = click.option(
    "--reason",
    type=reason_text,
    metavar="TEXT",
    help=f"Why, for the people who read it; the first {LONGEST_REASON} characters are kept.",
)


@click.command()
@click.argument("selector", required=False)
@all_option
@reason_option
@click.option(
    "--mode",
    type=click.Choice([CUT, DRAIN, HOLD]),
    default=CUT,
    show_default=True,
    help="cut: refuse what is new, reset what is open. drain: refuse what is new, let what is open finish. hold: freeze both, until it is resumed.",
)
@click.option(
    "--grace",
    "grace_s",
    type=duration(0, DAY_S),
    metavar="TIME",
    show_default="30s",
    help="With --mode drain: how long what is open may finish; what is left then is cut.",
)
@click.option(
    "--hold-limit",
    "hold_limit_s",
    type=duration(1, 30 * DAY_S),
    metavar="TIME",
    help="With --mode hold: make it a cut unless it is resumed within this time.",
)
@click.option(
    "--expires",
    "expires_s",
    type=duration(1, 365 * DAY_S),
    metavar="TIME",
    help="Lift the order by itself after this time (15m, 2h, 1d); otherwise only a resume does.",
)
@click.option(
    "--wait",
    "wait_s",
    type=duration(0, DAY_S),
    metavar="TIME",
    show_default="2s; of a drain until its grace is over",
    help="How long to follow the order until it is proven everywhere.",
)
@click.option("--dry-run", is_flag=True, help="Order nothing; say who would be stopped.")
@json_option
@with_api
def kill(
    api: Api,
    selector: str | None,
    everything: bool,
    reason: str | None,
    mode: str,
    grace_s: float | None,
    hold_limit_s: float | None,
    expires_s: float | None,
    wait_s: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stop agents: refuse what they begin, cut what they have open.

    SELECTOR is an agent (agent://acme/prod/mailer, acme.prod.mailer, or mailer when only one ends
    so), one instance of it (acme/prod/mailer~i-7f3a), or a glob (acme/prod/*, acme/**). The order
    stays in force until it is resumed, and also stops agents first seen later.
    """
    if grace_s is not None and mode != DRAIN:
        raise click.UsageError(
            "--grace is how long a drain lets connections finish: say --mode drain, or leave --grace out."
        )
    if hold_limit_s is not None and mode != HOLD:
        raise click.UsageError(
            "--hold-limit is when a hold becomes a cut: say --mode hold, or leave --hold-limit out (--expires lifts an order by itself)."
        )
    meant = selector_or_all(api, selector, everything)
    body = {
        "selector": str(meant),
        "reason": reason,
        "mode": mode,
        "grace_s": GRACE_S if mode == DRAIN and grace_s is None else grace_s,
        "hold_limit_s": hold_limit_s,
        "ttl_s": expires_s,
        "dry_run": True if dry_run else None,
    }
    started = time.monotonic()
    with _interruptible():
        first_s = FIRST_S if wait_s is None else min(wait_s, FIRST_S)
        answer = _ordered(api, "/v1/mesh/kill", body, first_s)
        from haltwire_cli.conclusion import conclude_kill  # the order has gone out first

        code = conclude_kill(
            api, answer, asked=mode, started=started, wait_s=wait_s, as_json=as_json
        )
    sys.exit(code)


@click.command()
@click.argument("what", metavar="SELECTOR|KILL_ID", required=False)
@all_option
@reason_option
@click.option(
    "--carve-out",
    is_flag=True,
    help="When a wider order stops it, leave that in force and except this part of it.",
)
@click.option(
    "--wait",
    "wait_s",
    type=duration(0, 30),
    metavar="TIME",
    default="2s",
    show_default=True,
    help="How long to wait until every proxy has confirmed (ms, s).",
)
@json_option
@with_api
def resume(
    api: Api,
    what: str | None,
    everything: bool,
    reason: str | None,
    carve_out: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Lift orders: the one with this id, or all that are equal to SELECTOR or inside it."""
    body: dict[str, Any] = {"reason": reason, "carve_out": True if carve_out else None}
    if what and not everything and KILL_ID.fullmatch(what):
        body["kill_id"] = what
    else:
        body["selector"] = str(selector_or_all(api, what, everything))
    with _interruptible():
        answer = _ordered(api, "/v1/mesh/resume", body, wait_s)
        from haltwire_cli.conclusion import conclude_resume  # the order has gone out first

        code = conclude_resume(answer, carve_out=carve_out, as_json=as_json)
    sys.exit(code)


def _ordered(api: Api, path: str, body: Mapping[str, Any], wait_s: float) -> Answer:
    try:
        return api.post(path, {**body, "wait_s": wait_s}, timeout_s=wait_s + ANSWER_S)
    except Refused as refused:
        # An order that could not be stored is in force all the same where its receipt says so.
        if "proxies" in refused.answer.document:
            return refused.answer
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Nobody may think that Ctrl-C took the order back."""
    try:
        yield
    except KeyboardInterrupt:
        raise Failure(
            "stopped waiting, but what was ordered stays so: see `haltwire kills`."
        ) from None
