"""Why there is no link: each reason in its own words, once, and with nothing secret in it."""

import asyncio
import ssl

import aiohttp
import pytest
from aiohttp import web
from haltwire_proxy.trouble import REMIND_S, Trouble, sentence_of
from support.authority import TestAuthority

KEY = "hwk_" + "k" * 43


async def attempt(url: str, context: ssl.SSLContext | bool = True) -> BaseException:
    """What an attempt to connect fails with."""
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            headers = {"Authorization": f"Bearer {KEY}"}
            async with session.ws_connect(url + "/v1/proxies/connect", headers=headers):
                raise AssertionError("connected")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return error


async def said(url: str, context: ssl.SSLContext | bool = True) -> str:
    sentence = sentence_of(url, await attempt(url, context))
    assert KEY not in sentence
    assert "Errno" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not know this proxy's key: make one there with `haltwire key create"),
        (403, "does not let this key connect a proxy"),
        (429, "too many wrong keys"),
        (404, "is no control server of haltwire: it answered 404"),
        (200, "is no control server of haltwire: it answered 200"),
        (502, "fails: it answered 502"),
    ],
)
async def test_an_answer_is_told_apart_from_silence(aiohttp_server, status, words):
    async def answer(_request):
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/v1/proxies/connect", answer)
    server = await aiohttp_server(app)
    url = f"http://127.0.0.1:{server.port}"
    sentence = await said(url)
    assert sentence.startswith(url)
    assert words in sentence


async def test_nobody_there_is_said_in_the_systems_words(unused_tcp_port):
    url = f"http://127.0.0.1:{unused_tcp_port}"
    assert await said(url) == f"nothing answers at {url} (Connection refused)"


async def test_a_name_that_is_none():
    assert (
        await said("http://nosuch.invalid:1")
        == "the name in http://nosuch.invalid:1 cannot be resolved"
    )


async def test_a_connection_that_is_closed_hints_at_tls(tmp_path):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert (await said(url)).endswith(
        "closed the connection without an answer; if it speaks TLS, write https://"
    )
    server.close()


async def test_tls_and_no_tls_are_told_apart(aiohttp_server):
    server = await aiohttp_server(web.Application())
    assert "does not speak TLS: write http://" in await said(f"https://127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [
        ("127.0.0.1", False, "nobody who is trusted here vouches for it"),
        ("elsewhere.example", True, "its certificate is for other names"),
    ],
)
async def test_one_that_does_not_prove_who_it_is_is_sent_nothing(
    aiohttp_server, tmp_path, name, trusted, words
):
    authority = TestAuthority(tmp_path)
    server = await aiohttp_server(web.Application(), ssl=authority.server_context(name))
    context = ssl.create_default_context(cafile=str(authority.ca_file) if trusted else None)
    sentence = await said(f"https://127.0.0.1:{server.port}", context)
    assert "does not prove who it is, so it was sent nothing" in sentence
    assert words in sentence


def test_a_timeout_and_what_nobody_thought_of():
    assert sentence_of("http://c", TimeoutError()) == "http://c does not answer in time"
    assert "(ValueError)" in sentence_of("http://c", ValueError("secret"))
    assert "secret" not in sentence_of("http://c", ValueError("secret"))


class Told:
    """A Trouble with a clock to set, and what it said."""

    def __init__(self) -> None:
        self.now, self.lines = 0.0, []
        self.trouble = Trouble(
            "http://c", lambda: self.now, lambda text, *a: self.lines.append(text % a)
        )


def test_a_reason_is_told_once_and_again_after_some_time():
    """It used to be told at every attempt, every two seconds, by every worker."""
    told = Told()
    for _ in range(100):
        told.trouble.failed(TimeoutError())
        told.now += 1.0
    assert told.lines == [
        "waiting for the control server, and without it nothing passes: http://c does not answer in time"
    ]
    told.trouble.failed(None)
    assert told.lines[1:] == ["the link to the control server has ended"]
    told.now = REMIND_S
    told.trouble.failed(TimeoutError())
    assert len(told.lines) == 3


def test_its_end_is_told_when_it_was_told():
    told = Told()
    told.trouble.over()
    assert told.lines == []
    told.trouble.failed(None)
    told.trouble.over()
    told.trouble.over()
    assert told.lines[1:] == ["the control server is there: traffic may pass"]
    told.trouble.failed(None)
    assert len(told.lines) == 3
