"""Every step of a worker's own code, found by looking, and a fault put into any of them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import haltwire_proxy

NOT_ON_THE_WAY = {"__init__", "authority", "clock", "faults", "leaf", "link", "worker"}
"Start, clocks, the link (tests/proxy/test_link.py), and what catches."
MODULES = sorted(
    {path.stem for path in Path(haltwire_proxy.__file__).parent.glob("*.py")} - NOT_ON_THE_WAY
)
"All that a request or an order meets on its way, modules that are new among them."


class PanicError(BaseException):
    """As pyo3's PanicException, which the Rust code under mitmproxy raises: no Exception."""


@dataclass(frozen=True)
class Step:
    """One function, method or property of ours."""

    owner: type | ModuleType
    name: str

    def __str__(self) -> str:
        if isinstance(self.owner, ModuleType):
            return f"{self.owner.__name__.rpartition('.')[2]}.{self.name}"
        module = self.owner.__module__.rpartition(".")[2]
        return f"{module}.{self.owner.__name__}.{self.name}"


def all_steps() -> list[Step]:
    """What the modules define: a new hook or step is in here without anybody naming it."""
    return [step for name in MODULES for step in _steps(name)]


def _steps(module_name: str) -> Iterator[Step]:
    module = importlib.import_module(f"haltwire_proxy.{module_name}")
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ or name.startswith("__"):
            continue
        if inspect.isclass(value):
            for member, what in vars(value).items():
                if not member.startswith("__") and _is_code(what):
                    yield Step(value, member)
        elif callable(value):
            yield Step(module, name)


def _is_code(what: object) -> bool:
    return inspect.isfunction(what) or isinstance(what, (property, staticmethod, classmethod))


@contextlib.contextmanager
def instead(step: Step, wrap: Callable[[Callable], Callable]) -> Iterator[None]:
    """Put what `wrap` makes of the step in its place, wherever it has been imported to."""
    old = vars(step.owner)[step.name]
    places = [(step.owner, step.name)]
    if isinstance(step.owner, ModuleType):
        for module_name in MODULES:
            module = importlib.import_module(f"haltwire_proxy.{module_name}")
            places += [(module, name) for name, value in vars(module).items() if value is old]
    new = _rewrapped(old, wrap)
    for owner, name in places:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name in places:
            setattr(owner, name, old)


def _rewrapped(old, wrap):
    if isinstance(old, property):
        return property(wrap(old.fget))
    if isinstance(old, (staticmethod, classmethod)):
        return type(old)(wrap(old.__func__))
    return wrap(old)


@contextlib.contextmanager
def watched(steps: list[Step]) -> Iterator[set[Step]]:
    """Which of the steps are taken until the block ends."""
    taken: set[Step] = set()

    def noting(step: Step) -> Callable[[Callable], Callable]:
        def wrap(old: Callable) -> Callable:
            def noted(*args, **kwargs):
                taken.add(step)
                return old(*args, **kwargs)

            return noted

        return wrap

    with contextlib.ExitStack() as stack:
        for step in steps:
            stack.enter_context(instead(step, noting(step)))
        yield taken


class Fault:
    """What a step raises while it is in place: the first time, or each time."""

    def __init__(self, error: type[BaseException], *, once: bool, on_first: Callable[[], None]):
        self.fired = 0
        self._error, self._once, self._on_first = error, once, on_first

    def wrap(self, old: Callable) -> Callable:
        def faulty(*args, **kwargs):
            if self._once and self.fired:
                return old(*args, **kwargs)
            self.fired += 1
            if self.fired == 1:
                self._on_first()
            raise self._error("injected")

        return faulty
