"""An agent with a shell, under the operator's own user and under another one: what it gets at, said honestly.

As the operator's user it can read admin.key: nothing but another user keeps a file from it, `run` says so,
and the first test records it. As another user it gets at nothing. The agent's own secret is in its
environment by design.

The log of what was done is as writable as the key is readable, so it is held against an export of it.

Protections removed, one at a time, and what was seen then:
- without_ours in `run`: the variables of the operator are in the agent's environment.
- hide_from_same_user in `run`: the operator's key is read from /proc/PID/environ of `run`.
- mode 0600 of admin.key (0644 in its place): its mode is named as open to others, below a directory that is not.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from support.disks import children_of
from support.system import CLEAN, System, run
from support.users import ANOTHER, ORDINARY, needs_another_user, needs_setpriv

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_setpriv]
KILL = "/v1/mesh/kill"
HALTWIRE = f"{shlex.quote(sys.executable)} -m haltwire_cli"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    async with System(tmp_path_factory.mktemp("same-user") / "data", "--workers", "1") as running:
        yield running


async def inside(system: System, name: str, script: str, *before: str, **variables: str):
    """`haltwire run` of a shell script, with an ordinary user's rights."""
    return await run(
        *before,
        *ORDINARY,
        sys.executable,
        "-m",
        "haltwire_cli",
        "run",
        "--data-dir",
        str(system.data_dir),
        f"acme/prod/{name}",
        "--",
        "sh",
        "-c",
        script,
        env={**CLEAN, **variables},
    )


async def killed(system: System, name: str) -> str:
    status, receipt = await system.api("POST", KILL, {"selector": f"agent://acme/prod/{name}"})
    assert status == 200, receipt
    return receipt["kill_id"]


async def is_in_force(system: System, kill_id: str) -> bool:
    _, listed = await system.api("GET", "/v1/mesh/kills")
    return kill_id in {kill["kill_id"] for kill in listed["kills"]}


async def test_the_operators_variables_are_gone_and_run_says_what_is_left(shared):
    """A key in a variable is as good as admin.key; so are the ways around the proxy."""
    done = await inside(
        shared,
        "variables",
        "env",
        HALTWIRE_URL=shared.control_url,
        HALTWIRE_API_KEY=shared.key,
        HALTWIRE_SOMETHING="else",
        NO_PROXY="*",
    )
    assert done.code == 0, done.err
    variables = dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)
    ours = {name for name in variables if name.startswith("HALTWIRE_")}
    assert ours == {"HALTWIRE_INSTANCE"}
    assert shared.key not in done.out
    assert variables["NO_PROXY"] == ""
    assert "hwa_" in variables["HTTPS_PROXY"], "its own secret is the agent's, by design"
    said = "it could read the operator's key"
    assert sum(said in line for line in done.err.splitlines()) == 1


async def test_the_key_file_is_readable_which_is_what_run_says(shared):
    """Recorded, not wished for: only another user, or --jail, keeps it from an agent."""
    kill_id = await killed(shared, "reader")
    data = shlex.quote(str(shared.data_dir))
    done = await inside(shared, "reader", f"{HALTWIRE} resume --data-dir {data} acme/prod/reader")
    assert done.code in (0, 5), done
    assert not await is_in_force(shared, kill_id)


async def test_the_key_of_run_itself_is_not_readable(shared):
    """With a key in a variable and no key file in reach, /proc is where an agent would look."""
    script = "cat /proc/$PPID/environ || exit 9"
    done = await inside(
        shared, "proc", script, HALTWIRE_API_KEY=shared.key, HALTWIRE_URL=shared.control_url
    )
    assert done.code == 9, done.out
    assert shared.key not in done.out


WAYS = {
    "the agent's secret as an operator's key, directly": (
        'curl -s --noproxy "*" -X POST -H "Authorization: Bearer $SECRET" -d "$BODY" $URL/v1/mesh/resume'
    ),
    "as x-api-key": (
        'curl -s --noproxy "*" -X POST -H "x-api-key: $SECRET" -d "$BODY" $URL/v1/mesh/resume'
    ),
    "the API through the proxy": (
        'curl -s -X POST -H "Authorization: Bearer $SECRET" -d "$BODY" $URL/v1/mesh/resume'
    ),
    "the API through the proxy's tunnel": (
        'curl -s --proxytunnel -X POST -H "x-api-key: $SECRET" -d "$BODY" $URL/v1/mesh/resume'
    ),
    "haltwire.internal": (
        'curl -s -X POST -H "Authorization: Bearer $SECRET" -d "$BODY" http://haltwire.internal/v1/mesh/resume'
    ),
    "haltwire.internal, the agent's own path": (
        "curl -s -X POST -d {} http://haltwire.internal/v1/mesh/agents/acme.prod.ways/resume"
    ),
    "haltwire resume without a key": (
        f"{HALTWIRE} resume --data-dir /nonexistent --url $URL acme/prod/ways"
    ),
    "haltwire resume with the agent's secret": (
        f"HALTWIRE_API_KEY=$SECRET {HALTWIRE} resume --url $URL acme/prod/ways"
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_no_way_but_the_key_lifts_a_kill(shared, way):
    kill_id = await killed(shared, "ways")
    script = (
        "SECRET=${HTTPS_PROXY%@*}; SECRET=${SECRET##*:}; "
        f'URL={shared.control_url}; BODY=\'{{"selector": "agent://acme/prod/ways"}}\'; {way}'
    )
    done = await inside(shared, "ways", script)
    assert '"lifted"' not in done.out, done
    assert await is_in_force(shared, kill_id), done
    if "haltwire_cli" in way:
        assert done.code in (1, 4), done


async def another(*command: str):
    return await run(*ANOTHER, *command)


def parts_of(system: System) -> list[int]:
    """The supervisor and all its children."""
    return [system.process.pid, *children_of(system.process.pid)]


@needs_another_user
async def test_another_user_reads_nothing_of_the_data_directory(shared):
    private = ["admin.key", "haltwire.db", "haltwire.db-wal", "ledger.db", "reserve"]
    private += ["ca/haltwire-ca.pem", "endpoints.json", ""]
    for name in private:
        path = shared.data_dir / name
        assert path.exists(), name
        done = await another("cat" if path.is_file() else "ls", str(path))
        assert done.code != 0, f"{name} is open to others"
        assert "ermission denied" in done.err
    # Not only because of the directories above it.
    for name in private:
        mode = (shared.data_dir / name).stat().st_mode & 0o777
        assert mode & 0o077 == 0 or name == "endpoints.json", (name, oct(mode))


@needs_another_user
async def test_another_user_reads_nothing_of_the_processes(shared):
    for pid in parts_of(shared):
        for name in ("environ", "maps", "mem", "fd/0"):
            assert (await another("cat", f"/proc/{pid}/{name}")).code != 0, (pid, name)
        cmdline = (await another("cat", f"/proc/{pid}/cmdline")).out
        assert "haltwire_cli" in cmdline
        assert "hwk_" not in cmdline
        assert "hwa_" not in cmdline


@needs_another_user
async def test_another_user_reads_nothing_of_run(shared):
    """The agent as another user, below a `run` of the operator's: sudo -u, a container's user."""
    kill_id = await killed(shared, "other")
    key = shlex.quote(str(shared.data_dir / "admin.key"))
    becomes = shlex.join(ANOTHER)
    tries = f"cat {key}; cat /proc/$PPID/environ; ls /proc/$PPID/fd; ls {shlex.quote(str(shared.data_dir))}"
    # Without ORDINARY: becoming another user is what root's capabilities are for.
    done = await run(
        sys.executable,
        "-m",
        "haltwire_cli",
        "run",
        "--data-dir",
        str(shared.data_dir),
        "acme/prod/other",
        "--",
        "sh",
        "-c",
        f"exec {becomes} sh -c {shlex.quote(tries)}",
        env={**CLEAN, "HALTWIRE_API_KEY": shared.key},
    )
    assert done.out == "", done
    assert done.err.count("ermission denied") == 4, done.err
    assert await is_in_force(shared, kill_id)


RESUMER = """
import encodings.idna, http.client, json, os, ssl, sys
import click, haltwire_cli.orders, haltwire_cli.api, haltwire_cli.receipt_text
from haltwire_cli.__main__ import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main()
"""


@needs_another_user
@pytest.mark.parametrize("named", ["by its data directory", "by its URL"])
async def test_another_users_resume_is_refused(shared, named):
    kill_id = await killed(shared, "resumer")
    where = ["--data-dir", str(shared.data_dir)]
    if named == "by its URL":
        where += ["--url", shared.control_url]
    done = await run(sys.executable, "-c", RESUMER, "resume", *where, "acme/prod/resumer")
    assert done.code in (1, 4), done
    assert "Traceback" not in done.err
    assert await is_in_force(shared, kill_id)


async def test_an_agent_that_is_killed_cannot_make_run_anew(shared):
    """Another `run` of the same agent has another token, and the order covers that, too."""
    await killed(shared, "again")
    code = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:9/"
    done = await inside(shared, "again", code)
    assert done.out == "403", done


def forge(database: Path) -> None:
    """Write the whole audit log anew, so that all of it fits: another reason, every hash, the head."""
    from haltwire_control import audit, schema

    with closing(sqlite3.connect(database, timeout=5)) as connection, connection:
        rows = connection.execute(f"SELECT {schema.EVENT_COLUMNS} FROM events ORDER BY seq")
        head = audit.GENESIS
        for row in [audit.EventRow(*row) for row in rows]:
            fake = replace(row, reason="nothing happened" if row.reason else None)
            head = audit.hash_of(fake, head)
            connection.execute(
                "UPDATE events SET reason = ?, hash = ? WHERE seq = ?", (fake.reason, head, row.seq)
            )
        connection.execute("UPDATE meta SET value = ? WHERE name = 'head_hash'", (head,))


async def test_a_log_that_was_forged_as_a_whole_is_found_by_what_was_exported(tmp_path):
    """The operator's user can write the file, so only what is kept elsewhere can tell."""
    async with System(tmp_path / "data", "--workers", "1") as system:
        body = {"selector": "agent://acme/prod/forger", "reason": "it sent mail to everybody"}
        assert (await system.api("POST", KILL, body))[0] == 200
        kept = tmp_path / "elsewhere.jsonl"
        kept.write_text((await system.cli("audit", "export")).out)
        await killed(system, "later")
        found = await system.cli("audit", "verify", "--against", str(kept))
        assert (found.code, "anchored up to event" in found.out) == (0, True), found

        forge(system.data_dir / "haltwire.db")
        alone = await system.cli("audit", "verify")
        assert (alone.code, "unanchored" in alone.out) == (0, True), "its hashes fit one another"
        found = await system.cli("audit", "verify", "--against", str(kept), "--json")
        assert (found.code, found.json()["ok"], found.json()["anchored"]) == (1, False, False)
        first = found.json()["first_different_seq"]
        found = await system.cli("audit", "verify", "--against", str(kept))
        assert f"event {first} was changed since" in found.err
        exported = [json.loads(line) for line in kept.read_text().splitlines()]
        assert first == next(row["seq"] for row in exported if row["reason"]), "the first lie"
