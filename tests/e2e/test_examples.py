"""The examples run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from support.system import CLEAN

EXAMPLES = Path(__file__).parents[2] / "examples"
AGENT = "agent://acme/prod/mailer"


async def test_no_sdk_goes_on_after_a_resume_and_sends_each_once(system, site):
    """Killed in the middle, it repeats the e-mail that failed under the same key."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "haltwire_cli", "run", AGENT, "--instance", "i-1", "--"),
        *(sys.executable, str(EXAMPLES / "no_sdk.py")),
        *(f"https://{site.host('https')}/echo", "300"),
        env={**CLEAN, "HALTWIRE_DATA_DIR": str(system.data_dir)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(20):
        while len(site.seen) < 20:
            await asyncio.sleep(0.01)
    killed = await system.cli("kill", AGENT, "--json")
    assert killed.code == 0, killed
    receipt = killed.json()
    arrived = len(site.seen)
    assert receipt["instances"][0]["metadata"]["unit"] == "emails"
    refused = await asyncio.wait_for(process.stdout.readline(), 5)
    while b"agent_killed" not in refused:
        refused = await asyncio.wait_for(process.stdout.readline(), 5)
    assert len(site.seen) == arrived
    assert (await system.cli("resume", AGENT)).code == 0
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert out.decode().splitlines()[-1] == "sent 300"
    keys = [headers["Idempotency-Key"] for _, headers in site.seen]
    assert set(keys) == {f"campaign-{number}" for number in range(1, 301)}
    shown = (await system.cli("show", AGENT, "--json")).json()
    assert shown["agent"]["metadata"] == {"sent": 300, "total": 300, "unit": "emails"}
