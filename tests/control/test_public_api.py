"""The routes that need no key."""

from __future__ import annotations

from haltwire import __version__
from haltwire_control import public_api as module
from support.stores import failing


async def test_the_process_answers(control):
    assert (await control.call("GET", "/healthz", key=None)).body == {"ok": True}
    health = (await control.call("GET", "/health", key=None)).body
    assert health == {"ok": True, "version": __version__}


async def test_it_is_ready_while_the_store_takes_writes(control, monkeypatch):
    monkeypatch.setattr(module, "PROVEN_FOR_S", 0.0)
    assert (await control.call("GET", "/readyz", key=None)).body == {"ok": True}
    with failing(control.service.store):
        reply = await control.call("GET", "/readyz", key=None)
        assert (reply.status, reply.body["error"]["code"]) == (503, "not_ready")
        assert reply.body["error"]["retryable"] is True
    assert (await control.call("GET", "/readyz", key=None)).status == 200


async def test_anybody_asking_does_not_make_the_disk_work(control, monkeypatch):
    await control.call("GET", "/readyz", key=None)
    with failing(control.service.store):
        assert (await control.call("GET", "/readyz", key=None)).status == 200


async def test_the_ca_is_there_when_there_is_one(control):
    assert (await control.call("GET", "/ca.pem", key=None)).status == 404
    (control.data_dir / "public").mkdir()
    for name in ("ca.pem", "ca-bundle.pem"):
        (control.data_dir / "public" / name).write_bytes(b"-----BEGIN CERTIFICATE-----\n")
        reply = await control.call("GET", f"/{name}", key=None)
        assert reply.body.startswith(b"-----BEGIN")
        assert reply.headers["Content-Type"] == "application/x-pem-file"


async def test_a_full_disk_is_not_ready_and_says_no_more(control, monkeypatch):
    control.service.store.reserve.is_full = True
    monkeypatch.setattr(control.service.store.reserve, "look", lambda: None)
    reply = await control.call("GET", "/readyz", key=None)
    assert (reply.status, reply.body["error"]["code"]) == (503, "not_ready")
    assert reply.body["error"]["message"] == "the disk is full or failing: only orders are stored"
    reply = await control.call("POST", "/v1/tokens", {"selector": "agent://acme/prod/a"})
    assert (reply.status, reply.body["error"]["code"]) == (507, "store_full")
    assert reply.body["error"]["retryable"] is True
    assert "full or failing" in reply.body["error"]["message"]
    assert (await control.kill("agent://acme/prod/a", wait_s=0)).body["durable"] is True
