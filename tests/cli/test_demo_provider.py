"""The provider keeps true books: read over real TLS, by clients that stop, vanish and come again."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from contextlib import closing, contextmanager

import pytest
from haltwire_cli.demo_authority import make_authority
from haltwire_cli.demo_provider import MailProvider, instance_of

SOON_S = 5.0
LARGE = b'{"message": "i-1/7", "attachment": "' + b"x" * 1_500_000 + b'"}'


@pytest.fixture
def authority(tmp_path):
    return make_authority(tmp_path)


@pytest.fixture
def provider(authority):
    with closing(MailProvider(authority.certificate_file)) as provider:
        provider.start()
        yield provider


@pytest.fixture
def client(provider, authority):
    """Opens TLS connections to the provider."""
    context = ssl.create_default_context(cafile=authority.ca_file)
    port = int(provider.url.rpartition(":")[2].partition("/")[0])

    @contextmanager
    def connect():
        with (
            socket.create_connection(("127.0.0.1", port), SOON_S) as bare,
            context.wrap_socket(bare, server_hostname="localhost") as tls,
        ):
            yield tls

    return connect


def post(key: str, body: bytes) -> bytes:
    head = f"POST /send HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def message(name: str) -> bytes:
    return json.dumps({"message": name}).encode()


def answer(tls) -> bytes:
    """One answer, head and body."""
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"}"):
        data = tls.recv(4096)
        assert data, f"closed after {received!r}"
        received += data
    return received


def reset(tls) -> None:
    """Close with a RST, as a cut does."""
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=tls.detach()).close()


def test_a_message_is_accepted_and_counted_to_its_sender(provider, client):
    with client() as tls:
        tls.sendall(post("i-1-000001", message("i-1/1")))
        assert answer(tls).startswith(b"HTTP/1.1 202")
        tls.sendall(post("i-1-000002", message("i-1/2")))
        assert b'{"accepted": "i-1/2"}' in answer(tls)
    books = provider.books()
    assert books.accepted == {"i-1": 2}
    assert books.total == 2
    assert books.deliveries == {"i-1/1": 1, "i-1/2": 1}
    assert books.connections == 1


def test_the_same_key_is_answered_again_but_accepted_once(provider, client):
    for _ in range(2):
        with client() as tls:
            tls.sendall(post("i-1-000001", message("i-1/1")))
            assert b'{"accepted": "i-1/1"}' in answer(tls)
    assert provider.books().deliveries == {"i-1/1": 1}


def test_a_second_key_for_the_same_message_is_a_double(provider, client):
    with client() as tls:
        for key in ("i-1-000001", "i-1-000002"):
            tls.sendall(post(key, message("i-1/1")))
            answer(tls)
    assert provider.books().deliveries == {"i-1/1": 2}


def test_every_byte_that_comes_is_counted(provider, client):
    with client() as tls:
        before = provider.books().bytes_read
        assert before > 0  # the handshake
        whole = post("i-1-000001", message("i-1/1"))
        tls.sendall(whole)
        answer(tls)
        assert provider.books().bytes_read >= before + len(whole)


def test_half_a_small_message_is_nothing(provider, client):
    with client() as tls:
        tls.sendall(post("i-1-000001", message("i-1/1"))[:-5])
        reset(tls)
    with client() as tls:
        tls.sendall(post("i-1-000002", message("i-1/2")))
        answer(tls)
    assert provider.books().deliveries == {"i-1/2": 1}


def send_large(tls) -> None:
    """As much of a large message as the provider takes."""
    tls.settimeout(0.2)
    with pytest.raises(TimeoutError):
        tls.sendall(post("i-1-000007", LARGE) + bytes(8_000_000))


def test_a_large_message_is_read_half_and_no_further(provider, client):
    with client() as tls:
        send_large(tls)
        assert provider.wait_for(lambda books: bool(books.half_read), SOON_S)
        (half,) = provider.books().half_read
        assert (half.instance, half.key) == ("i-1", "i-1-000007")
        assert (half.read, half.expected) == (len(LARGE) // 2, len(LARGE))
        assert provider.books().bytes_read < len(LARGE) // 2 + 100_000
        reset(tls)


def test_a_half_read_message_that_is_cut_is_read_no_further_even_when_told_to(provider, client):
    """What lay in the provider's kernel at the cut must not look like something that came after it."""
    with client() as tls:
        send_large(tls)
        assert provider.wait_for(lambda books: bool(books.half_read), SOON_S)
        before = provider.books()
        reset(tls)
    assert provider.wait_for(lambda books: not books.half_read, SOON_S)
    provider.read_on()
    after = provider.books()
    assert after.bytes_read == before.bytes_read
    assert not after.deliveries


def test_a_half_read_message_that_is_not_cut_is_read_to_its_end(provider, client):
    """Otherwise the silence after a kill would prove nothing."""
    with client() as tls:
        sender = threading.Thread(target=tls.sendall, args=(post("i-1-000007", LARGE),))
        sender.start()
        assert provider.wait_for(lambda books: bool(books.half_read), SOON_S)
        provider.read_on()
        sender.join(SOON_S)
        assert b'{"accepted": "i-1/7"}' in answer(tls)
    assert provider.books().deliveries == {"i-1/7": 1}


@pytest.mark.parametrize(
    "head",
    [
        b"POST /send HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /other HTTP/1.1\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /send HTTP/1.1\r\n\r\n",
    ],
    ids=["no key", "no such place", "no message"],
)
def test_anything_else_is_refused_and_not_booked(provider, client, head):
    with client() as tls:
        tls.sendall(head)
        assert tls.recv(4096).split(b" ")[1] in (b"400", b"501")
    assert not provider.books().deliveries


def test_waiting_ends_in_time(provider):
    assert not provider.wait_for(lambda books: books.total > 0, 0.01)


def test_closing_ends_its_connections(authority):
    provider = MailProvider(authority.certificate_file)
    provider.start()
    port = int(provider.url.rpartition(":")[2].partition("/")[0])
    context = ssl.create_default_context(cafile=authority.ca_file)
    with (
        socket.create_connection(("127.0.0.1", port), SOON_S) as bare,
        context.wrap_socket(bare, server_hostname="localhost") as tls,
    ):
        tls.sendall(post("i-1-000001", message("i-1/1")))
        answer(tls)
        provider.close()
        assert tls.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), SOON_S)


def test_one_that_was_never_started_can_be_closed(authority):
    MailProvider(authority.certificate_file).close()


@pytest.mark.parametrize("name", ["i-1/7", "i-1-000007"])
def test_messages_and_keys_name_their_sender(name):
    assert instance_of(name) == "i-1"
