"""The API of a recovery: what the store was found to lack, and an admin's word that this is how it is."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web
from haltwire.wire.codec import encode

from haltwire_control import recovery
from haltwire_control.calls import Call
from haltwire_control.models import AcceptBody
from haltwire_control.service import Service, now
from haltwire_control.state import Recovery


class RecoveryApi:
    """Handlers; each is one route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def show(self, _call: Call) -> web.Response:
        """What waits to be accepted, or nothing."""
        return web.json_response(self._document(self._service.state.recovery))

    async def accept(self, call: Call) -> web.Response:
        """End it."""
        body: AcceptBody = call.body
        step = partial(
            recovery.accept,
            recovery_id=body.recovery_id,
            version=body.version,
            actor=call.caller.actor,
            now=now(),
        )
        committed = await self._service.store.commit(step)
        await self._service.applied(committed.change.state.revision)
        return web.json_response(self._document(committed.outcome))

    def _document(self, found: Recovery | None) -> dict[str, Any]:
        needed = found is not None and found.accepted_at is None
        return {
            "ok": True,
            "needed": needed,
            "recovery": None if found is None else self._found(found),
        }

    def _found(self, found: Recovery) -> dict[str, Any]:
        state = self._service.state
        orders = {order.kill.kill_id: order.kill for order in state.orders}
        tokens = {token.token_id: token for token in state.tokens.values()}

        def listed(kill_ids: tuple[str, ...]) -> list[dict[str, Any]]:
            kills = (orders[kill_id] for kill_id in kill_ids if kill_id in orders)
            return [
                {
                    "kill_id": kill.kill_id,
                    "selector": str(kill.selector),
                    "mode": kill.mode,
                    "reason": kill.reason,
                    "actor": kill.actor,
                    "created_at": encode(kill.created_at),
                }
                for kill in kills
            ]

        return {
            "recovery_id": found.recovery_id,
            "version": found.version,
            "began_at": encode(found.began_at),
            "why": found.why,
            "store_revision": found.store_revision,
            "seen_revision": found.seen_revision,
            "proxies": list(found.proxies),
            "orders_taken": listed(found.taken),
            "orders_kept": listed(found.kept),
            "tokens_withheld": [
                {"token_id": token_id, "selector": str(tokens[token_id].selector)}
                for token_id in found.withheld
                if token_id in tokens
            ],
            "accepted_at": encode(found.accepted_at),
            "accepted_by": found.accepted_by,
        }
