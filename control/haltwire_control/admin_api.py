"""The administrators' side of the API: tokens, keys, and the proxies that know them."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from haltwire.wire.codec import encode

from haltwire_control.calls import Call
from haltwire_control.credentials import Credentials, called_by, proxy_url_of
from haltwire_control.hub import Peer
from haltwire_control.models import KeyBody, TokenBody
from haltwire_control.selecting import selector_of
from haltwire_control.service import Service


class AdminApi:
    """Handlers; each is one route."""

    def __init__(
        self, service: Service, credentials: Credentials, proxy_url: str, anywhere: bool
    ) -> None:
        self._service = service
        self._credentials = credentials
        self._proxy_url = proxy_url
        self._anywhere = anywhere

    async def create_token(self, call: Call) -> web.Response:
        """A new agent token; its secret is shown this once."""
        body: TokenBody = call.body
        selector = selector_of(body.selector, self._service)
        made = await self._credentials.create_token(
            selector, body.tls, call.caller.actor, call.once
        )
        token = made.record
        proxy = self._proxy_url
        if self._anywhere:
            proxy = called_by(proxy, call.request.headers.get("Host", ""))
        document = {
            "token_id": token.token_id,
            "selector": str(token.selector),
            "secret": made.secret,
            "tls": token.tls,
            "expires_at": None,
            "proxy_url": proxy_url_of(proxy, token.selector, made.secret),
        }
        return web.json_response(document, status=201)

    async def list_tokens(self, _call: Call) -> web.Response:
        """Live tokens, oldest first."""
        tokens = sorted(self._service.state.tokens.values(), key=lambda t: t.created_at)
        documents = [
            {
                "token_id": token.token_id,
                "selector": str(token.selector),
                "tls": token.tls,
                "created_at": encode(token.created_at),
                "created_by": token.created_by,
                "expires_at": None,
            }
            for token in tokens
        ]
        return web.json_response({"ok": True, "tokens": documents})

    async def revoke_token(self, call: Call) -> web.Response:
        """End a token; live connections that use it are cut."""
        token_id = call.request.match_info["token_id"]
        revoked = await self._credentials.revoke_token(token_id, call.caller.actor, call.once)
        return web.json_response({"ok": True, "revoked": revoked})

    async def create_key(self, call: Call) -> web.Response:
        """A new operator's or proxy's key; its secret is shown this once."""
        body: KeyBody = call.body
        made = await self._credentials.create_key(
            body.name, body.role, call.caller.actor, call.once
        )
        key = made.record
        document = {"key_id": key.key_id, "name": key.name, "role": key.role}
        return web.json_response({**document, "secret": made.secret}, status=201)

    async def list_keys(self, _call: Call) -> web.Response:
        """Live keys, oldest first."""
        keys = sorted(self._service.state.keys.values(), key=lambda key: key.created_at)
        documents = [
            {
                "key_id": key.key_id,
                "name": key.name,
                "role": key.role,
                "created_at": encode(key.created_at),
                "created_by": key.created_by,
            }
            for key in keys
        ]
        return web.json_response({"ok": True, "keys": documents})

    async def revoke_key(self, call: Call) -> web.Response:
        """End a key."""
        named = call.request.match_info["key"]
        revoked = await self._credentials.revoke_key(named, call.caller.actor, call.once)
        return web.json_response({"ok": True, "revoked": revoked})

    async def list_proxies(self, _call: Call) -> web.Response:
        """Every proxy that may be passing traffic."""
        service = self._service
        service.sweep()
        head = service.state.revision
        peers = sorted(service.hub.peers, key=lambda peer: peer.record.proxy_id)
        proxies = [_proxy_document(peer, head) for peer in peers if not peer.gone]
        return web.json_response({"ok": True, "revision": head, "proxies": proxies})


def _proxy_document(peer: Peer, head: int) -> dict[str, Any]:
    record = peer.record
    connected = peer.outlet is not None
    return {
        "proxy_id": record.proxy_id,
        "host": record.host,
        "pid": record.pid,
        "version": record.version,
        "state": "connected" if connected else "out_of_reach",
        "current": connected and peer.applied_revision >= head,
        "revision": peer.applied_revision if peer.applied_revision >= 0 else None,
        "connections": peer.connections,
        "first_seen_at": encode(record.first_seen_at),
        "connected_at": encode(peer.connected_at),
        "heard_at": encode(peer.heard_at),
    }
