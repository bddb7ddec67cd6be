"""kill and resume, and the agents and orders that they are about."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import click

from haltwire_cli.api import Answer, Api, Refused, with_api
from haltwire_cli.failures import FAILED, NOT_FOUND, NOT_PROVEN, STILL_KILLED, Failure
from haltwire_cli.names import MOST_AGENTS, agent_of, agent_path, selector_of, selector_or_all
from haltwire_cli.options import duration, json_option
from haltwire_cli.output import ago, clock, escape, facts, kill_text, resume_text, table

_KILL_ID = re.compile(r"K[0-9A-Z]{12}")
ANSWER_S = 10.0
"How much longer than the proofs may take, the answer may take."
REDRAW_S = 1.0
LONGEST_REASON = 1000
"As much as the control server takes."

all_option = click.option("--all", "everything", is_flag=True, help="All agents.")


def reason_text(text: str) -> str:
    """A kind of value: a reason. Nothing that is wrong with one may stand between a person and a stop."""
    # Bytes that are no UTF-8, from a terminal with another encoding, come as halves of characters.
    return text.encode(errors="surrogateescape").decode(errors="replace")[:LONGEST_REASON]


reason_option = click.option(
    "--reason",
    type=reason_text,
    metavar="TEXT",
    help=f"Why, for the people who read it; the first {LONGEST_REASON} characters are kept.",
)
wait_option = click.option(
    "--wait",
    "wait_s",
    type=duration(0, 30),
    metavar="TIME",
    default="2s",
    show_default=True,
    help="How long to wait until every proxy has confirmed (ms, s).",
)


@click.command()
@click.argument("selector", required=False)
@all_option
@reason_option
@wait_option
@json_option
@with_api
def kill(
    api: Api,
    selector: str | None,
    everything: bool,
    reason: str | None,
    wait_s: float,
    as_json: bool,
) -> None:
    """Stop agents: refuse what they begin, cut what they have open.

    SELECTOR is an agent (agent://acme/prod/mailer, acme.prod.mailer, or mailer when only one ends
    so), one instance of it (acme/prod/mailer~i-7f3a), or a glob (acme/prod/*, acme/**). The order
    stays in force until it is resumed, and also stops agents first seen later.
    """
    meant = selector_or_all(api, selector, everything)
    body = {"selector": str(meant), "reason": reason, "wait_s": wait_s}
    receipt = _ordered(api, "/v1/mesh/kill", body, wait_s)
    click.echo(receipt.text if as_json else kill_text(receipt.document), nl=not as_json)
    sys.exit(_kill_code(receipt.document))


@click.command()
@click.argument("what", metavar="SELECTOR|KILL_ID", required=False)
@all_option
@reason_option
@click.option(
    "--carve-out",
    is_flag=True,
    help="When a wider order stops it, leave that in force and except this part of it.",
)
@wait_option
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
    body: dict[str, Any] = {
        "reason": reason,
        "wait_s": wait_s,
        "carve_out": True if carve_out else None,
    }
    if what and not everything and _KILL_ID.fullmatch(what):
        body["kill_id"] = what
    else:
        body["selector"] = str(selector_or_all(api, what, everything))
    receipt = _ordered(api, "/v1/mesh/resume", body, wait_s)
    click.echo(
        receipt.text if as_json else resume_text(receipt.document, carve_out), nl=not as_json
    )
    sys.exit(_resume_code(receipt.document))


@click.command()
@click.option("--all", "lifted_too", is_flag=True, help="Lifted orders too.")
@json_option
@with_api
def kills(api: Api, lifted_too: bool, as_json: bool) -> None:
    """List the orders in force."""
    answer = api.get("/v1/mesh/kills", {"all": 1 if lifted_too else None})
    if as_json:
        click.echo(answer.text, nl=False)
        return
    rows = answer.document.get("kills", ())
    click.echo(_kills_table(rows, lifted_too) if rows else "No orders are in force.")


@click.command("list")
@click.argument("selector", required=False)
@click.option("--watch", is_flag=True, help="Go on showing it, every second, until Ctrl-C.")
@json_option
@with_api
def list_agents(api: Api, selector: str | None, watch: bool, as_json: bool) -> None:
    """List the agents that have been seen."""
    meant = str(selector_of(api, selector)) if selector else None

    def shown() -> str:
        answer = api.get("/v1/mesh/agents", {"selector": meant, "limit": MOST_AGENTS})
        return answer.text.rstrip("\n") if as_json else _agents_table(answer.document)

    if watch:
        _watch(shown)
    else:
        click.echo(shown())


@click.command()
@click.argument("agent")
@json_option
@with_api
def show(api: Api, agent: str, as_json: bool) -> None:
    """Show one agent and its instances."""
    ref, _ = agent_of(api, agent)
    answer = api.get(agent_path(ref))
    click.echo(answer.text if as_json else _agent_text(answer.document), nl=not as_json)


def _ordered(api: Api, path: str, body: Mapping[str, Any], wait_s: float) -> Answer:
    try:
        return api.post(path, body, timeout_s=wait_s + ANSWER_S)
    except KeyboardInterrupt:
        # Nobody may think that Ctrl-C took the order back.
        raise Failure(
            "stopped waiting, but what was ordered stays so: see `haltwire kills`."
        ) from None
    except Refused as refused:
        # An order that could not be stored is in force all the same where its receipt says so.
        if "proxies" in refused.answer.document:
            return refused.answer
        raise


def _kill_code(receipt: Mapping[str, Any]) -> int:
    if not receipt.get("ok"):
        return FAILED
    if receipt.get("confirmed"):
        return 0
    return NOT_FOUND if receipt.get("matched", {}).get("agents") == 0 else NOT_PROVEN


def _resume_code(receipt: Mapping[str, Any]) -> int:
    if not receipt.get("ok"):
        return FAILED
    if receipt.get("still_killed_by"):
        return STILL_KILLED
    if receipt.get("unconfirmed_because") == "proxy_pending":
        return NOT_PROVEN
    unknown = not receipt.get("lifted") and receipt.get("matched", {}).get("agents") == 0
    return NOT_FOUND if unknown else 0


def _watch(shown: Callable[[], str]) -> None:
    terminal = sys.stdout.isatty()
    last = ""
    try:
        while True:
            try:
                text = shown()
            except Failure as failure:
                if not last:
                    raise
                text = failure.format_message()  # it may come back: a restarted `up` does
            if terminal:
                click.echo(_redraw(text, clear=not last), nl=False)
            elif text != last:
                click.echo(text)
            sys.stdout.flush()
            last = text
            time.sleep(REDRAW_S)
    except KeyboardInterrupt:
        sys.exit(0)


def _redraw(text: str, clear: bool) -> str:
    """Home, each line cleared behind its end, then the rest of the screen: nothing flickers or scrolls."""
    lines = text.splitlines()[: shutil.get_terminal_size().lines - 1]
    start = "\x1b[2J\x1b[H" if clear else "\x1b[H"
    return start + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _kills_table(rows: list[Mapping[str, Any]], lifted_too: bool) -> str:
    headers = ["ID", "SELECTOR", "PROVEN", "BY", "SINCE", "REASON"]
    cells = [
        [
            row["kill_id"],
            row["selector"],
            "yes" if row.get("confirmed") else "no" if row.get("lifted_at") else "NOT YET",
            row["actor"],
            ago(row["created_at"], _now()),
            row.get("reason") or "",
        ]
        for row in rows
    ]
    if lifted_too:
        headers.insert(5, "LIFTED")
        for row, cell in zip(rows, cells, strict=True):
            cell.insert(5, ago(row["lifted_at"], _now()) if row.get("lifted_at") else "")
    return table(headers, cells)


def _agents_table(document: Mapping[str, Any]) -> str:
    agents = document.get("agents", ())
    if not agents:
        return "No agent has been seen."
    return table(
        ["AGENT", "STATUS", "INSTANCES", "REQUESTS", "LAST SEEN", "LAST SAID"],
        [
            [
                agent["agent_uri"],
                agent["status"],
                _instances(agent),
                agent.get("requests", ""),
                ago(agent.get("last_seen_at"), _now()),
                facts(agent.get("metadata")),
            ]
            for agent in agents
        ],
    )


def _instances(agent: Mapping[str, Any]) -> str:
    number, stopped = agent["instances"], agent["instances_killed"]
    return f"{number} ({stopped} killed)" if stopped else str(number)


def _agent_text(document: Mapping[str, Any]) -> str:
    agent = document["agent"]
    lines = [
        f"{escape(agent['agent_uri'])}: {escape(agent['status'])}",
        f"last seen {clock(agent.get('last_seen_at'))}",
    ]
    if orders := agent.get("kills"):
        lines += ["", _kills_table(orders, lifted_too=False)]
    if instances := agent.get("instances_detail"):
        lines += [
            "",
            table(
                ["INSTANCE", "STATUS", "REQUESTS", "LAST SEEN", "LAST SAID"],
                [
                    [
                        row["instance"],
                        row["status"],
                        row.get("requests", ""),
                        ago(row.get("last_seen_at"), _now()),
                        facts(row.get("metadata")),
                    ]
                    for row in instances
                ],
            ),
        ]
    return "\n".join(lines)
