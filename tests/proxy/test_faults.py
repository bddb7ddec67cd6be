"""A fault closes; what is none passes."""

import asyncio

import pytest
from haltwire_proxy.faults import PASSED, FailClosed


class PanicError(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize("fault", [RuntimeError, MemoryError, RecursionError, PanicError])
def test_whatever_is_raised_closes(fault, caplog):
    closed = []
    with FailClosed("the part failed", lambda: closed.append(1)):
        raise fault("injected")
    assert closed == [1]
    assert "the part failed" in caplog.text
    assert "injected" in caplog.text


@pytest.mark.parametrize("end", PASSED)
def test_an_end_passes(end):
    closed = []
    with pytest.raises(end), FailClosed("", lambda: closed.append(1)):
        raise end
    assert closed == []


def test_without_a_fault_nothing_is_closed():
    with FailClosed("", lambda: pytest.fail("closed")):
        pass


def test_a_close_that_fails_is_heard_of():
    def fail():
        raise OSError("no")

    with pytest.raises(OSError, match="no"), FailClosed("", fail):
        raise RuntimeError


async def test_a_task_can_be_cancelled_in_it():
    async def stay():
        with FailClosed("", lambda: pytest.fail("closed")):
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(stay())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
