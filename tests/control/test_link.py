"""The WebSocket: a hello first, messages only, and no slow socket kept."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from haltwire.wire import messages
from haltwire.wire.messages import Bye, Renewed
from haltwire_control import link as module
from haltwire_control.link import Link
from support.control import PROXY_KEY, Worker


async def connected(control):
    return await control.session.ws_connect(
        control.url + "/v1/proxies/connect", headers={"Authorization": f"Bearer {PROXY_KEY}"}
    )


async def closed(socket) -> None:
    async with asyncio.timeout(5):
        while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
    await socket.close()


RUBBISH = {
    "no JSON": "{",
    "no object": "[]",
    "an unknown type": '{"type": "quit"}',
    "a message without its fields": '{"type": "hello"}',
    "another message": messages.dumps(Bye("w-1")),
}


@pytest.mark.parametrize("text", RUBBISH.values(), ids=RUBBISH)
async def test_without_a_hello_the_link_is_closed(control, text):
    socket = await connected(control)
    await socket.send_str(text)
    await closed(socket)
    assert control.service.hub.peers == ()


async def test_rubbish_after_the_hello_closes_too(control, worker):
    await worker.socket.send_str('{"type": "quit"}')
    await worker.until(lambda: worker.socket.closed)
    assert control.service.hub.peers[0].outlet is None


async def test_a_proxy_may_not_say_what_only_we_say(control, worker):
    await worker.say(Renewed(1.0, "e", 99, 10_000))
    await worker.until(lambda: worker.socket.closed)


async def test_silence_instead_of_a_hello_is_not_waited_for(control, monkeypatch):
    monkeypatch.setattr(module, "HELLO_WITHIN_S", 0.05)
    await closed(await connected(control))


async def test_only_a_proxys_key_opens_the_link(control):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await control.session.ws_connect(
            control.url + "/v1/proxies/connect",
            headers={"Authorization": f"Bearer {control.admin_key}"},
        )
    assert refused.value.status == 403


async def test_a_key_with_the_role_proxy_opens_it(control):
    key = await control.key("edge", "proxy")
    socket = await control.session.ws_connect(
        control.url + "/v1/proxies/connect", headers={"Authorization": f"Bearer {key}"}
    )
    await socket.send_str(messages.dumps(Worker(control).hello))
    assert messages.loads((await socket.receive()).data).epoch
    await socket.close()


class Stuck:
    """A socket whose peer reads nothing."""

    def __init__(self):
        self.closed = self.aborted = False
        self.sent = []

    async def send_str(self, text):
        self.sent.append(text)
        await asyncio.sleep(60)

    async def close(self, **_):
        self.closed = True

    def get_extra_info(self, _name):
        return self

    def abort(self):
        self.aborted = True


async def test_a_socket_that_takes_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "SEND_WITHIN_S", 0.05)
    socket = Stuck()
    link = Link(socket)
    link.send("one")
    await link.deliver()
    assert socket.aborted


async def test_a_queue_that_grows_too_long_is_closed(monkeypatch):
    monkeypatch.setattr(module, "QUEUE_LIMIT", 3)
    monkeypatch.setattr(module, "SEND_WITHIN_S", 0.05)
    socket = Stuck()
    link = Link(socket)
    for number in range(10):
        link.send(str(number))
    await link.deliver()
    assert socket.aborted
    assert socket.sent == ["0"]
