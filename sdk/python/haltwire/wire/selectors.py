"""Selectors: which agents and instances an order, a token or a question is about.

Globs are per segment: `*` stands for any run of characters inside one segment or instance name,
`**` only as the last segment, for one or more segments. There is no other special character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from haltwire.wire.names import SCHEME, AgentRef

_SEGMENT = re.compile(r"[a-z0-9*][a-z0-9_*-]{0,62}")
_INSTANCE = re.compile(r"(?:ip:[0-9a-fA-F.:*]{1,45}|[A-Za-z0-9._*-]{1,128})")
DEEP = "**"


@dataclass(frozen=True, slots=True)
class Selector:
    """A set of agents, or of instances of them; `str()` is its canonical text."""

    segments: tuple[str, ...]
    instance: str | None = None
    "A glob over instance names; None means every instance, unnamed ones included."
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _instance_pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.segments) <= 8:
            raise ValueError(f"a selector has 1 to 8 segments: {str(self)!r}")
        for position, segment in enumerate(self.segments):
            last = position == len(self.segments) - 1
            if segment == DEEP and last:
                continue
            if DEEP in segment or not _SEGMENT.fullmatch(segment):
                raise ValueError(
                    f"{segment!r} in {str(self)!r} is no selector segment: '*' stands for a part of one segment, '**' only for the whole end"
                )
        if len(self.segments) == 1 and self.segments[0] != DEEP:
            raise ValueError(f"{str(self)!r} names no agent: agents have 2 to 8 segments")
        if self.instance is not None and (
            DEEP in self.instance or not _INSTANCE.fullmatch(self.instance)
        ):
            raise ValueError(f"{self.instance!r} in {str(self)!r} is no instance name or glob")
        if self.instance == "*":
            object.__setattr__(self, "instance", None)
        # What names exactly one is compared, not matched: 10,000 orders would be 10,000 patterns.
        path = instance_pattern = None
        if any("*" in segment for segment in self.segments):
            path = "/".join(
                _regex(segment, position) if segment != DEEP else r"[^/]+(?:/[^/]+)*"
                for position, segment in enumerate(self.segments)
            )
        if self.instance is not None and "*" in self.instance:
            instance_pattern = _regex(self.instance)
        object.__setattr__(self, "_pattern", path and re.compile(path))
        object.__setattr__(
            self, "_instance_pattern", instance_pattern and re.compile(instance_pattern)
        )

    def __str__(self) -> str:
        tail = "" if self.instance is None else f"~{self.instance}"
        return SCHEME + "/".join(self.segments) + tail

    @property
    def agent(self) -> AgentRef | None:
        """The one agent it names, or None when its agent part is a glob."""
        return _agent_of(self.segments)

    @property
    def bound_instance(self) -> str | None:
        """The one instance it names, or None when it may be several."""
        return self.instance if self.instance is not None and "*" not in self.instance else None

    def matches_agent(self, agent: AgentRef) -> bool:
        """Whether some instance of the agent may be in the set."""
        if self._pattern is None:
            return agent.segments == self.segments
        return self._pattern.fullmatch("/".join(agent.segments)) is not None

    def matches_instance(self, instance: str) -> bool:
        """Whether the instance part lets this name pass."""
        if self._instance_pattern is None:
            return self.instance is None or self.instance == instance
        return self._instance_pattern.fullmatch(instance) is not None

    def matches(self, agent: AgentRef, instance: str) -> bool:
        """Whether this instance of this agent is in the set."""
        return self.matches_agent(agent) and self.matches_instance(instance)

    def covers(self, other: Selector) -> bool:
        """Whether all that `other` can ever match is in this set. Never true wrongly."""
        if not _covers_path(self.segments, other.segments):
            return False
        if self.instance is None:
            return True
        return other.instance is not None and _covers_glob(self.instance, other.instance)

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read the canonical form; ValueError on anything else."""
        if not text.startswith(SCHEME):
            raise ValueError(f"a selector is written agent://org/env/name, not {text!r}")
        path, tilde, instance = text[len(SCHEME) :].partition("~")
        return cls(tuple(path.split("/")), instance if tilde else None)

    @classmethod
    def of(cls, agent: AgentRef, instance: str | None = None) -> Selector:
        """The selector of exactly this agent, or of this instance of it."""
        return cls(agent.segments, instance)


EVERYTHING = Selector((DEEP,))


class UnknownNameError(ValueError):
    """A bare name that does not end exactly one known agent; the caller shows `candidates`."""

    def __init__(self, name: str, candidates: tuple[AgentRef, ...]) -> None:
        self.name = name
        self.candidates = candidates
        listed = ", ".join(map(str, candidates))
        super().__init__(
            f"{name!r} could be {listed}: type one of them in full"
            if candidates
            else f"no agent ends in {name!r}: type it in full, such as agent://org/env/{name}"
        )


def parse_typed(text: str, known: Iterable[AgentRef] = ()) -> Selector:
    """Read what a person typed: the scheme may be missing, dots may be slashes, a bare NAME may stand alone.

    Raises UnknownNameError when a bare name does not end exactly one of `known`, ValueError on anything else.
    """
    bare = text[len(SCHEME) :] if text.startswith(SCHEME) else text
    path, tilde, instance = bare.partition("~")
    segments = tuple(path.split("/") if "/" in path else path.split("."))
    if len(segments) == 1 and segments[0] != DEEP:
        Selector(("any", *segments))  # refuses a misspelt name before asking who that is
        if "*" in path:
            raise ValueError(f"a glob needs its place: agent://org/env/{path} or agent://**")
        named = tuple(sorted(agent for agent in set(known) if agent.name == path))
        if len(named) != 1:
            raise UnknownNameError(path, named)
        segments = named[0].segments
    return Selector(segments, instance if tilde else None)


def needs_known(text: str) -> bool:
    """Whether `parse_typed` has to know the agents to read this text."""
    path = (text[len(SCHEME) :] if text.startswith(SCHEME) else text).partition("~")[0]
    return "/" not in path and "." not in path and path != DEEP


@lru_cache(maxsize=4096)
def _agent_of(segments: tuple[str, ...]) -> AgentRef | None:
    # Asked for every new connection of an agent, of its token's selector.
    return None if any("*" in segment for segment in segments) else AgentRef(segments)


def _regex(glob: str, position: int = 0) -> str:
    first, *rest = map(re.escape, glob.split("*"))
    if not rest:
        return first
    # Each part at its first place and at no other: a plain [^/]* for every '*' would take ages for
    # '*a*a*a…'. That is an atomic group, which re has from Python 3.11 on; a lookahead that captures
    # does the same, as in fnmatch.
    middle = "".join(
        f"(?=(?P<g{position}_{number}>[^/]*?{part}))(?P=g{position}_{number})"
        for number, part in enumerate(rest[:-1])
    )
    return first + middle + "[^/]*" + rest[-1]


def _covers_path(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    deep = wide[-1] == DEEP
    head = wide[:-1] if deep else wide
    if deep:
        if len(narrow) <= len(head):
            return False
    elif len(narrow) != len(head) or narrow[-1] == DEEP:
        return False
    return all(_covers_glob(w, n) for w, n in zip(head, narrow, strict=False))


def _covers_glob(wide: str, narrow: str) -> bool:
    # A '*' of the narrow one is a character that only a '*' of the wide one can swallow.
    return re.fullmatch(_regex(wide), narrow) is not None
