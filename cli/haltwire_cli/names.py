"""What a person types for an agent, made a selector: asks the control server only when a bare name needs it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from urllib.parse import quote

import click
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import EVERYTHING, Selector, UnknownNameError, needs_known, parse_typed

from haltwire_cli.api import Api
from haltwire_cli.failures import USAGE, Failure

MOST_AGENTS = 10_000
"As many as the control server lists."
KILL_ID = re.compile(r"K[0-9A-Z]{12}")


def selector_of(api: Api, typed: str) -> Selector:
    """The selector that was meant; a usage error with the candidates when it could be several or none."""
    known = known_agents(api) if needs_known(typed) else []
    try:
        return parse_typed(typed, known)
    except UnknownNameError as error:
        raise Failure(f"{error}.{_similar(error, known)}", USAGE) from error
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def selector_or_all(api: Api, typed: str | None, everything: bool) -> Selector:
    """The one that was typed, or all agents when `--all` stands instead."""
    if (typed is None) is not everything:
        raise click.UsageError("name one agent or selector, or say --all.")
    return EVERYTHING if typed is None else selector_of(api, typed)


def agent_of(api: Api, typed: str) -> tuple[AgentRef, str | None]:
    """The one agent that was meant, and the instance if one was typed."""
    selector = selector_of(api, typed)
    if selector.agent is None or (selector.instance and not selector.bound_instance):
        raise click.UsageError(f"{typed!r} is a glob; this needs one agent.")
    return selector.agent, selector.bound_instance


def known_agents(api: Api) -> list[AgentRef]:
    """Every agent that the control server has seen."""
    agents = api.get("/v1/mesh/agents", {"limit": MOST_AGENTS}).document.get("agents", ())
    return [AgentRef.parse(agent["agent_uri"]) for agent in agents]


def _similar(error: UnknownNameError, known: Iterable[AgentRef]) -> str:
    if error.candidates:
        return ""  # they are named already
    close = set(get_close_matches(error.name, {agent.name for agent in known}))
    agents = sorted(str(agent) for agent in known if agent.name in close)
    return f" Did you mean {' or '.join(agents)}?" if agents else ""


def agent_path(agent: AgentRef) -> str:
    """Where the API keeps this agent."""
    return f"/v1/mesh/agents/{quote(str(agent), safe='')}"


def kill_id(typed: str) -> str:
    """A kind of value: the id of a kill."""
    if not KILL_ID.fullmatch(typed):
        raise click.BadParameter(
            f"{typed!r} is no kill's id, such as K0123456789AB: `haltwire kills --all` lists them."
        )
    return typed


def kill_path(kill_id: str) -> str:
    """Where the API keeps this kill."""
    return f"/v1/mesh/kills/{quote(kill_id, safe='')}"
