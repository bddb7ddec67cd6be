"""No process of ours outlives the one that started it, whatever state it is in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUCK = """
import sys, time
from haltwire_cli.orphan import end_with_parent
end_with_parent()
print("stuck", flush=True)
while True: time.sleep(10)
"""

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return condition()


def test_a_process_whose_loop_stands_still_ends_with_its_stdin():
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"stuck\n"
        process.stdin.close()
        assert process.wait(10) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel ends stopped children")
def test_a_stopped_process_ends_with_its_parent():
    """It can notice nothing. Without asking the kernel it was there ten seconds after its parent's death."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, STUCK], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        try:
            os.kill(child, signal.SIGSTOP)
            parent.kill()
            parent.wait()
            assert wait_for(lambda: not lives(child), 10)
        finally:
            if lives(child):
                os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel is asked")
def test_a_parent_that_has_died_before_is_noticed():
    """No signal comes for a death before the kernel was asked to send one."""
    reading, writing = os.pipe()
    os.close(writing)
    command = [sys.executable, "-c", STUCK]
    done = subprocess.run(command, stdin=reading, capture_output=True, timeout=20)
    os.close(reading)
    assert (done.returncode, done.stdout) == (0, b"")
