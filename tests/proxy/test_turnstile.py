"""Connections take turns on the event loop, and whatever else is ready goes on in between."""

import asyncio

import pytest
from haltwire_proxy.turnstile import BUDGET_S, Course, Turnstile


class Clock:
    """Moved by those whose time it measures."""

    now = 0.0

    def __call__(self):
        return self.now


class Site:
    """Courses whose events each take as many budgets as they say, resting after each."""

    def __init__(self):
        self.clock = Clock()
        self.turnstile = Turnstile(self.clock)
        self.told = []
        self.tasks = []

    def course(self, name, line=None):
        def handle(budgets):
            for number in range(budgets):
                self.told.append(f"{name}{number}")
                self.clock.now += BUDGET_S
                if self.turnstile.is_over():
                    yield

        return Course(self.turnstile, line or name, handle)

    def take(self, course, budgets=1):
        self.tasks.append(asyncio.ensure_future(course.take(budgets)))
        return self.tasks[-1]

    async def done(self):
        await asyncio.wait_for(asyncio.gather(*self.tasks), 5)


@pytest.fixture
def site():
    return Site()


async def test_who_is_alone_goes_on_at_once(site):
    def handle(event):
        site.told.append(event)
        return iter(())

    # A coroutine that ends without having waited: no future, no turn of the loop.
    with pytest.raises(StopIteration):
        Course(site.turnstile, "a", handle).take("event").send(None)
    assert site.told == ["event"]


async def test_what_is_over_the_budget_waits_while_the_loop_goes_on(site):
    """A kill is a callback of the loop: it comes between two turns, whoever waits."""
    for _ in range(3):
        site.take(site.course("a"))
    await asyncio.sleep(0)  # all three have come
    asyncio.get_running_loop().call_soon(site.told.append, "kill")
    await site.done()
    assert sorted(site.told) == ["a0", "a0", "a0", "kill"]
    assert site.told.index("kill") < 3


async def test_within_the_budget_nobody_waits(site):
    for name in "abc":
        course = Course(site.turnstile, name, lambda event: iter(site.told.append(event) or ()))
        with pytest.raises(StopIteration):
            course.take(name).send(None)
    assert site.told == ["a", "b", "c"]


async def test_agents_take_turns_however_many_connections_each_has(site):
    """One agent with many connections does not make another wait behind all of them."""
    for number in range(4):
        site.take(site.course(f"busy{number}.", "busy"))
    site.take(site.course("other."))
    await site.done()
    assert sorted(site.told) == ["busy0.0", "busy1.0", "busy2.0", "busy3.0", "other.0"]
    assert site.told.index("other.0") <= 2


async def test_a_long_event_rests_where_it_may_and_its_connection_stays_in_order(site):
    first, other = site.course("a"), site.course("b")
    site.take(first, 3)
    site.take(first, 1)
    site.take(other, 2)
    await site.done()
    assert [step for step in site.told if step[0] == "a"] == ["a0", "a1", "a2", "a0"]
    assert site.told.index("b0") < site.told.index("a2")


async def test_an_event_is_handled_to_its_end_when_its_caller_is_cancelled(site):
    """A layer that is left in the middle of an event would hang for ever."""
    course = site.course("a")
    task = site.take(course, 3)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), 5)
    assert site.told == ["a0", "a1", "a2"]


async def test_a_step_that_fails_stops_nobody_else(site):
    failures = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    site.take(site.course("a"))
    await asyncio.sleep(0)
    site.turnstile.wait("broken", lambda: 1 / 0)
    site.take(site.course("b"))
    await site.done()
    assert site.told == ["a0", "b0"]
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
