"""What is measured, started on loopback and always ended: haltwire, mitmdump, squid and the origin.

Each runs under haltwire_cli/demo_guard.py, which ends it by its own pid when this program ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from haltwire_cli import demo_guard

HERE = Path(__file__).parent
_PATIENCE_S = 30.0
_PASSWORD = "$apr1$haltwire$GlDdfYt2pevLDG3ot2.9b/"
"The word secret, as squid's helper stores it; it guards nothing."


@dataclass(frozen=True, slots=True)
class Process:
    """A running program and everything it has started."""

    name: str
    guard: subprocess.Popen[str]

    def cpu_s(self) -> float:
        """Processor time that it and its descendants have used so far."""
        return cpu_s(self.guard.pid)


@dataclass(frozen=True, slots=True)
class Haltwire:
    """A `haltwire up` of our own."""

    process: Process
    proxy: tuple[str, int]
    control_url: str
    ca_file: str
    admin_key: str
    log: Path
    "What its processes complain about."

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        """One API call with the admin key."""
        request = urllib.request.Request(
            self.control_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.admin_key}"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=_PATIENCE_S) as answer:
            return json.load(answer)

    def token(self, agent: str, tls: str) -> str:
        """The proxy URL of a new token for one agent."""
        answer = self.call("POST", "/v1/tokens", {"selector": agent, "tls": tls})
        return answer["proxy_url"]


class Operator:
    """Calls with the admin key over one kept connection, as a program would make them."""

    def __init__(self, ours: Haltwire) -> None:
        place = urlsplit(ours.control_url)
        self._connection = http.client.HTTPConnection(place.netloc, timeout=_PATIENCE_S)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = {"Authorization": f"Bearer {ours.admin_key}"}
        self._headers["Content-Type"] = "application/json"
        self.close = self._connection.close
        self.answered_at = 0.0
        "When the last answer was there, by time.perf_counter; reading its JSON is not counted."

    def __call__(self, path: str, body: dict) -> dict:
        """One POST; RuntimeError for any answer but 200 and 201."""
        self._connection.request("POST", path, json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        self.answered_at = time.perf_counter()
        if answer.status not in (200, 201):
            raise RuntimeError(f"{path}: {answer.status} {text.decode(errors='replace')}")
        return json.loads(text)

    def kill(self, selector: str, reason: str, connections: int) -> dict:
        """Kill, and make sure that it is proven and has cut exactly so many connections; the receipt."""
        receipt = self("/v1/mesh/kill", {"selector": selector, "reason": reason})
        cut = sum(proxy["connections_cut"] or 0 for proxy in receipt["proxies"])
        if not receipt["confirmed"] or cut != connections:
            receipt["instances"] = len(receipt["instances"])
            raise RuntimeError(f"not confirmed, or {cut} of {connections} cut: {receipt}")
        return receipt

    def resume(self, selector: str) -> None:
        """Lift the order."""
        self("/v1/mesh/resume", {"selector": selector})

    def token(self, agent: str, tls: str) -> str:
        """The proxy URL of a new token for one agent."""
        return self("/v1/tokens", {"selector": agent, "tls": tls})["proxy_url"]


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile stays on these cores; so does this thread, until the end."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def split_cores() -> tuple[set[int], set[int]]:
    """One core for the proxies, the rest for load generator and origin; all for both on one core.

    Left to itself the scheduler puts processes that wake one another on one core or on two, as it
    pleases, and rates differ fourfold between the two: measured.
    """
    cores = sorted(os.sched_getaffinity(0))
    return {cores[0]}, set(cores[1:]) or {cores[0]}


@contextlib.contextmanager
def started(
    name: str, command: list[str], log: Path, env: dict[str, str] | None = None
) -> Iterator[Process]:
    """Run a command under a guard; its standard output is readable, its errors go to `log`."""
    with log.open("wb") as errors:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", demo_guard.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
            start_new_session=True,
        )
    try:
        yield Process(name, guard)
    finally:
        guard.stdin.close()
        try:
            guard.wait(15)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        guard.stdout.close()


@contextlib.contextmanager
def origin(folder: Path) -> Iterator[dict]:
    """The origin's ports and CA file."""
    folder.mkdir()
    command = [sys.executable, str(HERE / "origin.py"), str(folder)]
    # glibc maps and unmaps uvloop's 256 KB TLS buffers anew for each read until it has learnt
    # better, which it does after some 100,000 requests: 28 us a request, measured.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}
    with started("origin", command, folder / "log", env) as process:
        line = process.guard.stdout.readline()
        if not line:
            raise RuntimeError(f"the origin did not start:\n{(folder / 'log').read_text()}")
        yield json.loads(line)


@contextlib.contextmanager
def haltwire(folder: Path, workers: int, upstream_ca: str | None = None) -> Iterator[Haltwire]:
    """`haltwire up` as a user starts it, with a data directory of its own."""
    folder.mkdir()
    data, log = folder / "data", folder / "log"
    command = [sys.executable, "-m", "haltwire_cli", "up", "--data-dir", str(data)]
    command += ["--proxy-listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"]
    command += ["--workers", str(workers)]
    # Else it is the limit that is measured: one agent makes all the load.
    command += ["--limit", "agent_handshakes=100000", "--limit", "agent_requests=100000"]
    command += ["--upstream-ca", upstream_ca] if upstream_ca else []
    env = {k: v for k, v in os.environ.items() if not k.startswith("HALTWIRE_")}
    with (folder / "out").open("wb"), started("haltwire", command, log, env) as process:
        endpoints = json.loads(_text_of(data / "endpoints.json", process, log))
        host, _, port = endpoints["proxy_url"].removeprefix("http://").rpartition(":")
        yield Haltwire(
            process,
            (host, int(port.rstrip("/"))),
            endpoints["control_url"].rstrip("/"),
            endpoints["ca_file"],
            (data / "admin.key").read_text().strip(),
            log,
        )


@contextlib.contextmanager
def mitmdump(folder: Path, upstream_ca: str) -> Iterator[tuple[Process, str, str]]:
    """Bare mitmdump with its default addons, no flow details; process, proxy URL, CA file."""
    folder.mkdir()
    port = free_port()
    command = [str(Path(sys.executable).with_name("mitmdump")), "--set", "flow_detail=0"]
    command += ["--set", f"confdir={folder}", "--listen-host", "127.0.0.1", "-p", str(port)]
    command += ["--set", f"ssl_verify_upstream_trusted_ca={upstream_ca}"]
    # Its log lines go where reading them costs nobody anything.
    command = ["sh", "-c", 'exec "$@" >/dev/null', "sh", *command]
    with started("mitmdump", command, folder / "log") as process:
        _await_port(port, process, folder / "log")
        yield process, f"http://127.0.0.1:{port}", str(folder / "mitmproxy-ca-cert.pem")


@contextlib.contextmanager
def squid(folder: Path, authenticates: bool) -> Iterator[tuple[Process, str]]:
    """Squid as a plain forward proxy, no cache, no access log; process and proxy URL."""
    folder.mkdir()
    folder.chmod(0o777)  # started by root, it drops to a user of its own
    port = free_port()
    access = "http_access allow all"
    if authenticates:
        (folder / "users").write_text(f"bench:{_PASSWORD}\n")
        access = f"""auth_param basic program {squid_authenticator()} {folder}/users
acl known proxy_auth REQUIRED
http_access allow known"""
    settings = f"""
http_port 127.0.0.1:{port}
{access}
cache deny all
access_log none
cache_log {folder}/cache.log
cache_store_log none
pid_filename {folder}/squid.pid
coredump_dir {folder}
netdb_filename none
pinger_enable off
shutdown_lifetime 0 seconds
workers 1
"""
    (folder / "squid.conf").write_text(settings)
    command = [squid_path() or "squid", "-N", "-f", str(folder / "squid.conf")]
    with started("squid", command, folder / "log") as process:
        _await_port(port, process, folder / "log")
        yield process, f"http://{'bench:secret@' if authenticates else ''}127.0.0.1:{port}"


def squid_authenticator() -> str | None:
    """Where squid's helper for password files is, if it is installed."""
    places = ("/usr/lib/squid", "/usr/lib64/squid", "/usr/libexec/squid", "/usr/local/libexec")
    return shutil.which("basic_ncsa_auth", path=":".join(places))


def squid_path() -> str | None:
    """Where squid is, if it is installed."""
    return shutil.which("squid", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A free loopback port below the ephemeral range, for programs that cannot be given port 0."""
    for port in range(20000 + os.getpid() % 5000, 32768):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 20000 and 32767")


def cpu_s(root: int) -> float:
    """User and system time of a process, its descendants and those it has waited for."""
    parents: dict[int, int] = {}
    times: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                times[int(entry.name)] = sum(map(int, fields[11:15]))
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(times.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, str]:
    """What the figures were measured on, and how busy it is with other things when this is called."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    system = os.uname()
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "system": f"{system.sysname} {system.release} {system.machine}",
        "python": sys.version.split()[0],
        "load average": f"{os.getloadavg()[0]:.1f}",
    }


def _text_of(path: Path, process: Process, log: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if process.guard.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.name} did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return path.read_text()


def _await_port(port: int, process: Process, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.guard.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.name} did not start:\n{log.read_text()}") from None
            time.sleep(0.02)
        else:
            return
