"""Clients that send credentials only when they are asked: the challenge is one that they can answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import websockets
from support.system import CLEAN, run

PROBE = """
import java.net.*; import java.net.http.*;
public class Probe {
  public static void main(String[] a) throws Exception {
    var login = new Authenticator() {
      protected PasswordAuthentication getPasswordAuthentication() {
        return new PasswordAuthentication(a[2], a[3].toCharArray());
      }
    };
    var client = HttpClient.newBuilder().authenticator(login)
      .version(HttpClient.Version.HTTP_1_1)
      .proxy(ProxySelector.of(new InetSocketAddress(a[0], Integer.parseInt(a[1])))).build();
    var request = HttpRequest.newBuilder(URI.create(a[4])).build();
    System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
  }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_java_answers_the_challenge(system, site, authority, tmp_path: Path, scheme):
    """Java waits for the 407 and refuses Basic for tunnels until it is told otherwise."""
    proxy = urlsplit(await system.token("agent://acme/prod/mailer", "tunnel"))
    trust = tmp_path / "trust.p12"
    await run(
        *("keytool", "-importcert", "-noprompt", "-alias", "origin", "-storepass", "changeit"),
        *("-keystore", str(trust), "-file", str(authority.ca_file)),
    )
    probe = tmp_path / "Probe.java"
    probe.write_text(PROBE)
    done = await run(
        *(
            "java",
            "-Djdk.http.auth.tunneling.disabledSchemes=",
            f"-Djavax.net.ssl.trustStore={trust}",
        ),
        "-Djavax.net.ssl.trustStorePassword=changeit",
        str(probe),
        *(proxy.hostname, str(proxy.port), proxy.username, proxy.password),
        f"{scheme}://{site.host(scheme)}/echo",
        env=CLEAN,
    )
    assert '"ok": true' in done.out, done


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
async def test_chromium_answers_the_challenge(system, site, tmp_path: Path):
    """A browser asks whoever drives it for the credentials, as Playwright's `proxy` option answers."""
    proxy = urlsplit(await system.token("agent://acme/prod/browser", "tunnel"))
    browser = await asyncio.create_subprocess_exec(
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--ignore-certificate-errors", "--proxy-bypass-list=<-loopback>"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"),
        f"--proxy-server=http://{proxy.hostname}:{proxy.port}",
        env=CLEAN,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            line = b""
            while b"DevTools listening on " not in line:
                line = await browser.stderr.readline()
            url = line.decode().split(" on ", 1)[1].strip()
            login = {"username": proxy.username, "password": proxy.password}
            text = await _visit(url, f"https://{site.host('https')}/echo", login)
        assert '"ok": true' in text
    finally:
        browser.kill()
        await browser.communicate()
    assert all("Proxy-Authorization" not in headers for _, headers in site.seen)


async def _visit(devtools: str, page: str, login: dict[str, str]) -> str:
    """The text of a page, over the DevTools protocol, answering proxy challenges with `login`."""
    numbers = itertools.count(1)
    async with websockets.connect(devtools, proxy=None, max_size=None) as socket:

        async def tell(method: str, session: str | None = None, **params) -> int:
            number = next(numbers)
            message = {"id": number, "method": method, "params": params}
            await socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
            return number

        async def answer(number: int, session: str | None = None) -> dict:
            while True:
                said = json.loads(await socket.recv())
                params = said.get("params", {})
                if said.get("id") == number:
                    return said["result"]
                if said.get("method") == "Fetch.authRequired":
                    reply = {"response": "ProvideCredentials", **login}
                    await tell(
                        "Fetch.continueWithAuth",
                        session,
                        requestId=params["requestId"],
                        authChallengeResponse=reply,
                    )
                elif said.get("method") == "Fetch.requestPaused":
                    await tell("Fetch.continueRequest", session, requestId=params["requestId"])

        target = (await answer(await tell("Target.createTarget", url="about:blank")))["targetId"]
        attach = await tell("Target.attachToTarget", targetId=target, flatten=True)
        session = (await answer(attach))["sessionId"]
        await answer(await tell("Fetch.enable", session, handleAuthRequests=True), session)
        await answer(await tell("Page.navigate", session, url=page), session)
        while True:
            look = await tell(
                "Runtime.evaluate", session, expression="document.body && document.body.innerText"
            )
            text = (await answer(look, session))["result"].get("value") or ""
            if text:
                return text
            await asyncio.sleep(0.05)
