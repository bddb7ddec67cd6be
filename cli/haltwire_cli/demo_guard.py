"""Runs a command that must not outlive the program that started it: `python demo_guard.py [--remove DIR] CMD…`.

The command ends when this guard's standard input does, however the holder of its other end came
to its end, or when the guard is told to terminate; then DIR is removed. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading

_PATIENCE_S = 8.0


def main(arguments: list[str]) -> int:
    """Run the command; its exit code, or 128 + N when signal N ended it."""
    folder = None
    if arguments[:1] == ["--remove"]:
        folder, arguments = arguments[1], arguments[2:]
    # A signal must not end the guard before its child; the child resets nothing, since handlers
    # (unlike SIG_IGN) do not survive exec.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
    threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    threading.Thread(target=_end, args=(child, stop), daemon=True).start()
    code = child.wait()
    if folder and stop.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _wait_for_end_of_input(stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    stop.set()


def _end(child: subprocess.Popen[bytes], stop: threading.Event) -> None:
    stop.wait()
    child.terminate()
    try:
        child.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
