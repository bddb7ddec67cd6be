"""The programs that the demo starts, and the end of each of them.

All live in sessions of their own, so that Ctrl-C reaches the demo alone, and all end when their
standard input does: closing it is how the demo ends them, and how they end without the demo.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from haltwire_cli import demo_guard
from haltwire_cli.failures import Failure

COMMAND_S = 30.0
_END_S = 12.0


class Child:
    """One running program; its output goes to `on_line`, its errors to a file."""

    def __init__(
        self, name: str, process: subprocess.Popen[str], log: Path, on_line: Callable[[str], None]
    ) -> None:
        self.name = name
        self.process = process
        self._log = log
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True)
        self._reader.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def complaint(self) -> str:
        """The last line that it wrote to its standard error."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next(
            (line for line in reversed(lines) if line.strip()), "it said nothing"
        ).removeprefix("Error: ")

    def let_go(self) -> None:
        """Close its standard input, so that it ends."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def join(self, deadline: float) -> None:
        """Wait for its end until the deadline, then make an end of it."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(1.0)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()

    def _read(self, on_line: Callable[[str], None]) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                on_line(line)


class Children:
    """Starts programs in `folder`, on the data directory `folder/data`, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self._children: list[Child] = []
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HALTWIRE_")}
        self._environment = {**kept, "HALTWIRE_DATA_DIR": str(self.data_dir), "COLUMNS": "120"}

    def start(
        self, name: str, argv: Sequence[str], on_line: Callable[[str], None] = lambda _: None
    ) -> Child:
        """Start a program that ends when its standard input does."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
            )
        child = Child(name, process, log, on_line)
        self._children.append(child)
        return child

    def start_guarded(self, name: str, argv: Sequence[str]) -> Child:
        """Start a program that does not look at its standard input; the folder goes with it."""
        guard = [sys.executable, "-I", "-S", demo_guard.__file__, "--remove", str(self.folder)]
        return self.start(name, [*guard, *argv])

    def haltwire(self, *arguments: str) -> str:
        """Run a haltwire command to its end; its output, or Failure when its exit code is not 0."""
        done = subprocess.run(
            haltwire_argv(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            cwd=self.folder,
            env=self._environment,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise Failure(
                f"`haltwire {shlex.join(arguments)}` ended with exit code {done.returncode}: {said.removeprefix('Error: ')}"
            )
        return done.stdout

    def end(self, children: Sequence[Child] | None = None) -> None:
        """End these programs, or all, the last one first; safe to call again."""
        ending = list(reversed(self._children if children is None else children))
        # The first one is what the others need until their end.
        for group in ([c for c in ending if c is not self._children[0]], ending):
            deadline = time.monotonic() + _END_S
            for child in group:
                child.let_go()
            for child in group:
                child.join(deadline)


def haltwire_argv(*arguments: str) -> list[str]:
    """The haltwire command of this very installation."""
    return [sys.executable, "-m", "haltwire_cli", *arguments]
