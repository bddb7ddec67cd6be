"""The halves alone, with data directories of their own and TLS between them: killed, restarted, started in any order.

Protections that were taken out to see these tests fail, and what was seen:
- the closing of links in `Credentials.revoke_key`: the proxy said nothing of its key within 30 s, since it kept its link.
- `wait_for_control: False` in compose.py: "proxy worker 1 was not ready within 30 s; everything is stopped".
- the names of secrets' variables in compose.py: BILLER_SECRET stood in the children's environment.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.client import Wire, tunnel
from support.halves import ControlAlone, ProxyAlone
from support.system import CLEAN, run
from support.world import basic

MAILER = "agent://acme/prod/mailer"
EVERYWHERE = ("--control-listen", "0.0.0.0:0")


@pytest.fixture
async def control(tmp_path):
    """A control server that other machines could reach, so with TLS from its own CA."""
    async with ControlAlone(tmp_path / "control", *EVERYWHERE) as running:
        yield running


async def proxy_of(control: ControlAlone, folder: Path, *options: str) -> ProxyAlone:
    """A proxy that has taken its key and the CA file from the control server, and nothing else."""
    ca_file = folder / "ca.pem"
    ca_file.write_text(control.ca_file.read_text())
    key = await control.proxy_key()
    return ProxyAlone(
        folder / "proxy", control.control_url, key, "--ca-file", str(ca_file), *options
    )


@pytest.fixture
async def proxy(control, tmp_path):
    async with await proxy_of(control, tmp_path, "--workers", "2") as running:
        await control.connected(2)
        yield running


async def status_of(proxy: ProxyAlone, url: str, secret: str, wait_s: float = 5) -> int:
    """The status of one request of the mailer's, on a connection of its own."""
    wire = await Wire.open(proxy.port)
    host = urlsplit(url).netloc
    head = ("\r\n".join([
        f"GET {url} HTTP/1.1", f"Host: {host}",
        f"Proxy-Authorization: {basic('acme.prod.mailer', secret)}", "Connection: close", "", "",
    ])).encode()  # fmt: skip
    await wire.send(head)
    line = await asyncio.wait_for(wire.reader.readline(), wait_s)
    wire.close()
    return int(line.split()[1])


async def passes(proxy: ProxyAlone, url: str, secret: str) -> None:
    """Wait until a request goes through."""
    async with asyncio.timeout(30):
        while await status_of(proxy, url, secret, 15) != 200:
            await asyncio.sleep(0.05)


async def test_an_agent_goes_through_and_is_killed_in_under_a_second(control, proxy, origin):
    secret = await control.secret(MAILER)
    assert await status_of(proxy, f"http://{origin.host}/", secret) == 200
    wire = await tunnel(proxy.port, origin.host, "acme.prod.mailer", secret)
    killed = await control.cli("kill", "acme/prod/mailer", "--json")
    receipt = killed.json()
    assert (killed.code, receipt["confirmed"]) == (0, True)
    assert receipt["halted_in_ms"] < 1000
    assert [one["state"] for one in receipt["proxies"]] == ["applied", "applied"]
    assert sum(one["connections_cut"] for one in receipt["proxies"]) == 1
    assert await wire.ended() == b""
    assert await status_of(proxy, f"http://{origin.host}/", secret) == 403
    assert (await control.cli("resume", "--all")).code == 0
    assert await status_of(proxy, f"http://{origin.host}/", secret) == 200


async def test_the_key_is_in_no_argument_and_no_childs_environment(control, proxy):
    (key_file,) = proxy.data_dir.parent.glob("*.key")
    key = key_file.read_bytes().strip()
    assert key.startswith(b"hwk_")
    for pid in (proxy.process.pid, *proxy.workers):
        assert key not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert key not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_proxys_key_does_nothing_else(control):
    key = await control.proxy_key()
    for method, path in (
        ("GET", "/v1/proxies"),
        ("GET", "/v1/mesh/agents"),
        ("POST", "/v1/mesh/heartbeat"),
        ("POST", "/v1/mesh/kill"),
        ("POST", "/v1/mesh/resume"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/tokens"),
    ):
        status, answer = await control.api(method, path, {"selector": "**"}, key=key)
        assert (status, answer["error"]["code"]) == (403, "not_allowed"), path


async def test_the_printed_line_works_as_it_is(tmp_path, origin):
    """Typed into a shell in another place, with the CA file taken there, and nothing changed."""
    async with ControlAlone(tmp_path / "control") as control:
        made = await control.cli("key", "create", "edge", "--role", "proxy")
        lines = [line.strip() for line in made.out.splitlines()]
        typed = [line for line in lines if line.startswith(("(umask", "haltwire proxy"))]
        assert len(typed) == 2, made.out
        line = typed[1].replace("haltwire ", f"{sys.executable} -m haltwire_cli ", 1)
        place = tmp_path / "place"
        place.mkdir()
        script = f"{typed[0]}\nexec {line} --proxy-listen 127.0.0.1:0 --workers 1"
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", script, cwd=place, env=CLEAN, stdout=asyncio.subprocess.PIPE
        )
        try:
            await control.connected(1)
        finally:
            shell.terminate()
            await shell.communicate()
        assert shell.returncode == 0
        as_json = await control.cli("key", "create", "other", "--role", "proxy", "--json")
        made = as_json.json()
        assert made["command"].startswith(f"haltwire proxy --control {control.control_url} ")
        assert made["secret"] not in made["command"]


async def test_a_control_server_that_is_killed_comes_back_to_the_same_proxy(
    control, proxy, origin, tmp_path
):
    """Its children too: what is started anew is another process on the same directory and port."""
    secret, url = await control.secret(MAILER), f"http://{origin.host}/"
    assert await status_of(proxy, url, secret) == 200
    workers, port = proxy.workers, urlsplit(control.control_url).port
    assert (await control.cli("kill", "acme/prod/other")).code == 3
    await control.stop(signal.SIGKILL)
    await proxy.says("waiting for the control server", times=2)
    again = ControlAlone(control.data_dir, "--control-listen", f"0.0.0.0:{port}")
    (control.data_dir / "endpoints.json").unlink()
    async with again:
        await again.connected(2)
        await passes(proxy, url, secret)
        await proxy.says("the control server is there", times=2)
        assert proxy.workers == workers
        killed = await again.cli("kill", "acme/prod/mailer", "--json")
        assert (killed.code, killed.json()["confirmed"]) == (0, True)
        assert await status_of(proxy, url, secret) == 403
        assert len((await again.cli("kills", "--json")).json()["kills"]) == 2


async def test_a_control_server_that_dies_is_started_again(control, proxy, origin):
    secret, url = await control.secret(MAILER), f"http://{origin.host}/"
    pid = control.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    await proxy.says("the control server is there", times=2)
    await passes(proxy, url, secret)


async def test_a_proxy_that_starts_first_lets_nothing_through_until_its_control_server_is_there(
    tmp_path, origin
):
    async with ControlAlone(tmp_path / "control", *EVERYWHERE) as control:
        secret, proxy = await control.secret(MAILER), await proxy_of(control, tmp_path)
        port = urlsplit(control.control_url).port
    url = f"http://{origin.host}/"
    async with proxy:
        await proxy.says("nothing answers at https://127.0.0.1:")
        with contextlib.suppress(TimeoutError):  # it may also wait for a while
            assert await status_of(proxy, url, secret, 3) == 503
        assert origin.requests == []
        async with ControlAlone(control.data_dir, "--control-listen", f"0.0.0.0:{port}"):
            await passes(proxy, url, secret)


async def test_a_wrong_key_and_a_revoked_one_are_told_plainly(control, proxy, origin, tmp_path):
    """What lets a proxy in must be able to put it out: its link ends, then its lease, then its traffic."""
    secret, url = await control.secret(MAILER), f"http://{origin.host}/"
    assert await status_of(proxy, url, secret) == 200
    assert (await control.cli("key", "revoke", "edge")).code == 0
    await proxy.says("does not know this proxy's key", times=2)
    async with asyncio.timeout(15):
        while await status_of(proxy, url, secret, 12) == 200:
            await asyncio.sleep(0.05)
    ca = ("--ca-file", str(control.ca_file), "--workers", "1")
    wrong = f"hwk_{base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()[:43]}"
    async with ProxyAlone(tmp_path / "wrong", control.control_url, wrong, *ca) as other:
        await other.says("does not know this proxy's key")
    status, made = await control.api("POST", "/v1/keys", {"name": "eve", "role": "viewer"})
    assert status == 201
    async with ProxyAlone(tmp_path / "eve", control.control_url, made["secret"], *ca) as other:
        await other.says("does not let this key connect a proxy")


async def test_an_impostor_is_sent_nothing(control, tmp_path):
    """Whoever else has the address, and even a CA of the system's, is not the control server."""
    key = await control.proxy_key()
    async with ProxyAlone(tmp_path / "proxy", control.control_url, key, "--workers", "1") as proxy:
        await proxy.says("does not prove who it is, so it was sent nothing")
        assert await control.proxies() == []


async def test_two_hosts_with_one_key_are_two_proxies(control, proxy, origin, tmp_path):
    key = (tmp_path / "proxy.key").read_text()
    ca = ("--ca-file", str(control.ca_file), "--workers", "1")
    async with ProxyAlone(tmp_path / "second", control.control_url, key, *ca) as second:
        await control.connected(3)
        names = [one["proxy_id"] for one in await control.proxies()]
        assert len(set(names)) == 3
        secret = await control.secret(MAILER)
        for one in (proxy, second):
            assert await status_of(one, f"http://{origin.host}/", secret) == 200
        killed = await control.cli("kill", "acme/prod/mailer", "--json")
        assert [one["state"] for one in killed.json()["proxies"]] == ["applied"] * 3
        for one in (proxy, second):
            assert await status_of(one, f"http://{origin.host}/", secret) == 403
    await control.connected(2)


async def test_an_agent_trusts_the_ca_of_the_proxy_that_reads_inside(
    control, tmp_path, site, authority
):
    """`run` on a machine with neither half gets it from the control server, which the proxies have told."""
    port = urlsplit(control.control_url).port
    options = ("--workers", "1", "--upstream-ca", str(authority.ca_file))
    async with await proxy_of(control, tmp_path, *options) as proxy:
        await control.stop()
        told = ("--control-listen", f"0.0.0.0:{port}", "--proxy-url", proxy.proxy_url)
        async with ControlAlone(control.data_dir, *told) as server:
            await server.connected(1)
            ours = proxy.ca_file.read_text()
            assert ours != server.ca_file.read_text()
            url = f"https://{site.host('https')}/echo"
            code = f"import urllib.request as r; print(r.urlopen('{url}').status)"
            arguments = ("run", "acme/prod/reader", "--", sys.executable, "-c", code)
            operator = {
                **CLEAN,
                "HALTWIRE_URL": server.control_url,
                "HALTWIRE_CA_FILE": str(server.ca_file),
                "HALTWIRE_API_KEY": server.key,
                "HALTWIRE_DATA_DIR": str(tmp_path / "operator"),
            }
            done = await run(sys.executable, "-m", "haltwire_cli", *arguments, env=operator)
            assert (done.code, done.out) == (0, "200\n"), done.err
            (copied,) = (tmp_path / "operator" / "remote").glob("*/ca.pem")
            assert copied.read_text() == ours


async def test_what_a_machine_is_set_up_with_is_there_at_once(tmp_path, origin):
    """A file with tokens and an admin's key, as an image or a chart would bring them; nobody types anything."""
    mailer, admin = (f"{p}_{secrets.token_urlsafe(32)}" for p in ("hwa", "hwk"))
    for name, secret in (("mailer", mailer), ("admin", admin)):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(secret)
    config = tmp_path / "haltwire.toml"
    config.write_text(
        f"""
        workers = 1
        proxy-url = "http://proxy.example:8080"
        data-dir = "{tmp_path / "data"}"
        [[tokens]]
        selector = "acme/prod/mailer"
        secret_file = "mailer"
        [[tokens]]
        selector = "acme/prod/biller"
        secret_env = "BILLER_SECRET"
        """
    )
    env = {
        **CLEAN,
        "HALTWIRE_CONFIG": str(config),
        "HALTWIRE_ADMIN_KEY_FILE": str(tmp_path / "admin"),
        "BILLER_SECRET": f"hwa_{secrets.token_urlsafe(32)}",
    }
    from support.system import System

    for _ in range(2):
        async with System(tmp_path / "data", env=env) as system:
            assert system.key == admin
            proxy = ProxyAlone.__new__(ProxyAlone)
            proxy.proxy_url = system.proxy_url
            assert await status_of(proxy, f"http://{origin.host}/", mailer) == 200
            _, listed = await system.api("GET", "/v1/tokens")
            assert sorted(t["selector"] for t in listed["tokens"]) == [
                "agent://acme/prod/biller",
                "agent://acme/prod/mailer",
            ]
            assert "proxy.example:8080" in await system.token("agent://acme/prod/third~i-1")
            _, listed = await system.api("GET", "/v1/tokens")
            (third,) = (t["token_id"] for t in listed["tokens"] if "third" in t["selector"])
            await system.api("DELETE", f"/v1/tokens/{third}")
            pid = system.process.pid
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                environment = Path(f"/proc/{child}/environ").read_bytes()
                assert b"BILLER_SECRET" not in environment
        assert str(config) in system.output


async def test_a_second_control_server_on_the_directory_is_refused_with_its_pid(control):
    other = await run(
        sys.executable, "-m", "haltwire_cli", "control", "--data-dir", str(control.data_dir),
        "--control-listen", "127.0.0.1:0",
    )  # fmt: skip
    assert other.code == 1
    assert f"is in use by another haltwire (pid {control.process.pid})" in other.err
    assert (await control.api("GET", "/healthz"))[0] == 200
