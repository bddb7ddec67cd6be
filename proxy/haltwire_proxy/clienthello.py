"""What the client of a tunnel says first: kept back until it is known that it names no other host than CONNECT did.

Only plain text is judged. A ClientHello that several readers could read differently is malformed, and
one without a name is for whatever is there. What is inside TLS, an encrypted ClientHello included, nobody sees here.
"""

from __future__ import annotations

from haltwire.wire.refusals import Refusal

from haltwire_proxy.destinations import canonical_host

MAX_HELD_BYTES = 64 * 1024
"Most are below 2 KB, with post-quantum keys and all; OpenSSL takes no more than 128 KB."
_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE = 20, 21, 22
_ANSWERS = (b"", bytes((_ALERT,)), bytes((_HANDSHAKE,)))
_CLIENT_HELLO = 1
_MAX_RECORD = 1 << 14
_CONNECT = b"CONNECT "
# RFC 8446 4.1.3: this "random" makes a ServerHello a HelloRetryRequest.
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_MAX_REPLY = 256
_RETRY_AT = 11  # behind the headers of the record and of the message, and the version
UNRECOGNIZED_NAME = bytes((_ALERT, 3, 1, 0, 2, 2, 112))
"The TLS alert for a name that is not served here (RFC 6066): what a client then shows is the truth."
DECODE_ERROR = bytes((_ALERT, 3, 1, 0, 2, 2, 50))


class Greeting:
    """The first bytes of one tunnel, until there is nothing in them to judge any more.

    A first byte that TLS never begins with lets everything pass, and so does a server that speaks first
    (SMTP, MySQL). A TLS server that wants another ClientHello gets it in plain text, and may follow a
    name in that one: it is judged too. OpenSSL's 517 bytes in one record cost 9 us.
    """

    __slots__ = ("_ahead", "_body", "_hello", "_host", "_reply", "done", "held")

    def __init__(self, host: str) -> None:
        self._host = host
        self.done = False
        "Whether nothing more has to be asked."
        self.held = b""
        "What has been read and may not be passed on yet."
        self._hello = False
        "Whether a ClientHello has been passed on."
        self._ahead = 0
        "How far ahead of the start of `held` the next record begins."
        self._body = bytearray()
        "The part of a ClientHello that is in the records judged so far."
        self._reply = b""

    def take(self, data: bytes) -> bytes | Refusal:
        """What may go up now, which may be nothing yet; or why nothing may ever again."""
        held = self.held + data if self.held else data
        if not self.done and not self._hello:
            kind = record_kind(held)
            if isinstance(kind, Refusal):
                return kind
            if kind is None:
                self.held = held
                return b""
            self.done = kind != _HANDSHAKE
        if self.done:
            self.held = b""
            return held
        try:
            passed = self._walk(held)
        except ValueError as error:
            return Refusal("malformed_request", f"The TLS handshake is malformed: {error}.")
        if isinstance(passed, Refusal):
            return passed
        self.held = held[passed:]
        return held[:passed]

    def answer(self, data: bytes) -> None:
        """The upstream has sent this: whoever speaks first, or has chosen, asks for no other ClientHello."""
        if not self._hello:
            self.done = self.done or not self.held
            return
        reply = self._reply + data[:_MAX_REPLY]
        while len(reply) > 6 and reply[0] == _ALERT:  # older servers warn before they answer
            reply = reply[7:]
        self._reply = reply[: _RETRY_AT + len(_RETRY)]
        # While it could still become a retry, or is one, the client's next records are looked at.
        self.done = reply[:1] not in _ANSWERS or not _RETRY.startswith(self._reply[_RETRY_AT:])

    def _walk(self, held: bytes) -> int | Refusal:
        """How many bytes of it may go up, judged record by record."""
        size, body = len(held), self._body
        at = self._ahead
        passed = 0 if body else min(at, size)
        while size - at >= 6:
            kind, length = held[at], held[at + 3] << 8 | held[at + 4]
            if self._hello and not body:
                if kind != _HANDSHAKE:  # early data and the like, which a retry may follow
                    at += 5 + length
                    passed = min(at, size)
                    continue
                if length and held[at + 5] != _CLIENT_HELLO:
                    self.done = True
                    return size
            end = at + 5 + length
            if kind != _HANDSHAKE or held[at + 1] != 3 or not 0 < length <= _MAX_RECORD:
                raise ValueError("a record that has no place in a ClientHello")
            if end - passed > MAX_HELD_BYTES:
                raise ValueError("a ClientHello of more than 64 KB")
            if end > size:
                break
            body += held[at + 5 : end]
            at = end
            if body[0] != _CLIENT_HELLO:
                raise ValueError("no ClientHello")
            if len(body) < 4 or len(body) < 4 + int.from_bytes(body[1:4]):
                continue
            name = server_name(bytes(body))
            if name is not None and name != self._host and not _is_same(name, self._host):
                return _ANOTHER
            body.clear()
            self._hello = True
            passed = at
        self._ahead = at - passed
        return passed


def server_name(hello: bytes) -> str | None:
    """The name that a whole ClientHello message is for, or None; ValueError when it is not read in one way only."""
    if hello[0] != _CLIENT_HELLO or int.from_bytes(hello[1:4]) != len(hello) - 4:
        raise ValueError("more than a ClientHello")
    if hello[4:5] != b"\3":
        raise ValueError("an unknown version")
    # Behind type, length, version and random: the session.
    at = _after_vector(hello, 38, 1, most=32)
    at = _after_vector(hello, at, 2, least=2)  # cipher suites
    at = _after_vector(hello, at, 1, least=1)  # compression methods
    if at == len(hello):
        return None
    if _after_vector(hello, at, 2) != len(hello):
        raise ValueError("extensions of another length")
    at += 2
    kinds, name, size = [], None, len(hello)
    while at < size:
        if at + 4 > size:
            raise ValueError("half an extension")
        kind, end = hello[at : at + 2], at + 4 + (hello[at + 2] << 8 | hello[at + 3])
        if end > size:
            raise ValueError("an extension longer than all")
        kinds.append(kind)
        if kind == b"\0\0":
            name = _name_in(hello[at + 4 : end])
        at = end
    if len(set(kinds)) != len(kinds):
        raise ValueError("an extension is given twice")
    return name


def record_kind(start: bytes) -> int | Refusal | None:
    """The type of the TLS record that these bytes begin, 0 when it is none, None when more must be seen."""
    first = start[0]
    if first == _CONNECT[0]:
        if _CONNECT.startswith(start[: len(_CONNECT)]):
            return NESTED_CONNECT if len(start) >= len(_CONNECT) else None
        return 0
    if first not in (_HANDSHAKE, _ALERT, _CHANGE_CIPHER_SPEC):
        return 0
    if first == _HANDSHAKE and start[1:2] == b"\3":
        return _HANDSHAKE
    if len(start) < 6:
        return None
    # Go takes a ClientHello in a record of any version below 0x1000; of a binary protocol whose first
    # byte this happens to be (MongoDB's messages begin with their length), the sixth byte hardly is 1.
    if first == _HANDSHAKE:
        return _HANDSHAKE if start[5] == _CLIENT_HELLO else 0
    # Go's TLS skips warnings before the ClientHello, which would hide it from us.
    if start[3:5] == (b"\0\2" if first == _ALERT else b"\0\1") and start[5] == 1:
        return Refusal("malformed_request", "The TLS handshake does not begin with a ClientHello.")
    return 0


def _name_in(extension: bytes) -> str:
    if extension[2:3] != b"\0" or _after_vector(extension, 0, 2) != len(extension):
        raise ValueError("a server_name extension that is none")
    if _after_vector(extension, 3, 2, least=1) != len(extension):
        raise ValueError("more than one server name")
    return extension[5:].decode("latin-1")


def _after_vector(data: bytes, at: int, width: int, *, least: int = 0, most: int = 0xFFFF) -> int:
    """The position behind a vector with a length of so many bytes."""
    start = at + width
    length = int.from_bytes(data[at:start])
    if start > len(data) or start + length > len(data) or not least <= length <= most:
        raise ValueError("a length that does not fit")
    return start + length


def _is_same(name: str, host: str) -> bool:
    try:
        return canonical_host(name) == host
    except ValueError:
        return False


_ANOTHER = Refusal("authority_mismatch", "The TLS handshake names another host than CONNECT did.")
NESTED_CONNECT = Refusal("malformed_request", "A CONNECT inside this connection is not possible.")
