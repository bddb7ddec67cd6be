"""From what a caller writes to the agents that are meant; refused with the field named."""

from __future__ import annotations

from haltwire.wire.names import SCHEME
from haltwire.wire.selectors import Selector, UnknownNameError, needs_known, parse_typed

from haltwire_control.errors import ApiError, invalid_field
from haltwire_control.roster import known_agents
from haltwire_control.service import Service


def selector_of(text: str, service: Service, field: str = "selector") -> Selector:
    """A selector in any spelling that people type."""
    try:
        return parse_typed(text, known_agents(service) if needs_known(text) else ())
    except UnknownNameError as error:
        code = "ambiguous_name" if error.candidates else "unknown_name"
        raise ApiError(422, code, f"{field}: {error}") from error
    except ValueError as error:
        raise invalid_field(field, str(error)) from error


def agent_selector(text: str, service: Service) -> Selector:
    """One agent, or instances of one, from the path of a route."""
    # Programs between client and server like to make one slash of two.
    single = SCHEME[:-1]
    if text.startswith(single) and not text.startswith(SCHEME):
        text = SCHEME + text[len(single) :]
    selector = selector_of(text, service, "agent")
    if selector.agent is None:
        raise invalid_field("agent", "a glob needs its own route: POST /v1/mesh/kill or /resume")
    return selector


def with_instance(selector: Selector, instance: str | None) -> Selector:
    """The same agents, narrowed to an instance."""
    if instance is None:
        return selector
    if selector.instance is not None:
        raise invalid_field("instance", "the selector names instances already")
    try:
        return Selector(selector.segments, instance)
    except ValueError as error:
        raise invalid_field("instance", str(error)) from error
