"""The demo as a user runs it: it passes, its output is plain in a log, and nothing of it survives any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "haltwire_cli", "demo"]
WITHIN_S = 90
pytestmark = pytest.mark.slow


@contextmanager
def playing(tmp_path: Path, *arguments: str):
    """The demo with its temporary files in `tmp_path`, in a shell that is set up for something else."""
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "HALTWIRE_URL": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    with subprocess.Popen(
        [*DEMO, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def descendants(folder: Path) -> list[str]:
    """The command lines of all live programs that work in this folder, removed or not."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            place = (entry / "cwd").readlink()
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(place).startswith(str(folder)):
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def line_with(demo: subprocess.Popen[str], words: str) -> None:
    """Read on until a line has these words."""
    read = []
    for line in demo.stdout:
        read.append(line)
        if words in line:
            return
    pytest.fail(f"no line has {words!r}: {''.join(read)}")


def gone(folder: Path) -> bool:
    """Whether everything that was started has ended, and its files are removed, before long."""
    deadline = time.monotonic() + 20
    while descendants(folder) or list(folder.iterdir()):
        if time.monotonic() > deadline:
            print(descendants(folder), list(folder.iterdir()))
            return False
        time.sleep(0.1)
    return True


def test_it_passes_and_says_why(tmp_path):
    with playing(tmp_path) as demo:
        output, _ = demo.communicate(timeout=WITHIN_S)
    assert demo.returncode == 0, output
    for words in (
        "$ haltwire up --workers 2",
        "$ haltwire run demo/prod/mailer --instance i-3 -- python replica.py",
        "$ haltwire kill demo/prod/mailer --reason",
        "Stopped agent://demo/prod/mailer in ",
        "sent partly",
        "$ haltwire resume demo/prod/mailer",
        "ok      All 2 proxies confirmed",
        "ok      The provider's books at the kill lie within the receipt's bounds",
        "ok      Between receipt and resume the provider read 0 bytes on 0 new connections",
        "ok      After the resume all 360 messages were delivered: none missing, none doubled",
        "The demo has passed",
    ):
        assert words in output, output
    assert "\x1b" not in output
    assert "hwa_" not in output
    assert "hwk_" not in output
    assert gone(tmp_path)


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("$ haltwire up", signal.SIGINT),
        ("$ haltwire kill", signal.SIGTERM),
        ("$ haltwire run demo/prod/mailer --instance i-1", signal.SIGKILL),
        ("$ haltwire list", signal.SIGKILL),
    ],
    ids=["interrupted at the start", "terminated in the kill", "killed at the start", "killed"],
)
def test_it_leaves_nothing_behind_however_it_ends(tmp_path, when, number):
    with playing(tmp_path) as demo:
        line_with(demo, when)
        demo.send_signal(number)
        code = demo.wait(30)
    assert code == (-number if number == signal.SIGKILL else 130)
    assert gone(tmp_path)


def test_kept_it_goes_on_and_tells_how_to_use_it(tmp_path):
    with playing(tmp_path, "--keep") as demo:
        line_with(demo, "export HALTWIRE_DATA_DIR=")
        line_with(demo, "from i-4")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130
    assert gone(tmp_path)
