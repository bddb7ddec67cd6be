"""Who lives, by what is answered; and the child's half, on a real loop and real pipes."""

import asyncio
import os
import threading
import time

import pytest
from haltwire_cli.pulse import LATE_S, Pulse, answering


def test_one_question_is_open_at_a_time():
    """A child that stands still must not find a pipe full of them, nor fill one for a supervisor that does."""
    pulse = Pulse(2.0)
    assert pulse.question(0.0) == b"1\n"
    assert pulse.question(1.0) is None
    pulse.take(b'{"alive": 1}', 1.5)
    assert (pulse.heard_at, pulse.question(1.6)) == (1.5, b"2\n")


@pytest.mark.parametrize(
    ("now", "late_s", "hung"),
    [(2.0, 0.0, False), (2.1, 0.0, True), (2.1, LATE_S + 0.1, False)],
    ids=["in time", "silent", "the supervisor stood still itself"],
)
def test_who_is_given_up(now, late_s, hung):
    pulse = Pulse(2.0)
    pulse.question(0.0)
    assert pulse.hung(now, late_s) is hung


def test_after_standing_still_only_what_is_asked_then_counts():
    pulse = Pulse(2.0)
    pulse.question(0.0)
    assert not pulse.hung(500.0, late_s=499.0)
    assert pulse.question(500.0) == b"2\n"
    pulse.take(b'{"alive": 1}', 500.1)  # written before the supervisor stood still
    assert pulse.heard_at is None
    assert not pulse.hung(502.0, late_s=0.0)
    assert pulse.hung(502.1, late_s=0.0)


@pytest.mark.parametrize(
    "line", [b"", b"alive", b"[1]", b'{"alive": 2}', b'{"alive": "1"}', b'{"ready": true}', b"\xff"]
)
def test_chatter_is_no_answer(line):
    pulse = Pulse(2.0)
    pulse.question(0.0)
    pulse.take(line, 1.0)
    assert pulse.hung(2.1, 0.0)


def test_where_nobody_is_killed_it_is_still_known_who_answers():
    pulse = Pulse(None)
    pulse.question(0.0)
    assert not pulse.hung(1e6, 0.0)
    assert not pulse.answers(1e6)
    assert pulse.answers(1.0)


def test_a_child_is_asked_often_enough_to_be_judged():
    assert Pulse(2.0).every_s == 0.25
    assert Pulse(120.0).every_s == 1.0


@pytest.fixture
def pipes():
    asked, ask = os.pipe()
    heard, answer = os.pipe()
    yield ask, asked, answer, heard
    for fd in (asked, answer, heard):
        os.close(fd)


def read_in_time(fd: int) -> bytes:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


async def test_a_child_answers_each_question_on_a_line_of_its_own(pipes):
    ask, asked, answer, heard = pipes
    ended = answering(asked, answer)
    os.write(answer, b"chatter without an end of line")
    os.write(ask, b"7\n1")
    os.write(ask, b"2\n")
    said = b""
    async with asyncio.timeout(5):
        while b"12" not in said:
            await asyncio.sleep(0.01)
            said += read_in_time(heard)
    assert said.split(b"\n") == [
        b"chatter without an end of line",
        b'{"alive": 7}',
        b"",
        b'{"alive": 12}',
        b"",
    ]
    assert read_in_time(ended) == b""
    os.close(ask)
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(ended, over.set)
    await asyncio.wait_for(over.wait(), 5)
    loop.remove_reader(ended)
    assert os.read(ended, 1) == b""
    os.close(ended)


async def test_a_loop_that_stands_still_does_not_answer(pipes):
    """Its threads go on, and so would an answer of theirs."""
    ask, asked, answer, heard = pipes
    ended = answering(asked, answer)
    said = []

    def look() -> None:
        os.write(ask, b"1\n")
        time.sleep(0.3)
        said.append(read_in_time(heard))

    looking = threading.Thread(target=look)
    looking.start()
    looking.join()  # on the loop's own thread: it stands still
    assert said == [b""]
    async with asyncio.timeout(5):
        while not (late := read_in_time(heard)):
            await asyncio.sleep(0.01)
    assert late == b'\n{"alive": 1}\n'
    os.close(ask)
    loop = asyncio.get_running_loop()
    loop.remove_reader(asked)
    os.close(ended)
