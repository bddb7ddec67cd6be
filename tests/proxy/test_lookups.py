"""Look-ups under load: places per agent, and what happens to them when nobody waits any more."""

import asyncio
import socket
import subprocess
import sys
import threading

import pytest
import uvloop
from haltwire.wire.names import AgentRef
from haltwire_proxy import lookups
from haltwire_proxy.lookups import PER_AGENT, Lookups, getaddrinfo

MAILER, BILLING = AgentRef(("acme", "mailer")), AgentRef(("acme", "billing"))
ANSWER = [(socket.AF_INET, ("192.0.2.1", 80))]
LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


class SlowDns:
    """A resolver that answers `slow…` only when released, everything else at once."""

    def __init__(self):
        self.released = threading.Event()
        self.asked = []

    def __call__(self, host, port):
        self.asked.append(host)
        if host.startswith("slow"):
            self.released.wait()
        return ANSWER


@pytest.fixture
def dns():
    slow = SlowDns()
    yield slow
    slow.released.set()


def run(new_loop, story):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(asyncio.wait_for(story, 20))


@LOOPS
def test_an_agent_has_four_places_and_others_have_theirs(new_loop, dns):
    async def story():
        names = Lookups(dns)
        async with asyncio.TaskGroup() as group:
            for n in range(PER_AGENT + 1):
                group.create_task(names.find(f"slow{n}", 80, MAILER))
            await until(lambda: len(dns.asked) == PER_AGENT)
            assert await names.find("quick", 80, BILLING) == ANSWER
            assert len(dns.asked) == PER_AGENT + 1  # the fifth of the first agent still waits
            dns.released.set()
        assert len(dns.asked) == PER_AGENT + 2
        await until(lambda: not names._shares)
        names.close()

    run(new_loop, story())


@LOOPS
def test_who_leaves_frees_the_place_only_when_the_thread_comes_back(new_loop, dns):
    """Else cancelling and asking again would take all threads from everybody."""

    async def story():
        names = Lookups(dns)
        tasks = [
            asyncio.ensure_future(names.find(f"slow{n}", 80, MAILER)) for n in range(PER_AGENT)
        ]
        await until(lambda: len(dns.asked) == PER_AGENT)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await names.find("quick", 80, MAILER)
        assert "quick" not in dns.asked
        dns.released.set()
        assert await names.find("quick", 80, MAILER) == ANSWER
        await until(lambda: not names._shares)
        names.close()

    run(new_loop, story())


def test_who_leaves_the_queue_takes_no_thread(dns, monkeypatch):
    monkeypatch.setattr(lookups, "THREADS", 1)

    async def story():
        names = Lookups(dns)
        first = asyncio.ensure_future(names.find("slow", 80, MAILER))
        await until(lambda: dns.asked == ["slow"])
        second = asyncio.ensure_future(names.find("never", 80, BILLING))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        dns.released.set()
        assert await first == ANSWER
        assert await names.find("later", 80, BILLING) == ANSWER
        assert dns.asked == ["slow", "later"]
        names.close()

    run(asyncio.new_event_loop, story())


def test_threads_are_reused_and_bounded(dns):
    async def story():
        names = Lookups(dns)
        for n in range(100):
            await names.find(f"quick{n}", 80, MAILER)
        assert names._threads <= 2
        names.close()

    run(asyncio.new_event_loop, story())


@LOOPS
def test_a_failed_look_up_raises_and_frees_its_place(new_loop):
    def fail(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "unknown name")

    async def story():
        names = Lookups(fail)
        for _ in range(PER_AGENT + 1):
            with pytest.raises(socket.gaierror):
                await names.find("a.test", 80, MAILER)
        names.close()

    run(new_loop, story())


def test_getaddrinfo_gives_what_a_socket_can_connect_to():
    assert (socket.AF_INET, ("127.0.0.1", 80)) in getaddrinfo("127.0.0.1", 80)
    with pytest.raises(socket.gaierror):
        getaddrinfo("x" * 63 + ".invalid", 80)


def test_a_look_up_that_hangs_does_not_keep_the_process():
    """A worker that is told to stop must be gone within a second, whatever DNS does."""
    program = """
import asyncio, time
from haltwire.wire.names import AgentRef
from haltwire_proxy.lookups import Lookups

async def main():
    names = Lookups(lambda host, port: time.sleep(60))
    try:
        async with asyncio.timeout(0.01):
            await names.find("a.test", 80, AgentRef(("a", "b")))
    except TimeoutError:
        pass

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=True).returncode == 0


async def until(condition):
    """Turn the loop until something has happened."""
    while not condition():
        await asyncio.sleep(0.001)
