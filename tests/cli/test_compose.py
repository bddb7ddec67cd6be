"""Everything at once, with real processes: it comes up, it says where, and it always goes down."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from haltwire_cli import compose
from haltwire_cli.listen import Address

ANY_PORT = ("--proxy-listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("HALTWIRE_")},
    "HALTWIRE_API_KEY": "hwk_" + "e" * 43,
}


class Up:
    """A running `haltwire up`."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        command = [sys.executable, "-m", "haltwire_cli", "up", "--data-dir", str(data_dir)]
        self.process = subprocess.Popen(
            [*command, *(options or (*ANY_PORT, "--workers", "1"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def read_banner(self) -> str:
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "haltwire kill" in line:
                return "".join(lines)
        raise AssertionError(self.process.stderr.read())

    @property
    def endpoints(self) -> dict[str, str]:
        return json.loads((self.data_dir / "endpoints.json").read_text())

    @property
    def children(self) -> dict[str, int]:
        """pid of each child, by its role."""
        pid = self.process.pid
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {
            Path(f"/proc/{p}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")[-1].decode(): int(p)
            for p in pids
        }

    def haltwire(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {n: v for n, v in ENVIRONMENT.items() if not n.startswith("HALTWIRE_")}
        environment["HALTWIRE_DATA_DIR"] = str(self.data_dir)
        command = [sys.executable, "-m", "haltwire_cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)


@contextmanager
def running(data_dir: Path, *options: str) -> Iterator[Up]:
    up = Up(data_dir, *options)
    try:
        up.banner = up.read_banner()
        yield up
    finally:
        if up.process.poll() is None:
            up.process.kill()
        up.process.communicate()


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("up")) as up:
        yield up


def wait_for(condition: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_banner_says_where_everything_is(up):
    endpoints = up.endpoints
    assert set(endpoints) == {"proxy_url", "control_url", "ca_file"}
    for text in (*endpoints.values(), str(up.data_dir / "admin.key"), "haltwire run"):
        assert text in up.banner
    assert "hwk_" not in up.banner
    assert Path(endpoints["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE-----")


def test_every_command_finds_it_by_its_data_directory(up):
    assert up.haltwire("list").stdout == "No agent has been seen.\n"
    assert up.haltwire("kills").returncode == 0
    assert up.haltwire("audit", "verify").returncode == 0
    assert up.haltwire("audit", "export").stdout.count("\n") >= 2
    assert up.haltwire("kill", "acme/prod/nobody").returncode == 3
    assert up.haltwire("resume", "acme/prod/nobody").returncode == 0
    assert up.haltwire("events", "--type", "kill.issued", "--json").returncode == 0


def test_a_token_is_made_and_its_agent_can_be_killed_and_resumed(up):
    assert up.haltwire("token", "create", "acme/prod/mailer").returncode == 0
    killed = up.haltwire("kill", "acme/prod/mailer", "--json")
    receipt = json.loads(killed.stdout)
    assert (killed.returncode, receipt["confirmed"]) == (0, True)
    assert up.haltwire("resume", receipt["kill_id"]).returncode == 0


def test_a_viewers_key_may_look_and_not_kill(up, tmp_path):
    made = json.loads(up.haltwire("key", "create", "eve", "--role", "viewer", "--json").stdout)
    file = tmp_path / "key"
    file.write_text(made["secret"])
    assert up.haltwire("list", "--key-file", str(file)).returncode == 0
    refused = up.haltwire("kill", "acme/prod/mailer", "--key-file", str(file))
    assert refused.returncode == 4
    assert refused.stderr.startswith(
        "Error: this key may not do that (the role viewer may not kill"
    )
    assert up.haltwire("key", "revoke", "eve").returncode == 0
    gone = up.haltwire("list", "--key-file", str(file))
    assert (gone.returncode, made["secret"] in gone.stderr) == (4, False)


def test_run_goes_through_the_proxy_and_leaves_no_token(up):
    code = "import os, urllib.request as r; print(r.urlopen('http://haltwire.internal/ca.pem').read().decode())"
    done = up.haltwire("run", "acme/prod/runner", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "BEGIN CERTIFICATE" in done.stdout
    assert "acme/prod/runner" not in up.haltwire("token", "list").stdout


def test_no_secret_is_in_an_argument_or_an_environment(up):
    pids = [up.process.pid, *up.children.values()]
    admin = (up.data_dir / "admin.key").read_bytes().strip()
    for pid in pids:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"hwk_" not in arguments
        assert admin not in environment
    for pid in up.children.values():
        assert b"HALTWIRE_" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_second_up_on_the_directory_is_refused(up):
    other = Up(up.data_dir)
    _, err = other.process.communicate(timeout=20)
    assert other.process.returncode == 1
    assert f"is in use by another haltwire (pid {up.process.pid})" in err
    assert up.endpoints


@pytest.mark.parametrize("role", ["proxy", "control"])
def test_whoever_is_killed_comes_back(up, role):
    before = up.children[role]
    os.kill(before, signal.SIGKILL)
    assert wait_for(lambda: up.children.get(role, before) != before, 10)

    def works() -> bool:
        return up.haltwire("kill", "acme/prod/mailer", "--wait", "5s").returncode == 0

    assert wait_for(works, 15)
    assert up.haltwire("resume", "--all").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(tmp_path, number):
    with running(tmp_path) as up:
        children = up.children
        up.process.send_signal(number)
        _, err = up.process.communicate(timeout=6)
        assert up.process.returncode == 0
        assert "Traceback" not in err
        assert "in time" not in err
        assert sorted(children) == ["control", "proxy"]
        assert not any(map(lives, children.values()))
        assert not (tmp_path / "endpoints.json").exists()


def test_after_kill_9_nothing_survives_and_the_next_one_has_the_ports(tmp_path):
    with running(tmp_path) as up:
        endpoints, children = up.endpoints, up.children
        assert up.haltwire("kill", "acme/**").returncode == 3
        up.process.kill()
        up.process.wait()
        assert up.haltwire("kills").returncode == 1  # endpoints.json is left, and not believed
        proxy, control = (endpoints[n].partition("//")[2] for n in ("proxy_url", "control_url"))
        options = ("--proxy-listen", proxy, "--control-listen", control, "--workers", "1")
        with ExitStack() as stack:
            again = stack.enter_context(running(tmp_path, *options))
            assert not any(map(lives, children.values()))
            assert again.endpoints == endpoints
            assert "agent://acme/**" in again.haltwire("kills").stdout


def test_children_are_gone_two_seconds_after_kill_9_even_when_they_stand_still(tmp_path):
    with running(tmp_path) as up:
        children = up.children
        up.process.kill()
        up.process.wait()
        assert wait_for(lambda: not any(map(lives, children.values())), 2)


def test_a_child_that_cannot_start_ends_up_with_one_sentence(tmp_path):
    (tmp_path / "haltwire.db").mkdir()
    up = Up(tmp_path)
    out, err = up.process.communicate(timeout=20)
    assert up.process.returncode == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("Error: the control server ended before it was ready")
    assert not (tmp_path / "endpoints.json").exists()


def test_a_damaged_authority_ends_up_with_one_sentence(tmp_path):
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "haltwire-ca.pem").write_text("-----BEGIN")
    up = Up(tmp_path)
    out, err = up.process.communicate(timeout=20)
    assert (up.process.returncode, out) == (1, "")
    assert err.startswith("Error: the certificate authority in ")
    assert "restore it from a backup" in err
    assert err.count("\n") == 1


def test_ctrl_c_in_a_terminal_ends_everything_once(tmp_path):
    """The terminal gives it to the foreground group: the children must not be in it."""
    pid, terminal = os.forkpty()
    arguments = [sys.executable, "-m", "haltwire_cli", "up", "--data-dir", str(tmp_path), *ANY_PORT]
    if pid == 0:
        os.execve(sys.executable, [*arguments, "--workers", "1"], ENVIRONMENT)
    seen = b""
    while b"haltwire kill" not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    rest = b""
    try:
        while piece := os.read(terminal, 4096):
            rest += piece
    except OSError:  # the terminal's other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert b"Traceback" not in rest
    assert b"ended" not in rest


def test_a_proxy_that_keeps_passing_says_so_and_where_that_comes_from(tmp_path):
    config = tmp_path / "unsafe.toml"
    config.write_text('on-stale = "keep"\nworkers = 1')
    with running(tmp_path / "data", *ANY_PORT, "--config", str(config)) as up:
        up.process.send_signal(signal.SIGTERM)
        _, err = up.process.communicate(timeout=10)
    assert f"haltwire: options also come from {config}." in err
    assert err.count("UNSAFE: traffic goes on when the control server is silent") == 1


async def test_the_warning_is_permanent(monkeypatch):
    monkeypatch.setattr(compose, "WARN_EVERY_S", 0.01)
    said = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await compose._warn(lambda text: said.append(text) if len(said) < 3 else None)
    assert len(said) == 3


@pytest.mark.parametrize(
    ("bound", "addresses"),
    [("127.0.0.1", []), ("::1", []), ("203.0.113.8", ["203.0.113.8"]), ("0.0.0.0", ["192.0.2.1"])],
)
def test_proxies_are_told_where_other_machines_reach_the_control_server(
    monkeypatch, bound, addresses
):
    monkeypatch.setattr(compose, "addresses_of_this_host", lambda: ["192.0.2.1"])
    assert compose._addresses(Address(bound, 8081)) == addresses
