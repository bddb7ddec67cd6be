"""The orders that are in force, and the agents that they are about."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import click
from haltwire.wire.orders import HOLD

from haltwire_cli.api import Api, with_api
from haltwire_cli.failures import Failure
from haltwire_cli.names import KILL_ID, MOST_AGENTS, agent_of, agent_path, kill_path, selector_of
from haltwire_cli.options import json_option
from haltwire_cli.output import ago, ahead, clock, escape, facts, table
from haltwire_cli.receipt_text import kill_text, order_text, resume_text

REDRAW_S = 1.0


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
@click.argument("what", metavar="AGENT|KILL_ID")
@json_option
@with_api
def show(api: Api, what: str, as_json: bool) -> None:
    """Show one agent and its instances, or the receipt of one kill and of its resume."""
    if is_order := KILL_ID.fullmatch(what) is not None:
        answer = api.get(kill_path(what))
    else:
        answer = api.get(agent_path(agent_of(api, what)[0]))
    if as_json:
        click.echo(answer.text, nl=False)
    else:
        click.echo(_order_text(answer.document) if is_order else _agent_text(answer.document))


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
    headers = ["ID", "SELECTOR", "MODE", "PROVEN", "BY", "SINCE", "EXPIRES", "REASON"]
    cells = [
        [
            row["kill_id"],
            row["selector"],
            _mode(row),
            "yes" if row.get("confirmed") else "no" if row.get("lifted_at") else "NOT YET",
            row["actor"],
            ago(row["created_at"], _now()),
            _still(row, "expires_at"),
            row.get("reason") or "",
        ]
        for row in rows
    ]
    if lifted_too:
        headers.insert(-1, "LIFTED")
        for row, cell in zip(rows, cells, strict=True):
            cell.insert(-1, ago(row["lifted_at"], _now()) if row.get("lifted_at") else "")
    return table(headers, cells)


def _mode(row: Mapping[str, Any]) -> str:
    limit = _still(row, "hold_until") if row["mode"] == HOLD else ""
    return f"{row['mode']}, cut {limit}" if limit else str(row["mode"])


def _still(row: Mapping[str, Any], name: str) -> str:
    """How long until something happens to an order in force."""
    moment = row.get(name)
    return ahead(moment, _now()) if moment and not row.get("lifted_at") else ""


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
    parts = [
        f"{agent[name]} {word}"
        for name, word in (("instances_killed", "killed"), ("instances_held", "held"))
        if agent.get(name)
    ]
    return f"{agent['instances']} ({', '.join(parts)})" if parts else str(agent["instances"])


def _order_text(document: Mapping[str, Any]) -> str:
    order, receipt, resumed = document["kill"], document.get("receipt"), document.get("resume")
    parts = [order_text(order)]
    if receipt:
        parts.append(kill_text(receipt, _now(), lifted=not order["in_force"]))
    else:
        parts.append("No receipt of it is stored.")
    if resumed:
        parts.append(resume_text(resumed))
    return "\n\n".join(parts)


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
