"""The audit log as it is asked for: filtered, paged, followed, exported, verified."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache

from aiohttp import web
from haltwire.wire.orders import overlap
from haltwire.wire.selectors import Selector

from haltwire_control.audit import EventRow
from haltwire_control.calls import Call
from haltwire_control.models import EventsQuery
from haltwire_control.selecting import selector_of
from haltwire_control.service import Service

PAGE = 1000
SCANNED_MOST = 200_000
"Rows that one question looks at; a filter that nothing fits must not read for ever."


class EventsApi:
    """The audit routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def events(self, call: Call) -> web.Response:
        """The latest events, or those after a seq; waits for one when asked to."""
        query: EventsQuery = call.query
        selector = selector_of(query.selector, self._service) if query.selector else None
        wanted = _Filter(selector, query.event_type)
        if query.after is None:
            rows = await self._latest(wanted, query.limit)
            last = rows[-1].seq if rows else 0
        else:
            rows, last = await self._after(wanted, query.after, query.limit, query.follow_s)
        documents = [row.document() for row in rows]
        return web.json_response({"ok": True, "events": documents, "next_after": last})

    async def verify(self, _call: Call) -> web.Response:
        """Recompute the chain over what is stored."""
        found = await self._service.store.verify()
        return web.json_response(
            {
                "ok": found.ok,
                "events": found.events,
                "head_hash": found.head_hash,
                "first_bad_seq": found.first_bad_seq,
                "anchored": found.anchored,
            }
        )

    async def export(self, call: Call) -> web.StreamResponse:
        """Every event, one JSON object a line, oldest first."""
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await response.prepare(call.request)
        last = 0
        while rows := await self._service.store.events_after(last, PAGE):
            lines = [json.dumps(row.document(), ensure_ascii=False) + "\n" for row in rows]
            await response.write("".join(lines).encode())
            last = rows[-1].seq
        await response.write_eof()
        return response

    async def _latest(self, wanted: _Filter, limit: int) -> list[EventRow]:
        found: list[EventRow] = []
        before: int | None = None
        for _ in range(SCANNED_MOST // PAGE):
            page = limit if wanted.is_open else PAGE
            rows = await self._service.store.events_before(before, page)
            found += wanted.of(rows)
            if len(rows) < page or len(found) >= limit:
                break
            before = rows[-1].seq
        return found[:limit][::-1]

    async def _after(
        self, wanted: _Filter, after: int, limit: int, follow_s: float
    ) -> tuple[list[EventRow], int]:
        """The next events, and the seq to go on from: the last one looked at."""
        bell = self._service.events
        deadline = time.monotonic() + follow_s
        for _ in range(SCANNED_MOST // PAGE):
            heard = bell.count
            rows = await self._service.store.events_after(after, PAGE)
            found = wanted.of(rows)[:limit]
            if len(found) == limit:
                return found, found[-1].seq
            if found:
                return found, rows[-1].seq
            after = rows[-1].seq if rows else after
            left = deadline - time.monotonic()
            if len(rows) < PAGE and (left <= 0 or not await bell.wait(left, heard)):
                break
        return [], after


class _Filter:
    """Which events are asked for."""

    def __init__(self, selector: Selector | None, event_type: str | None) -> None:
        self._selector = selector
        self._event_type = event_type

    @property
    def is_open(self) -> bool:
        return self._selector is None and self._event_type is None

    def of(self, rows: Sequence[EventRow]) -> list[EventRow]:
        return [row for row in rows if self._fits(row)]

    def _fits(self, row: EventRow) -> bool:
        if self._event_type is not None and row.event_type != self._event_type:
            return False
        if self._selector is None:
            return True
        return row.address is not None and _overlap(row.address, self._selector)


@lru_cache(maxsize=4096)
def _overlap(address: str, selector: Selector) -> bool:
    try:
        return overlap(Selector.parse(address), selector)
    except ValueError:
        return False  # a row that was changed by hand; verify names it
