"""Tokens for agents and keys for operators: made, listed, revoked. A secret is shown once, here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import click
from haltwire.wire.names import Label
from haltwire.wire.selectors import Selector

from haltwire_cli.api import Api, with_api
from haltwire_cli.failures import Failure
from haltwire_cli.names import selector_of
from haltwire_cli.options import json_option
from haltwire_cli.output import ago, escape, table
from haltwire_cli.proxy_line import proxy_line


@click.group()
def token() -> None:
    """Agents' secrets: what an agent is to the proxy."""


@token.command("create")
@click.argument("selector")
@click.option(
    "--tls",
    type=click.Choice(["tunnel", "intercept"]),
    help="Pass its HTTPS through unread, or read inside it; otherwise as `up` was told.",
)
@json_option
@with_api
def create_token(api: Api, selector: str, tls: str | None, as_json: bool) -> None:
    """Make a token for an agent, an instance (AGENT~INSTANCE) or a glob.

    One token per agent is what makes a kill inescapable: whoever holds the token of a glob can call
    itself any agent in it.
    """
    meant = selector_of(api, selector)
    answer = api.post("/v1/tokens", {"selector": str(meant), "tls": tls})
    if warning := breadth_warning(meant):
        click.echo(f"haltwire: {warning}", err=True)
    if as_json:
        click.echo(answer.text, nl=False)
        return
    made = answer.document
    click.echo(f"Token {escape(made['token_id'])} for {escape(made['selector'])}, shown this once:")
    click.echo(f"  secret       {escape(made['secret'])}")
    if made.get("proxy_url"):
        click.echo(f"  HTTPS_PROXY  {escape(made['proxy_url'])}")
    elif meant.agent is not None:
        label = Label(meant.agent, meant.bound_instance)
        click.echo(f"  HTTPS_PROXY  http://{label}:SECRET@HOST:PORT")
        click.echo(
            "Write the secret and the proxy's address there: this control server was not told where its proxies are (--proxy-url)."
        )
    else:
        click.echo("  HTTPS_PROXY  http://AGENT:SECRET@… with the agent's name, dots for slashes")


@token.command("list")
@json_option
@with_api
def list_tokens(api: Api, as_json: bool) -> None:
    """List the tokens that are valid."""
    answer = api.get("/v1/tokens")
    if as_json:
        click.echo(answer.text, nl=False)
        return
    rows = answer.document.get("tokens", ())
    click.echo(
        table(
            ["ID", "SELECTOR", "TLS", "MADE", "BY"],
            [
                [
                    row["token_id"],
                    row["selector"],
                    row.get("tls") or "as the proxy",
                    ago(row.get("created_at"), _now()),
                    row.get("created_by") or "",
                ]
                for row in rows
            ],
        )
        if rows
        else "There are no tokens; `haltwire token create AGENT` makes one."
    )


@token.command("revoke")
@click.argument("token_id")
@json_option
@with_api
def revoke_token(api: Api, token_id: str, as_json: bool) -> None:
    """End a token: whatever uses it is cut off."""
    answer = api.delete(f"/v1/tokens/{quote(token_id, safe='')}")
    click.echo(answer.text if as_json else f"Revoked {escape(token_id)}.", nl=not as_json)


@click.group()
def key() -> None:
    """Operators' secrets: who may look, kill and resume."""


@key.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "admin", "proxy"]),
    required=True,
    help="viewer looks; operator also kills and resumes; admin also makes tokens and keys. proxy connects `haltwire proxy` and does nothing else.",
)
@json_option
@with_api
def create_key(api: Api, name: str, role: str, as_json: bool) -> None:
    """Make a key; NAME is who the audit log says it was.

    For a proxy it prints what to type on its machine.
    """
    answer = api.post("/v1/keys", {"name": name, "role": role})
    made = answer.document
    line = proxy_line(api, name, click.get_current_context().params["ca_file"])
    if as_json:
        document = {**made, "command": line.command} if role == "proxy" else made
        click.echo(json.dumps(document))
        return
    click.echo(
        f"Key {escape(made['key_id'])} for {escape(made['name'])}, {escape(made['role'])}, shown this once:"
    )
    click.echo(f"  {escape(made['secret'])}")
    if role == "proxy":
        for text in line.told(str(made["secret"])):
            click.echo(escape(text))
        return
    click.echo(f"Use it as HALTWIRE_API_KEY, with HALTWIRE_URL={api.url}, or in a --key-file.")


@key.command("list")
@json_option
@with_api
def list_keys(api: Api, as_json: bool) -> None:
    """List the keys that are valid."""
    answer = api.get("/v1/keys")
    if as_json:
        click.echo(answer.text, nl=False)
        return
    click.echo(
        table(
            ["ID", "NAME", "ROLE", "MADE", "BY"],
            [
                [
                    row["key_id"],
                    row["name"],
                    row["role"],
                    ago(row.get("created_at"), _now()),
                    row.get("created_by") or "",
                ]
                for row in answer.document.get("keys", ())
            ],
        )
    )


@key.command("revoke")
@click.argument("key_id_or_name")
@json_option
@with_api
def revoke_key(api: Api, key_id_or_name: str, as_json: bool) -> None:
    """End a key."""
    answer = api.delete(f"/v1/keys/{quote(key_id_or_name, safe='')}")
    click.echo(answer.text if as_json else f"Revoked {escape(key_id_or_name)}.", nl=not as_json)


def breadth_warning(selector: Selector) -> str | None:
    """What a token's holder could do with it to slip out of a kill; None when nothing."""
    if selector.agent is None:
        return f"THIS TOKEN IS BROAD: its holder can call itself any agent in {selector}, so the kill of one agent does not hold it; make one token per agent instead."
    if selector.bound_instance is None:
        return "its holder can take any instance name, so only a kill of the whole agent is inescapable."
    return None


def proxy_url_of(made: Mapping[str, Any]) -> str:
    """The proxy URL in an answer to `POST /v1/tokens`; Failure when there is none."""
    if not made.get("proxy_url"):
        raise Failure(
            "the control server does not know where agents reach its proxies: start it with --proxy-url http://HOST:PORT."
        )
    return str(made["proxy_url"])


def _now() -> datetime:
    return datetime.now(timezone.utc)
