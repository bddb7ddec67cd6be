"""Thousands of generated calls against a live control server: nothing that openapi.json does not say, no fault of ours.

Protections removed, one at a time, and what was seen then:
- 400 and 422 for every call in openapi.py: "Undocumented status code" for 10 operations.
- the answer to a ValidationError in calls.py: the run does not end within its time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import pytest_asyncio
from support.disks import control_pid
from support.system import CLEAN, System, run

pytestmark = pytest.mark.asyncio(loop_scope="module")
WITHIN_S = 120
CONFIG = """
[[operations]]
# Truly allowed there: `GET .../agents/agent://acme/prod/kill` shows an agent whose last segment is `kill`.
include-path-regex = "^/v1/mesh/agents/\\\\{agent\\\\}/(kill|resume)$"
checks.allow_header_conformance.enabled = false

[[operations]]
# It waits as long as it is told to, 25 s at most.
include-operation-id = "events"
parameters = { "query.follow_s" = 0.05 }

[[operations]]
# Lists of keys lead it to the one that these tests go on with, and an admin may revoke that.
include-operation-id = "revoke_key"
parameters = { "path.key" = "to-be-revoked" }
"""
LEFT_OUT = (
    "--exclude-operation-id",
    "connect_proxy",
)  # a WebSocket: what it takes is fuzzed elsewhere
NOT_IN_SCHEMA = ("--exclude-checks", "ignored_auth,positive_data_acceptance")
# ignored_auth has a run of its own, since it shows wrong keys until it is told 429; which texts name an
# agent, and which names exist, is no matter of a schema, so well-formed calls may be refused.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    async with System(tmp_path_factory.mktemp("generated") / "data", "--workers", "1") as running:
        body = {"name": "to-be-revoked", "role": "viewer"}
        assert (await running.api("POST", "/v1/keys", body))[0] == 201
        yield running


async def schemathesis(folder: Path, system: System, key: str | None, *options: str) -> str:
    """What it says when it has found nothing."""
    config = folder / "schemathesis.toml"
    headers = f'[headers]\nAuthorization = "Bearer {key}"\n' if key else ""
    config.write_text(headers + CONFIG)
    done = await run(
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(config),
        "run",
        f"{system.control_url}/openapi.json",
        "--generation-deterministic",
        "--no-shrink",
        "--continue-on-failure",
        "--generation-with-security-parameters=false",
        "--no-color",
        *LEFT_OUT,
        *options,
        env={**CLEAN, "HOME": str(folder)},
        timeout=WITHIN_S,
        cwd=folder,  # where it leaves what it has learnt
    )
    assert done.code == 0, done.out + done.err
    return done.out


WHO = {
    "an admin": ("admin", "examples,coverage,fuzzing,stateful"),
    "a viewer": ("viewer", "coverage,stateful"),
    "nobody": (None, "coverage"),
}


@pytest.mark.parametrize(("role", "phases"), WHO.values(), ids=WHO)
async def test_generated_calls(shared, tmp_path, role, phases):
    """Every phase and check that can apply, as everybody who may call."""
    before = control_pid(shared.process.pid)
    key = None
    if role:
        _, made = await shared.api("POST", "/v1/keys", {"name": f"st-{role}", "role": role})
        key = made["secret"]
    few = ("--phases", phases, "--max-examples", "15")
    said = await schemathesis(tmp_path, shared, key, *few, *NOT_IN_SCHEMA)
    assert " passed" in said
    assert control_pid(shared.process.pid) == before, "the control server was started again"
    assert (await shared.api("GET", "/readyz"))[0] == 200
    status, verified = await shared.api("GET", "/v1/mesh/audit/verify")
    assert (status, verified.get("ok")) == (200, True), verified


async def test_no_route_does_without_a_key_and_nothing_fails_inside(tmp_path):
    """Each is called without one and with a wrong one, and must not answer as it does with a right one.

    On a server of its own, which has seen no wrong key yet, and whose whole output can be read.
    """
    async with System(tmp_path / "data", "--workers", "1") as system:
        once = ("--phases", "fuzzing", "--max-examples", "1", "--checks", "ignored_auth")
        assert " passed" in await schemathesis(tmp_path, system, system.key, *once)
        coverage = ("--phases", "coverage", "--max-examples", "5")
        await schemathesis(tmp_path, system, system.key, *coverage, *NOT_IN_SCHEMA)
        await system.stop()
    for word in ("Traceback", "Error", " failed"):
        assert word not in system.output, system.output
