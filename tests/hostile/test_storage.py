"""A disk that is full, fails or is taken away, under a real `haltwire up`: a kill is stored, or says that it is not.

Protections removed, one at a time, and what was seen then:
- Reserve.gave_way answers False: `a full disk` fails, the first kill is answered 503 kill_not_durable.
- the check for urgent jobs in SqliteStore._work: `a full disk` fails, tokens are made from the room of orders.
- Place.check: `deleted` and `replaced` fail, the kill is answered 200 and durable, not 503.
- DataDirectory.check_whole: the last test fails, the start is not refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import pytest_asyncio
from support.client import Wire
from support.disks import (
    control_pid,
    failing_writes,
    fill,
    free_bytes,
    locked,
    moved_away,
    needs_root,
    small_disk,
)
from support.origin import Origin
from support.system import System
from support.world import basic

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Agent:
    """An agent with a token, and an origin that it talks to."""

    def __init__(self, system: System, origin: Origin, name: str, proxy_url: str) -> None:
        self.uri = f"agent://acme/prod/{name}"
        self.label = f"acme.prod.{name}"
        self.secret = proxy_url.partition("@")[0].rpartition(":")[2]
        self._system, self._origin = system, origin

    async def request(self):
        """(status, code) of one request through the proxy."""
        wire = await Wire.open(self._system.port)
        answer = await wire.request(
            "GET",
            f"{self._origin.url}/{self.label}",
            f"Host: {self._origin.host}",
            f"Proxy-Authorization: {basic(self.label, self.secret)}",
        )
        wire.close()
        said = json.loads(answer.body or b"{}")
        return answer.status, said.get("error")

    @property
    def reached(self) -> int:
        return sum(target.endswith(self.label) for _, target, _ in self._origin.requests)


async def agent_of(system: System, origin: Origin, name: str) -> Agent:
    return Agent(system, origin, name, await system.token(f"agent://acme/prod/{name}"))


async def kills_of(system: System) -> dict[str, dict]:
    _, answer = await system.api("GET", "/v1/mesh/kills")
    return {kill["kill_id"]: kill for kill in answer["kills"]}


async def until(condition, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def kill(system: System, selector: str):
    return await system.api("POST", "/v1/mesh/kill", {"selector": selector, "reason": "why"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origin():
    async with Origin() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """One `up` whose disk is broken and repaired again and again."""
    async with System(tmp_path_factory.mktemp("faults") / "data", "--workers", "1") as running:
        yield running


@needs_root
async def test_a_full_disk(tmp_path, origin):
    with small_disk(tmp_path / "disk", 24) as disk:
        async with System(disk / "data", "--workers", "1") as system:
            first, second = [await agent_of(system, origin, name) for name in ("one", "two")]
            fill(disk, "others-data")
            assert free_bytes(disk) == 0

            # 1. The reserve makes an order durable, and its receipt and events too.
            status, receipt = await kill(system, first.uri)
            assert (status, receipt["durable"], receipt["confirmed"]) == (200, True, True), receipt
            assert await first.request() == (403, "agent_killed")
            _, shown = await system.api("GET", f"/v1/mesh/kills/{receipt['kill_id']}")
            assert shown["receipt"]["durable"] is True
            types = [event["event_type"] for event in shown["events"]]
            assert types == ["kill.issued", "kill.confirmed"]

            # 2. Nothing else may use that room, and everybody is told so.
            for method, path, body in (
                ("POST", "/v1/tokens", {"selector": "agent://acme/prod/x"}),
                ("POST", "/v1/keys", {"name": "bob", "role": "viewer"}),
                ("POST", f"/v1/mesh/kills/{receipt['kill_id']}/notes", {"text": "x" * 4000}),
            ):
                status, answer = await system.api(method, path, body)
                assert (status, answer["error"]["code"]) == (507, "store_full"), path
                assert "only kills, resumes and revocations" in answer["error"]["message"]
            status, answer = await system.api("GET", "/readyz")
            assert (status, answer["error"]["code"]) == (503, "not_ready")
            assert "disk is full or failing" in answer["error"]["message"]
            assert str(disk) not in str(answer)
            beat = await system.api("POST", "/v1/mesh/heartbeat", {}, key=first.secret)
            assert (beat[0], beat[1]["killed"]) == (200, True)

            # 3. Resumes are stored from the same room.
            status, resumed = await system.api(
                "POST", "/v1/mesh/resume", {"selector": first.uri, "wait_s": 5}
            )
            assert (status, resumed["durable"]) == (200, True)
            assert await first.request() == (200, None)

            # 4. When that room has been taken too, an order is in force and is said not to be stored.
            fill(disk, "others-data")
            stored, number = 0, 0
            while True:
                number += 1
                status, receipt = await kill(system, f"agent://acme/dev/m{number}")
                if status != 200:
                    break
                stored += receipt["durable"]
                assert number < 3000, "there is no end to the room"
            assert (status, receipt["error"]["code"]) == (503, "kill_not_durable")
            status, receipt = await kill(system, second.uri)
            assert (status, receipt["error"]["code"]) == (503, "kill_not_durable")
            assert "because the disk is full" in receipt["error"]["message"]
            assert (receipt["ok"], receipt["durable"]) == (False, False)
            assert [proxy["state"] for proxy in receipt["proxies"]] == ["applied"]
            assert await second.request() == (403, "agent_killed")
            assert second.reached == 0
            kill_id = receipt["kill_id"]

            # 5. With room again it is stored by itself, and everything else is taken again.
            (disk / "others-data").unlink()

            async def is_stored() -> bool:
                return (await kills_of(system))[kill_id]["durable"]

            async def is_ready() -> bool:
                return (await system.api("GET", "/readyz"))[0] == 200

            await until(is_stored)
            await until(is_ready)
            _, shown = await system.api("GET", f"/v1/mesh/kills/{kill_id}")
            assert shown["receipt"]["durable"] is True
            assert (disk / "data" / "reserve").stat().st_blocks * 512 >= 4 * 1024 * 1024
            assert await system.token("agent://acme/prod/x")
            verified = await system.cli("audit", "verify", "--json")
            assert verified.json()["ok"] is True
            in_force = set(await kills_of(system))
            assert len(in_force) == number + 1
            await system.stop()
            for said in ("is full", "the reserve is given to orders", "there is room on the disk"):
                assert said in system.output
            await system.start()
            assert set(await kills_of(system)) == in_force
            assert await second.request() == (403, "agent_killed")


@needs_root
async def test_a_control_server_that_dies_on_a_full_disk_comes_back_with_its_orders(
    tmp_path, origin
):
    """The files beside the database that SQLite makes when it opens it get the reserve's room, too."""
    with small_disk(tmp_path / "disk", 24) as disk:
        async with System(disk / "data", "--workers", "1") as system:
            agent = await agent_of(system, origin, "three")
            assert (await kill(system, agent.uri))[0] == 200
            fill(disk, "others-data")
            pid = control_pid(system.process.pid)
            os.kill(pid, signal.SIGKILL)

            async def answers() -> bool:
                try:
                    return bool(await kills_of(system))
                except OSError:
                    return False

            await until(answers, 20)
            assert control_pid(system.process.pid) != pid
            assert (await kill(system, "agent://acme/prod/four"))[1]["durable"] is True

            async def is_refused() -> bool:
                return await agent.request() == (403, "agent_killed")

            await until(is_refused)
            assert agent.reached == 0


def _database(system: System) -> Path:
    return system.data_dir / "haltwire.db"


def _control(system: System) -> int:
    return control_pid(system.process.pid)


FAULTS = {
    "locked by another program": (
        lambda s: locked(_database(s)),
        "another program holds the database",
    ),
    "I/O errors": (lambda s: failing_writes(_control(s)), "the disk gives an I/O error"),
    "the database deleted": (
        lambda s: moved_away(_database(s)),
        "haltwire.db was deleted while it was in use",
    ),
    "the database replaced by a copy": (
        lambda s: moved_away(
            _database(s), lambda path: shutil.copy(path.with_name(f"{path.name}.moved"), path)
        ),
        "haltwire.db was replaced while it was in use",
    ),
    "the database replaced by an empty file": (
        lambda s: moved_away(_database(s), Path.touch),
        "haltwire.db was replaced while it was in use",
    ),
    "its log deleted": (
        lambda s: moved_away(s.data_dir / "haltwire.db-wal"),
        "haltwire.db-wal was deleted while it was in use",
    ),
    "the data directory gone": (
        lambda s: moved_away(s.data_dir),
        "haltwire.db was deleted while it was in use",
    ),
}


@pytest.mark.parametrize(("fault", "because"), FAULTS.values(), ids=FAULTS)
async def test_a_store_that_cannot_be_written(shared, origin, fault, because, request):
    """In force at once, said not to be stored, nothing else changed; stored by itself when repaired."""
    name = "f" + str(list(FAULTS).index(request.node.callspec.id))
    agent, killed = [await agent_of(shared, origin, n) for n in (name, f"{name}-before")]
    assert (await kill(shared, killed.uri))[0] == 200
    with fault(shared):
        status, receipt = await kill(shared, agent.uri)
        assert (status, receipt["error"]["code"]) == (503, "kill_not_durable"), receipt
        assert f"because {because}" in receipt["error"]["message"]
        assert (receipt["ok"], receipt["durable"]) == (False, False)
        assert [proxy["state"] for proxy in receipt["proxies"]] == ["applied"]
        assert await agent.request() == (403, "agent_killed")
        for method, path, body in (
            ("POST", "/v1/mesh/resume", {"selector": killed.uri}),
            ("POST", "/v1/tokens", {"selector": "agent://acme/prod/x"}),
        ):
            status, answer = await shared.api(method, path, body)
            assert status in (503, 507), (path, answer)
            assert "error" in answer
        assert await killed.request() == (403, "agent_killed")
        status, answer = await shared.api("GET", "/readyz")
        assert (status, answer["error"]["code"]) == (503, "not_ready")

    async def is_stored() -> bool:
        status, answer = await shared.api("GET", "/v1/mesh/kills")
        stored = {k["kill_id"] for k in answer.get("kills", ()) if k["durable"]}
        return status == 200 and receipt["kill_id"] in stored

    async def is_ready() -> bool:
        return (await shared.api("GET", "/readyz"))[0] == 200

    await until(is_stored)
    await until(is_ready)
    _, shown = await shared.api("GET", f"/v1/mesh/kills/{receipt['kill_id']}")
    assert shown["receipt"]["durable"] is True
    assert (agent.reached, killed.reached) == (0, 0)
    assert (await shared.cli("audit", "verify", "--json")).json()["ok"] is True


async def test_a_database_that_is_gone_at_a_start_lets_nobody_through(tmp_path, origin):
    """An empty store in its place would let every killed agent go on, so the start is refused."""
    async with System(tmp_path / "data", "--workers", "1") as system:
        agent = await agent_of(system, origin, "gone")
        assert (await kill(system, agent.uri))[0] == 200
        for path in system.data_dir.glob("haltwire.db*"):
            path.unlink()
        os.kill(control_pid(system.process.pid), signal.SIGKILL)
        said = b""
        async with asyncio.timeout(20):
            while b"is missing or empty" not in said:
                said += await system.process.stdout.readline()
        assert b"restore it" in said
        status, code = await agent.request()
        assert (status, code) in ((403, "agent_killed"), (503, "enforcement_unknown"))
        assert agent.reached == 0
