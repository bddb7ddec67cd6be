"""`haltwire up` whose workers reach the control server through what a test has put in between.

As a program it is put in front of the command of `System`, is that command itself, and only moves
the control server's address that each worker is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

LINK_PORTS, LINK_FILE = "TEST_LINK_PORTS", "TEST_LINK_FILE"


def main() -> None:
    """Run the command line behind `PYTHON -m haltwire_cli` in this process."""
    from haltwire_cli import supervisor

    ports = json.loads(os.environ.pop(LINK_PORTS))
    file = Path(os.environ.pop(LINK_FILE))
    supervise = supervisor.supervise

    def moved(child, port):
        file.write_text(child.instructions["control_url"])
        there = {**child.instructions, "control_url": f"http://127.0.0.1:{port}"}
        return replace(child, instructions=there)

    def through(stages, *others, **named):
        left = list(ports)
        new = [
            [
                moved(child, left.pop(0)) if "control_url" in child.instructions else child
                for child in stage
            ]
            for stage in stages
        ]
        return supervise(new, *others, **named)

    # Whoever imports it does so later: `up` is a command that is loaded when it is called.
    supervisor.supervise = through
    sys.argv = ["haltwire", *sys.argv[4:]]
    from haltwire_cli.__main__ import main as command_line

    command_line()


if __name__ == "__main__":
    main()
else:
    from support.disks import children_of
    from support.faultproxy import FaultProxy
    from support.system import CLEAN, System

    class FaultySystem(System):
        """One with a fault proxy per worker: `links`."""

        prefix = (sys.executable, "-P", __file__)
        links: list[FaultProxy]

        def pids(self, role: str) -> list[int]:
            """The processes of this role that live, in no order: `proxy` or `control`."""
            found = []
            for pid in children_of(self.process.pid):
                with contextlib.suppress(OSError):
                    if f"\0{role}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(pid)
            return found

        async def leases_lost(self) -> float:
            """How often a worker's lease has run out over live connections."""
            import urllib.request
            from asyncio import to_thread

            def read() -> str:
                with urllib.request.urlopen(self.control_url + "/metrics", timeout=30) as answer:
                    return answer.read().decode()

            lines = (await to_thread(read)).splitlines()
            return sum(
                float(line.split()[1])
                for line in lines
                if line.startswith("haltwire_leases_lost_total ")
            )

    @contextlib.asynccontextmanager
    async def faulty_system(
        folder: Path, *options: str, workers: int = 2, chance: random.Random | None = None
    ) -> AsyncIterator[FaultySystem]:
        """A running one. The fault proxies outlive it, so that its end needs no link to be healed."""
        file = folder / "control_url"

        def target() -> tuple[str, int]:
            there = urlsplit(file.read_text())
            return there.hostname or "", there.port or 0

        async with contextlib.AsyncExitStack() as stack:
            made = random.Random(1) if chance is None else chance
            links = [
                await stack.enter_async_context(FaultProxy(target, made)) for _ in range(workers)
            ]
            ports = json.dumps([link.port for link in links])
            env = {**CLEAN, LINK_PORTS: ports, LINK_FILE: str(file)}
            system = FaultySystem(folder / "data", "--workers", str(workers), *options, env=env)
            system.links = links
            async with system:
                yield system
