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
        "durable": True,
        "matched": {"agents": 1, "instances": 1, "proxies": 1},
        "confirmed": True,
        "unconfirmed_because": None,
        "halted_in_ms": 14.2,
        "still_killed_by": [],
        "escapable": False,
        "proxies": [
            {"proxy_id": "box-1", "state": "applied", "latency_ms": 6.1, "connections_cut": 3}
        ],
        "instances": [],
        "totals": {"done": None, "remaining": None, "unit": None, "sums": {}},
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
        **more,
    }


def in_flight(**more: object) -> dict:
    return {
        "method": "POST",
        "host": "api.mail.test",
        "path": "/send",
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
        "last_seen_at": "2026-11-22T09:30:00.000000Z",
        "metadata": None,
        "requests": 3,
        **more,
    }
