"""The control server as a process of its own, for tests that kill it: config on stdin, one line when ready."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.control import PROXY_KEY


async def main() -> None:
    """Be the control server."""
    from haltwire_control.app import ControlConfig, serve

    config = json.loads(_line())
    await serve(ControlConfig(**config), lambda: print("ready", flush=True))


def _line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    return line


class ControlProcess:
    """A control server that can be ended in any way."""

    def __init__(self, data_dir: Path, listen_fd: int, loop: str = "uvloop") -> None:
        config = {
            "data_dir": str(data_dir),
            "listen_fd": listen_fd,
            "local_proxy_key": PROXY_KEY,
            "proxy_url": "http://127.0.0.1:8080",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-OP", __file__, loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[listen_fd],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        self.process.stdin.write(json.dumps(config).encode() + b"\n")
        self.process.stdin.flush()

    def wait_ready(self) -> None:
        line = self.process.stdout.readline()
        if line != b"ready\n":
            raise AssertionError(self.process.stderr.read().decode())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self, timeout: float = 10) -> tuple[int, str]:
        """Wait for its end; exit code and what it said on stderr."""
        code = self.process.wait(timeout)
        said = self.process.stderr.read().decode()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()
        return code, said


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
