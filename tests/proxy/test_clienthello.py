"""What a tunnel's client says first: real ClientHellos pass however they come, and no other host's name does."""

import contextlib
import ssl

import pytest
from haltwire.wire.refusals import Refusal
from haltwire_proxy.clienthello import MAX_HELD_BYTES, NESTED_CONNECT, Greeting, server_name
from hypothesis import example, given
from hypothesis import strategies as st
from support.hello import client_context, extension, message, names, real_hello, records

HOST = "a.test"
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
SERVER_HELLO = records(b"\2\0\0\x28\3\3" + b"R" * 32 + b"\0\x13\1\0\0\0")
RETRY_REQUEST = records(b"\2\0\0\x28\3\3" + RETRY + b"\0\x13\1\0\0\0")
CHANGE_CIPHER_SPEC = bytes((20, 3, 3, 0, 1, 1))


def taken(*pieces, host=HOST):
    """What one greeting lets up of these pieces, what it still holds, and its refusal."""
    greeting, passed = Greeting(host), b""
    for piece in pieces:
        judged = greeting.take(piece)
        if isinstance(judged, Refusal):
            return passed, greeting.held, judged
        passed += judged
    return passed, greeting.held, None


def one_by_one(data):
    return [data[i : i + 1] for i in range(len(data))]


GREASE = extension(0x0A0A, b"") + extension(0x1A1A, b"\0")
ECH = extension(0xFE0D, b"\0\0\1\0\1\x2a\0\x20" + b"k" * 32 + b"\0\x10" + b"c" * 16)
PRE_SHARED_KEY = extension(41, b"\0\x0a\0\4abcd\0\0\0\0\0\x21\x20" + b"b" * 32)
PASSED = {
    "a name": message(names(b"a.test")),
    "a name in capitals": message(names(b"A.Test")),
    "a name with a final dot": message(names(b"a.test.")),
    "no name": message(extension(43, b"\2\3\4")),
    "no extensions": message(),
    "no extensions but their length": message(b""),
    "GREASE before and behind": message(extension(0x2A2A, b""), names(b"a.test"), GREASE),
    "encrypted ClientHello, or what looks like it": message(names(b"a.test"), ECH),
    "a pre-shared key": message(names(b"a.test"), PRE_SHARED_KEY),
    "SSL 3.0 outside": message(names(b"a.test"), version=b"\3\1"),
    "padding": message(names(b"a.test"), extension(21, b"\0" * 5000)),
    "as large as they may be": message(names(b"a.test"), extension(21, b"\0" * 60_000)),
}


@pytest.mark.parametrize("name", PASSED)
@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1, 1, 1), (4, 39)], ids=str)
def test_passed_in_one_piece_or_many(name, sizes):
    content = PASSED[name]
    rest = content[sum(sizes) :]
    sizes = (*sizes, *(16_384 for _ in range(len(rest) // 16_384)))
    data = records(content, *sizes)
    assert taken(data) == (data, b"", None)
    assert taken(*one_by_one(data)) == (data, b"", None)
    assert taken(data[:-1]) == (b"", data[:-1], None), "held back until it is whole"


OTHER = {
    "another name": message(names(b"b.test")),
    "a name within ours": message(names(b"test")),
    "ours within a name": message(names(b"a.test.b.test")),
    "a NUL behind ours": message(names(b"a.test\0.b.test")),
    "a NUL alone behind ours": message(names(b"a.test\0")),
    "two final dots": message(names(b"a.test..")),
    "blanks": message(names(b" a.test")),
    "fullwidth letters": message(names("\uff41.test".encode())),
    "latin letters": message(names(b"\xe0.test")),
    "a port": message(names(b"a.test:443")),
    "a userinfo": message(names(b"b@a.test")),
    "an address": message(names(b"127.0.0.1")),
    "behind GREASE": message(GREASE, names(b"b.test"), ECH),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_name_closes(name):
    data = records(OTHER[name])
    for pieces in ([data], one_by_one(data), [records(OTHER[name], 1, 2, 3)]):
        passed, _, refusal = taken(*pieces)
        assert passed == b""
        assert (refusal.code, "another host" in refusal.message) == ("authority_mismatch", True)


TWO = names(b"a.test")[4:]
MALFORMED = {
    "two names": records(message(names(b"a.test", b"b.test"))),
    "a name twice": records(message(names(b"a.test", b"a.test"))),
    "the extension twice": records(message(names(b"a.test"), names(b"b.test"))),
    "any extension twice": records(message(names(b"a.test"), extension(43, b"1"), extension(43, b""))),
    "an empty name": records(message(names(b""))),
    "an empty list": records(message(extension(0, b"\0\0"))),
    "an empty extension": records(message(extension(0, b""))),
    "a name of another type": records(message(names(b"a.test", kind=1))),
    "bytes behind the name": records(message(extension(0, names(b"a.test")[4:] + b"x"))),
    "bytes behind the hello": records(message(names(b"a.test"), more=b"\0")),
    "a hello behind the hello": records(
        message(names(b"a.test"), more=message(names(b"b.test")))
    ),
    "another version of TLS": records(message(names(b"a.test"), version=b"\2\3")),
    "another message": records(b"\2" + message(names(b"a.test"))[1:]),
    "half an extension": records(message(b"\0\0\0")),
    "an extension beyond the end": records(message(b"\0\0\0\xff")),
    "a record without content": records(b"") + bytes((22, 3, 1, 0, 0)) + b"\1",
    "a record without content between": records(message(names(b"a.test")), 4)[:9]
    + bytes((22, 3, 1, 0, 0, 22)),
    "a warning within": records(message(names(b"a.test")), 4)[:9] + bytes((21, 3, 1, 0, 2, 1, 0)),
    "a record above 2^14": bytes((22, 3, 1, 0x40, 1)) + b"\1",
    "a record of another version": records(message(names(b"a.test")), version=b"\1\1"),
    "a warning before": bytes((21, 3, 1, 0, 2, 1, 0)) + records(message(names(b"b.test"))),
    "a warning of another version before": bytes((21, 1, 1, 0, 2, 1, 0)),
    "a change of ciphers before": CHANGE_CIPHER_SPEC + records(message(names(b"b.test"))),
    "more than is held": records(
        message(names(b"a.test"), extension(21, b"\0" * 65_000)), *[100] * 650
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_could_be_read_in_two_ways_closes(name):
    data = MALFORMED[name]
    for pieces in ([data], one_by_one(data)):
        passed, held, refusal = taken(*pieces)
        assert passed == b""
        assert refusal is not None, held
        assert refusal.code == "malformed_request"
        assert len(held) <= MAX_HELD_BYTES


OTHER_PROTOCOLS = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "a method like CONNECT": b"CONN",
    "SMTP": b"EHLO a\r\n",
    "SSH": b"SSH-2.0-x\r\n",
    "PostgreSQL": b"\0\0\0\x08\x04\xd2\x16\x2f",
    "MongoDB, 22 bytes long": b"\x16\0\0\0\7\0\0\0\0\0\0\0\xdd\7\0\0",
    "MongoDB, 277 bytes long": b"\x15\1\0\0\2\0\0\0\0\0\0\0\xdd\7\0\0",
    "SSL 2.0, which names nobody": b"\x80\x2e\1\0\2",
    "NUL": b"\0",
}


@pytest.mark.parametrize("name", OTHER_PROTOCOLS)
def test_what_is_not_tls_flows(name):
    data = OTHER_PROTOCOLS[name]
    if name == "a method like CONNECT":
        data += b"X"
    later = records(message(names(b"b.test")))  # STARTTLS or noise: it is theirs
    assert taken(data, later) == (data + later, b"", None)
    assert taken(*one_by_one(data)) == (data, b"", None)


def test_a_connect_within_is_refused_however_it_comes():
    for pieces in ([b"CONNECT b.test:443 HTTP/1.1\r\n"], one_by_one(b"CONNECT b")):
        assert taken(*pieces)[2] is NESTED_CONNECT


def test_a_server_that_speaks_first_is_no_tls_server():
    """MySQL's and others' greetings come first; then any first byte of the client's is theirs."""
    greeting = Greeting(HOST)
    greeting.answer(b"J\0\0\0\n8.0")
    assert greeting.done
    assert greeting.take(b"\x16\3\0\1" + b"x" * 500) == b"\x16\3\0\1" + b"x" * 500


def test_a_server_that_speaks_into_a_hello_lets_nothing_pass():
    greeting, data = Greeting(HOST), records(message(names(b"b.test")))
    greeting.take(data[:20])
    greeting.answer(b"220 hello")
    assert not greeting.done
    assert greeting.take(data[20:]).code == "authority_mismatch"


def test_an_address_as_the_host():
    """Whoever connects to an address and names a host has had another destination judged than he uses."""
    assert taken(real_hello(None), host="127.0.0.1")[2] is None
    assert taken(records(message(names(b"127.0.0.1"))), host="127.0.0.1")[2] is None
    assert taken(records(message(names(b"::1"))), host="::1")[2] is None
    assert taken(real_hello("a.test"), host="127.0.0.1")[2].code == "authority_mismatch"


def retried(second, *, early=b"", reply=RETRY_REQUEST):
    """The second flight after a HelloRetryRequest, byte by byte: what passed, what is held, the refusal."""
    greeting, first = Greeting(HOST), records(message(names(b"a.test")))
    passed = greeting.take(first + early[:7])
    passed += greeting.take(early[7:]) if early[7:] else b""
    for piece in one_by_one(reply):
        greeting.answer(piece)
    later = b""
    for piece in one_by_one(second):
        judged = greeting.take(piece)
        if isinstance(judged, Refusal):
            return later, greeting.held, judged
        later += judged
    assert passed.startswith(first)
    return later, greeting.held, None


EARLY = records(b"e" * 300, kind=23)
WARNED = bytes((21, 3, 3, 0, 2, 1, 112)) + RETRY_REQUEST


@pytest.mark.parametrize("reply", [RETRY_REQUEST, WARNED], ids=["plain", "with a warning before"])
@pytest.mark.parametrize("early", [b"", EARLY, EARLY * 2], ids=["", "0-RTT", "more 0-RTT"])
@pytest.mark.parametrize("before", [b"", CHANGE_CIPHER_SPEC], ids=["", "change of ciphers"])
def test_the_hello_after_a_retry_request_is_judged_too(before, early, reply):
    """It is in plain text, and OpenSSL follows the name in it (seen with 3.0: the callback is asked twice)."""
    good, bad = (records(message(names(n))) for n in (b"a.test", b"b.test"))
    assert retried(before + good, early=early, reply=reply) == (before + good, b"", None)
    later, _, refusal = retried(before + bad, early=early, reply=reply)
    assert later == before
    assert refusal.code == "authority_mismatch"


def test_an_empty_record_does_not_hide_the_hello_after_a_retry_request():
    """OpenSSL skips them."""
    bad = bytes((22, 3, 3, 0, 0)) + records(message(names(b"b.test")))
    assert retried(bad)[2].code == "malformed_request"


@pytest.mark.parametrize("reply", [SERVER_HELLO, bytes((21, 3, 3, 0, 2, 2, 40)), b"HTTP/1.1 400"])
def test_after_any_other_answer_nothing_is_looked_at(reply):
    greeting = Greeting(HOST)
    first = records(message(names(b"a.test")))
    assert greeting.take(first) == first
    assert not greeting.done
    greeting.answer(reply + b"x" * 7)
    assert greeting.done
    assert greeting.take(b"anything") == b"anything"


def test_tls_12_goes_on_without_an_answer():
    """A client's key exchange ends it: no ClientHello follows one in plain text."""
    greeting, first = Greeting(HOST), records(message(names(b"a.test")))
    finished = records(b"\x10\0\0\1k")
    assert greeting.take(first + finished + b"rest") == first + finished + b"rest"
    assert greeting.done


def test_half_a_record_is_let_go_when_the_answer_is_no_retry_request():
    greeting, first = Greeting(HOST), records(message(names(b"a.test")))
    assert greeting.take(first + b"\x16\3") == first
    greeting.answer(SERVER_HELLO)
    assert (greeting.done, greeting.held) == (True, b"\x16\3")
    assert greeting.take(b"") == b"\x16\3"


REAL = [
    real_hello(HOST),
    real_hello(HOST, alpn=("h2", "http/1.1")),
    real_hello(HOST, tls12=True),
    real_hello(HOST, tls12=True, ciphers="ECDHE-RSA-AES128-GCM-SHA256"),
    real_hello(None),
]


@given(st.sampled_from(REAL), st.lists(st.integers(1, 600), max_size=30), st.data())
def test_a_real_hello_passes_whole_however_it_is_cut(hello, cuts, data):
    """In records and in pieces of the stream; nothing of it goes before all of it is there."""
    content = hello[5:]
    sizes, left = [], len(content)
    for cut in cuts:
        if cut < left:
            sizes.append(cut)
            left -= cut
    framed = records(content, *sizes)
    rest = framed
    greeting, passed = Greeting(HOST), b""
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        judged = greeting.take(rest[:size])
        assert isinstance(judged, bytes)
        rest = rest[size:]
        assert not judged or not rest
        passed += judged
    assert passed == framed


@given(st.binary(min_size=1, max_size=400), st.integers(1, 50))
@example(b"\x16\3\1\0\1\1", 1)
@example(b"\x16\3\1\0\4\1\0\0\0", 1)
def test_whatever_comes_it_never_raises_and_loses_nothing(data, size):
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    passed, held, refusal = taken(*pieces)
    assert refusal is not None or passed + held == data


@given(
    st.sampled_from([real_hello("evil.test"), real_hello("evil.test", tls12=True)]),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4),
    st.integers(1, 300),
)
def test_damaged_or_not_a_hello_with_another_name_never_passes(hello, damage, size):
    """Whatever passes has either no name left that reads as one, or is none to OpenSSL either."""
    damaged = bytearray(hello)
    for at, byte in damage:
        damaged[at % len(damaged)] = byte
    data = bytes(damaged)
    passed, _, _ = taken(*[data[i : i + size] for i in range(0, len(data), size)])
    if passed:
        assert name_that_openssl_reads(passed) != "evil.test"


def name_that_openssl_reads(data):
    """What a server is asked for, or None when it takes no name out of it."""
    asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _, name, __: asked.append(name)
    incoming = ssl.MemoryBIO()
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError):
        server.do_handshake()
    return asked[0] if asked else None


NAMES = st.text(st.characters(min_codepoint=0, max_codepoint=255), min_size=1, max_size=20)


@given(NAMES, st.booleans())
@example("a.test.", False)
@example("A.TEST", True)
@example("a.test\0b.test", False)
def test_only_our_host_in_its_spellings_passes(name, grease):
    """Every name that passes is ours in another case or with a final dot."""
    extensions = [names(name.encode("latin-1"))]
    if grease:
        extensions.insert(0, GREASE)
    passed, _, _ = taken(records(message(*extensions)))
    assert bool(passed) == (name.lower().removesuffix(".") == HOST)


def test_openssl_is_read_as_openssl_reads_itself():
    assert server_name(real_hello(HOST)[5:]) == HOST == name_that_openssl_reads(real_hello(HOST))
    assert server_name(real_hello(None)[5:]) is None


def test_a_real_retry_request_is_seen(authority):
    """Between OpenSSL's client and its server: the second hello goes through, or with another name does not."""
    server_context = authority.server_context(HOST)
    server_context.set_ecdh_curve("secp384r1")
    boxes = [ssl.MemoryBIO() for _ in range(4)]
    client = client_context().wrap_bio(boxes[0], boxes[1], server_hostname=HOST)
    server = server_context.wrap_bio(boxes[2], boxes[3], server_side=True)

    def step(side, outgoing):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
        return outgoing.read()

    greeting = Greeting(HOST)
    first = step(client, boxes[1])
    assert greeting.take(first) == first
    boxes[2].write(first)
    reply = step(server, boxes[3])
    greeting.answer(reply)
    assert not greeting.done
    boxes[0].write(reply)
    second = step(client, boxes[1])
    other = Greeting(HOST)
    other.take(first)
    other.answer(reply)
    assert greeting.take(second) == second
    assert other.take(second.replace(b"a.test", b"b.test")).code == "authority_mismatch"
