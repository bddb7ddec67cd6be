"""Whether a proxy has ended: only what can be seen counts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from haltwire_control.presence import has_ended, this_machine
from haltwire_control.state import ProxyRecord
from support.control import my_ticks

HERE = this_machine()
SELF = ProxyRecord(
    "w-1",
    HERE.host,
    HERE.boot_id,
    os.getpid(),
    HERE.pid_namespace,
    my_ticks(),
    "1",
    datetime.now(timezone.utc),
)
CASES = {
    "this very process": ({}, False),
    "no process has that pid": ({"pid": 2**22 + 1}, True),
    "another process has the pid now": ({"started_ticks": SELF.started_ticks + 1}, True),
    "the machine was started anew": ({"boot_id": "another"}, True),
    "another machine with this one's name": ({"boot_id": "another", "key_id": "Y1"}, False),
    "another machine": ({"host": "elsewhere", "boot_id": "another", "pid": 2**22 + 1}, False),
    "another pid namespace": ({"pid_namespace": "pid:[1]", "pid": 2**22 + 1}, False),
}


@pytest.mark.parametrize(("change", "ended"), CASES.values(), ids=CASES)
def test_has_ended(change, ended):
    assert has_ended(replace(SELF, **change), HERE) is ended


def test_a_machine_that_tells_nothing_proves_nothing():
    assert not has_ended(replace(SELF, pid=2**22 + 1), replace(HERE, boot_id=""))


def test_a_killed_process_that_nobody_has_waited_for_has_ended():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii")
    ticks = int(stat.rpartition(")")[2].split()[19])
    record = replace(SELF, pid=child.pid, started_ticks=ticks)
    assert not has_ended(record, HERE)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert has_ended(record, HERE)
    child.stdin.close()
    child.wait()
    assert has_ended(record, HERE)
