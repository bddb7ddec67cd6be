"""What is left of orders when the control server dies, its file is restored, lost or shared: real processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import aiohttp
import pytest
from support.client import Wire
from support.control_process import ControlProcess
from support.disks import control_pid, stopped
from support.origin import Origin
from support.system import System
from support.world import basic

MAILER, OTHER, LATER = (f"agent://acme/prod/{name}" for name in ("mailer", "other", "later"))


class Agent:
    """Asks an origin through the proxy, again and again, and remembers what it got."""

    def __init__(self, system: System, origin: Origin, selector: str, proxy_url: str) -> None:
        self.label = selector.removeprefix("agent://").replace("/", ".")
        self._secret = proxy_url.partition("@")[0].rpartition(":")[2]
        self._system, self._origin = system, origin
        self.got: list[tuple[int, str | None]] = []

    async def ask(self) -> tuple[int, str | None]:
        wire = await Wire.open(self._system.port)
        try:
            answer = await wire.request(
                "GET",
                f"{self._origin.url}/{self.label}",
                f"Host: {self._origin.host}",
                f"Proxy-Authorization: {basic(self.label, self._secret)}",
            )
        finally:
            wire.close()
        self.got.append((answer.status, json.loads(answer.body or b"{}").get("error")))
        return self.got[-1]

    async def keep_asking(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(0.02)


@contextmanager
def without_control(system: System):
    """The control server is dead, its parent does not start another, and the proxies live."""
    with stopped(system.process.pid):
        pid = control_pid(system.process.pid)
        os.kill(pid, signal.SIGKILL)
        while b"Z" not in _state(pid):
            pass
        yield


def _state(pid: int) -> bytes:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]


def backup(system: System) -> None:
    """With SQLite's own tool, of a store in use."""
    with (
        closing(sqlite3.connect(system.data_dir / "haltwire.db")) as source,
        closing(sqlite3.connect(system.data_dir / "backup")) as copy,
    ):
        source.backup(copy)


def restore(system: System) -> None:
    for path in system.data_dir.glob("haltwire.db*"):
        path.unlink()
    shutil.copy(system.data_dir / "backup", system.data_dir / "haltwire.db")


async def answers(system: System, path: str, is_so) -> dict:
    """Its answer, once that is as it should be; the server may be on its way."""
    async with asyncio.timeout(60):
        while True:
            try:
                status, said = await system.api("GET", path)
            except OSError:
                status, said = 0, {}
            if status and is_so(status, said):
                return said
            await asyncio.sleep(0.05)


async def test_a_backup_restored_under_running_proxies(tmp_path):
    """Killed after the backup, never let through again; not ready until somebody has looked."""
    async with Origin() as origin, System(tmp_path / "data", "--workers", "2") as system:
        killed, free = [
            Agent(system, origin, name, await system.token(name)) for name in (OTHER, LATER)
        ]
        assert await free.ask() == (200, None)
        backup(system)
        status, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": OTHER})
        assert (status, receipt["durable"]) == (200, True)
        lost = receipt["kill_id"]
        made = Agent(system, origin, MAILER, await system.token(MAILER))
        assert await made.ask() == (200, None)
        asking = asyncio.get_running_loop().create_task(killed.keep_asking())
        with without_control(system):
            restore(system)
        found = await answers(
            system,
            "/v1/recovery",
            lambda _, said: len((said.get("recovery") or {}).get("proxies", ())) >= 1,
        )
        assert [o["kill_id"] for o in found["recovery"]["orders_taken"]] == [lost]
        status, said = await system.api("GET", "/readyz")
        assert (status, "haltwire recover" in said["error"]["message"]) == (503, True)

        # What a person does at 3 a.m.
        looked = await system.cli("recover")
        assert looked.code == 1
        assert OTHER in looked.out
        resumed = await system.cli("resume", OTHER)
        assert resumed.code == 1
        assert "haltwire recover --accept" in resumed.err
        refused = await system.cli("token", "create", LATER)
        assert (refused.code, "haltwire recover" in refused.err) == (1, True)
        assert (await system.cli("kill", "acme.prod.mailer")).code in (0, 3)
        assert (await system.cli("list")).code == 0

        # A free one goes on as soon as its proxies have the new epoch; the token made since is gone.
        async with asyncio.timeout(30):
            while await free.ask() != (200, None):
                await asyncio.sleep(0.05)
        assert (await made.ask())[0] in (403, 407)
        accepted = await system.cli("recover", "--accept")
        assert (accepted.code, accepted.err) == (0, ""), accepted
        assert (await system.api("GET", "/readyz"))[0] == 200
        assert (await system.cli("audit", "verify", "--json")).json()["ok"] is True
        events = (await system.api("GET", "/v1/mesh/events?event_type=system.recovery"))[1][
            "events"
        ]
        assert events[-1]["actor"] == "key:admin"
        asking.cancel()
        assert len(killed.got) > 10
        assert {status for status, _ in killed.got} <= {403, 503}
        assert not any(target.endswith(killed.label) for _, target, _ in origin.requests)
        assert (await system.cli("resume", OTHER)).code == 0
        assert await killed.ask() == (200, None)


async def test_a_log_that_was_deleted_while_nobody_ran(tmp_path):
    """No proxy is left to say what is missing: the file itself does."""
    async with System(tmp_path / "data", "--workers", "1") as system:
        assert (await system.api("POST", "/v1/mesh/kill", {"selector": OTHER}))[1]["durable"]
        with without_control(system):
            workers_gone = system.process.pid
            os.kill(workers_gone, signal.SIGKILL)
        await system.process.wait()
        (system.data_dir / "haltwire.db-wal").unlink()
        (system.data_dir / "endpoints.json").unlink(missing_ok=True)
        await system.start()
        status, said = await system.api("GET", "/readyz")
        assert status == 503
        assert "without the log" in said["error"]["message"]
        assert "latest changes are lost" in (await system.cli("recover")).out
        assert (await system.cli("recover", "--accept")).code == 0
        assert (await system.api("GET", "/readyz"))[0] == 200


class Server:
    """A control server alone, killed and started again on one port."""

    def __init__(self, data_dir) -> None:
        self.data_dir = data_dir
        self.processes: list[ControlProcess] = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def launch(self) -> ControlProcess:
        self.processes.append(ControlProcess(self.data_dir, self.listener.fileno()))
        return self.processes[-1]

    def start(self) -> ControlProcess:
        process = self.launch()
        process.wait_ready()
        return process

    def close(self) -> None:
        for one in self.processes:
            if one.process.poll() is None:
                one.kill()
        self.listener.close()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.data_dir / 'admin.key').read_text().strip()}"}


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "data")
    yield made
    made.close()


async def test_what_was_answered_is_there_after_a_sigkill_at_once(server):
    """Killed in the very turn in which the answer was read, again and again."""
    answered: dict[str, str] = {}
    for number in range(12):
        process = await asyncio.to_thread(server.start)
        async with aiohttp.ClientSession(server.url, headers=server.headers) as session:
            async with session.get("/v1/mesh/kills") as reply:
                there = {k["kill_id"] for k in (await reply.json())["kills"]}
            assert there == set(answered)
            async with session.get("/readyz") as reply:
                assert reply.status == 200, await reply.text()
            body = {"selector": f"agent://acme/prod/m{number}", "wait_s": 0}
            async with session.post("/v1/mesh/kill", json=body) as reply:
                said = await reply.json()
                process.process.send_signal(signal.SIGKILL)
            assert said["durable"] is True
            answered[said["kill_id"]] = said["selector"]
        await asyncio.to_thread(process.end)
    process = await asyncio.to_thread(server.start)
    async with (
        aiohttp.ClientSession(server.url, headers=server.headers) as session,
        session.get("/v1/mesh/audit/verify") as reply,
    ):
        assert (await reply.json())["ok"] is True
    process.kill()


@pytest.mark.parametrize("lock_file", ["as it is", "copied", "deleted"])
async def test_a_second_control_server_is_refused_and_a_third_after_a_sigkill_is_not(
    server, lock_file
):
    """A lock file that is another one does not help the second: the directory is locked, too."""
    first = await asyncio.to_thread(server.start)
    lock = server.data_dir / "control.lock"
    if lock_file != "as it is":
        content = lock.read_bytes()
        lock.unlink()
        if lock_file == "copied":
            lock.write_bytes(content)
    other = Server(server.data_dir)
    second = other.launch()
    code, said = await asyncio.to_thread(second.end, 60)
    assert code != 0
    assert "another haltwire" in said
    assert "choose another --data-dir" in said
    async with (
        aiohttp.ClientSession(server.url, headers=server.headers) as session,
        session.post("/v1/mesh/kill", json={"selector": MAILER, "wait_s": 0}) as reply,
    ):
        assert (await reply.json())["durable"] is True
    first.kill()
    third = await asyncio.to_thread(server.start)
    third.kill()
    other.close()


STARTS = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "no database": lambda path: path.write_bytes(b"no database at all" * 500),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", STARTS.values(), ids=STARTS)
async def test_a_start_on_a_damaged_file_ends_with_a_sentence(server, damage):
    """Never with an empty store in its place, in which nobody is killed."""
    first = await asyncio.to_thread(server.start)
    first.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(first.end)
    path = server.data_dir / "haltwire.db"
    damage(path)
    second = server.launch()
    code, said = await asyncio.to_thread(second.end, 60)
    assert code != 0
    assert "restore it" in said
    left = path.stat().st_size if path.exists() else 0
    assert left != 4096
