"""run: the command's environment, its signals, its exit code, and a token that never outlives it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

KEY = "hwk_" + "k" * 43
SECRET = "hwa_" + "s" * 43
TOKEN = "T0123456789AB"
PROXY_URL = f"http://acme.prod.mailer~i-1:{SECRET}@127.0.0.1:8080"


@pytest.fixture(autouse=True)
def tokens(control):
    control.will(
        "POST", "/v1/tokens", {"token_id": TOKEN, "secret": SECRET, "proxy_url": PROXY_URL}, 201
    )
    control.will("DELETE", f"/v1/tokens/{TOKEN}", {"ok": True})
    control.will("GET", "/ca.pem", b"ours")
    control.will("GET", "/ca-bundle.pem", b"all and ours")
    control.knows("agent://acme/prod/mailer")


@pytest.fixture
def start(control, tmp_path):
    """`haltwire run …` as a process of its own."""
    running: list[subprocess.Popen] = []

    def start(*arguments: str, **more: object) -> subprocess.Popen:
        environment = {
            **os.environ,
            "HALTWIRE_URL": control.url,
            "HALTWIRE_API_KEY": KEY,
            "HALTWIRE_DATA_DIR": str(tmp_path),
            "HALTWIRE_SOMETHING": "else",
            "no_proxy": "example.com",
            "grpc_proxy": "http://elsewhere",
        }
        command = [sys.executable, "-m", "haltwire_cli", "run", *arguments]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def code(text: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", textwrap.dedent(text))


def calls(control) -> list[tuple[str, str]]:
    return [(method, path) for method, path, *_ in control.calls]


REVOKED = ("DELETE", f"/v1/tokens/{TOKEN}")


def test_the_command_gets_the_proxy_and_nothing_of_the_operators(start, control, tmp_path):
    command = code("import json, os; print(json.dumps(dict(os.environ)))")
    process = start("mailer", "--instance", "i-1", *command)
    out, err = process.communicate()
    environment = json.loads(out)
    folder = tmp_path / "remote" / control.url.removeprefix("http://").replace(":", "_")
    assert process.returncode == 0
    assert environment["HTTPS_PROXY"] == environment["http_proxy"] == PROXY_URL
    assert environment["NO_PROXY"] == environment["no_proxy"] == ""
    assert environment["SSL_CERT_FILE"] == str(folder / "ca-bundle.pem")
    assert environment["NODE_EXTRA_CA_CERTS"] == str(folder / "ca.pem")
    assert (folder / "ca-bundle.pem").read_text() == "all and ours"
    assert {n: v for n, v in environment.items() if n.startswith("HALTWIRE_")} == {
        "HALTWIRE_INSTANCE": "i-1"
    }
    assert "grpc_proxy" not in environment
    assert err.count("\n") == 1
    assert "could read the operator's key" in err
    assert SECRET not in err
    assert KEY not in out
    made = next(body for method, path, _, body in control.calls if path == "/v1/tokens")
    assert made == {"selector": "agent://acme/prod/mailer~i-1", "tls": "intercept"}
    assert control.calls[-1][:2] == REVOKED


def test_an_instance_is_named_after_its_host(start, control):
    process = start("acme/prod/mailer", "--", "true")
    process.communicate()
    made = next(body for method, path, _, body in control.calls if path == "/v1/tokens")
    name = made["selector"].partition("~")[2]
    host, _, random = name.rpartition("-")
    assert host
    assert len(random) == 6


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        (("--", "true"), 0),
        (code("raise SystemExit(42)"), 42),
        (code("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), 137),
        (code("import os, signal; os.kill(os.getpid(), signal.SIGTERM)"), 143),
        (("--", "/no/such/program"), 127),
        (("--", "no-such-program-anywhere"), 127),
        (("--", "/etc/passwd"), 126),
    ],
)
def test_the_exit_code_is_passed_and_the_token_revoked(start, control, command, exit_code):
    process = start("acme/prod/mailer", *command)
    process.communicate()
    assert process.returncode == exit_code
    assert calls(control)[-1] == REVOKED


REPORT_SIGNALS = code(
    """
    import signal, sys
    got = []
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
        signal.signal(getattr(signal, name), lambda n, _: got.append(n))
    print("ready", flush=True)
    while not got:
        signal.pause()
    print(signal.Signals(got[0]).name, len(got), flush=True)
    sys.exit(9)
    """
)


@pytest.mark.parametrize(
    "name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"]
)
def test_signals_reach_the_command(start, control, name):
    process = start("acme/prod/mailer", *REPORT_SIGNALS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == f"{name} 1\n"
    assert process.wait(5) == 9
    process.communicate()
    assert calls(control)[-1] == REVOKED


def test_a_signal_before_the_command_has_started_ends_it_and_leaves_no_token(start, control):
    asked = threading.Event()

    def slowly(query: dict, body: object) -> dict:
        asked.set()
        time.sleep(0.3)
        return {"token_id": TOKEN, "secret": SECRET, "proxy_url": PROXY_URL}

    control.will("POST", "/v1/tokens", slowly, 201)
    process = start("acme/prod/mailer", "--", "echo", "ran")
    assert asked.wait(5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert calls(control)[-1] == REVOKED


def test_the_terminals_ctrl_c_reaches_the_command_once(control, tmp_path):
    """The kernel gives it to the whole foreground group: passing it on again would be twice."""
    pid, terminal = os.forkpty()
    arguments = [
        sys.executable,
        "-m",
        "haltwire_cli",
        "run",
        "acme/prod/mailer",
        *code(
            """
            import signal, time
            got = []
            signal.signal(signal.SIGINT, lambda *_: got.append(1))
            print("ready", flush=True)
            while not got: time.sleep(0.01)
            time.sleep(0.2)
            print("got", len(got), flush=True)
            """
        ),
    ]
    if pid == 0:
        environment = {
            **os.environ,
            "HALTWIRE_URL": control.url,
            "HALTWIRE_API_KEY": KEY,
            "HALTWIRE_DATA_DIR": str(tmp_path),
        }
        os.execve(sys.executable, arguments, environment)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    while b"got" not in seen or not seen.endswith(b"\n"):
        seen += os.read(terminal, 1000)
    assert b"got 1" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_signal_masks_and_dispositions_are_not_inherited(start):
    show = "grep -E 'SigBlk|SigIgn' /proc/self/status"
    out, _ = start("acme/prod/mailer", "--", "sh", "-c", show).communicate()
    standard = 2**31 - 1  # those above are the C library's own
    assert [int(line.split()[1], 16) & standard for line in out.splitlines()] == [0, 0]


def test_a_token_that_cannot_be_revoked_is_named(start, control):
    control.will("DELETE", f"/v1/tokens/{TOKEN}", {"error": {"message": "disk full"}}, 503)
    process = start("acme/prod/mailer", "--", "true")
    _, err = process.communicate()
    assert process.returncode == 0
    assert f"disk full. End it with `haltwire token revoke {TOKEN}`" in err


def test_without_a_proxy_to_go_through_nothing_runs(start, control):
    control.will("POST", "/v1/tokens", {"token_id": TOKEN, "secret": SECRET, "proxy_url": None})
    process = start("acme/prod/mailer", "--", "echo", "ran")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert "does not know where agents reach its proxies" in err
    assert calls(control)[-1] == REVOKED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("acme/*", "--", "true"), "needs one agent"),
        (("acme/prod/mailer", "--instance", "a b", "--", "true"), "is no instance name"),
        (("acme/prod/mailer~a", "--instance", "b", "--", "true"), "names another instance"),
        (("acme/prod/mailer",), "Missing argument"),
    ],
)
def test_what_is_not_clear_runs_nothing(haltwire, control, arguments, words):
    result = haltwire("run", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert ("POST", "/v1/tokens") not in calls(control)
