"""Receipts and agents as the control server sends them, with defaults."""

from __future__ import annotations


def receipt(**more: object) -> dict:
    return {
        "ok": True,
        "kill_id": "K0123456789AB",
        "selector": "agent://acme/prod/mailer",
        "mode": "cut",
        "reason": None,
        "actor": "key:ada",
        "requested_at": "2026-11-22T09:30:00.000000Z",
        "durable": True,
        "matched": {"agents": 1, "instances": 1, "proxies": 1},
        "confirmed": True,
        "unconfirmed_because": None,
        "halted_at": "2026-11-22T09:30:00.014200Z",
        "halted_in_ms": 14.2,
        "still_killed_by": [],
        "escapable": False,
        "proxies": [proxy()],
        "instances": [],
        "totals": {"done": None, "remaining": None, "unit": None, "sums": {}},
        "lifted": [],
        "did_you_mean": [],
        "grace_s": None,
        "expires_at": None,
        "hold_until": None,
        "dry_run": False,
        **more,
    }


def drain(live: int, **more: object) -> dict:
    """The receipt of a drain of 30 s that one proxy has taken up."""
    ended = {} if live == 0 else {"halted_at": None, "halted_in_ms": None}
    proxies = [proxy(connections_live=live, connections_cut=0)]
    return receipt(**{"mode": "drain", "grace_s": 30.0, "proxies": proxies, **ended, **more})


def hold(**more: object) -> dict:
    """The receipt of a hold that one proxy has taken up."""
    proxies = [proxy(connections_held=3, connections_cut=0, residual_bytes_max=4096)]
    return receipt(**{"mode": "hold", "proxies": proxies, **more})


def proxy(**more: object) -> dict:
    return {
        "proxy_id": "box-1",
        "state": "applied",
        "latency_ms": 6.1,
        "connections_cut": 3,
        "residual_bytes_max": 0,
        "connections_live": None,
        "connections_held": None,
        **more,
    }


def silent(proxy_id: str = "box-2") -> dict:
    return proxy(
        proxy_id=proxy_id,
        state="pending",
        latency_ms=None,
        connections_cut=None,
        residual_bytes_max=None,
    )


def fenced(proxy_id: str = "box-2", **more: object) -> dict:
    return {
        **silent(proxy_id),
        "state": "fenced",
        "latency_ms": 1064.2,
        "residual_bytes_max": 4096,
        **more,
    }


def kill(**more: object) -> dict:
    return {
        "kill_id": "K0123456789AB",
        "selector": "agent://acme/prod/mailer",
        "mode": "cut",
        "reason": "broken link",
        "actor": "key:ada",
        "created_at": "2026-11-22T09:30:00.000000Z",
        "expires_at": None,
        "grace_s": None,
        "hold_until": None,
        "in_force": True,
        "durable": True,
        "confirmed": True,
        "lifted_at": None,
        "lifted_by": None,
        "lifted_reason": None,
        **more,
    }


def lifted(**more: object) -> dict:
    return kill(
        in_force=False,
        lifted_at="2026-11-22T09:45:00.000000Z",
        lifted_by="key:bob",
        lifted_reason="fixed",
        **more,
    )


def incident(**more: object) -> dict:
    """What the control server knows of one kill."""
    return {
        "ok": True,
        "kill": kill(),
        "receipt": receipt(),
        "resume": None,
        "notes": [],
        "events": [],
        **more,
    }


def instance(**more: object) -> dict:
    return {
        "agent_uri": "agent://acme/prod/mailer",
        "instance": "i-7f3a",
        "seen_at_proxy": "2026-11-22T09:29:00.000000Z",
        "stopped_by": "proxy",
        "connections_cut": 1,
        "last_byte_at": "2026-11-22T09:29:59.875000Z",
        "metadata": None,
        "metadata_at": None,
        "since_metadata": None,
        "in_flight": [],
        "connections_live": None,
        "connections_held": None,
        "lost_while_held": None,
        "state": None,
        **more,
    }


def in_flight(**more: object) -> dict:
    return {
        "method": "POST",
        "host": "api.mail.test",
        "path": "/send",
        "started_at": "2026-11-22T09:29:58.000000Z",
        "bytes_up": 5120,
        "bytes_up_acked": 4096,
        "bytes_down": 0,
        "sent": "partly",
        **more,
    }


def agent(uri: str, **more: object) -> dict:
    return {
        "agent_uri": uri,
        "status": "active",
        "health_status": "healthy",
        "instances": 1,
        "instances_killed": 0,
        "instances_held": 0,
        "last_seen_at": "2026-11-22T09:30:00.000000Z",
        "metadata": None,
        "requests": 3,
        **more,
    }
