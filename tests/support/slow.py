"""Peers that read slowly into a small receive buffer, as bytes, and know what their kernel has taken."""

from __future__ import annotations

import asyncio
import socket
import ssl

from support.recorder import readable
from support.streams import Caller
from support.world import basic

RECEIVE_BUFFER = 16 * 1024
PIECE, EVERY_S = 3277, 0.05
"64 KB a second."


class SlowReader:
    """A socket that is read slowly. TLS is only shaken hands for: what comes then is counted, not read."""

    def __init__(self) -> None:
        self.read = 0
        "Bytes read from the socket, TLS and all."
        self.ended = asyncio.Event()
        self.piece, self.every_s = PIECE, EVERY_S
        self.paused = False
        self.sock: socket.socket | None = None

    def arrived(self) -> int:
        """Bytes that have reached this host for it, read or not."""
        if self.sock is None:
            return 0
        return self.read + readable(self.sock.fileno())

    async def has_read(self, size: int) -> None:
        """Return when it has read so much."""
        async with asyncio.timeout(20):
            while self.read < size:
                await asyncio.sleep(0.01)

    async def rest(self) -> int:
        """Read what is left until the end; how much it was in all."""
        self.piece, self.every_s, self.paused = 65536, 0, False
        await asyncio.wait_for(self.ended.wait(), 10)
        return self.read

    async def read_slowly(self) -> None:
        """Until it ends."""
        while not self.ended.is_set():
            await asyncio.sleep(self.every_s)
            if not self.paused:
                self.receive(self.piece)

    def receive(self, size: int) -> bytes:
        """What is there. Nothing lies between the kernel's queue and `read`: it is one step."""
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return b""
        except ConnectionError:
            data = b""
        self.read += len(data)
        if not data:
            self.ended.set()
        return data

    async def shake_hands(self, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """Do the handshake and leave TLS's state as it is: what is sent next goes through `send`."""
        loop = asyncio.get_running_loop()
        ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(
            ours, theirs, server_side=server_name is None, server_hostname=server_name
        )
        while not self.ended.is_set():
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            finally:
                await loop.sock_sendall(self.sock, theirs.read())
            await asyncio.sleep(0.001)
            ours.write(self.receive(4096))
        self._tls, self._out = tls, theirs

    async def send(self, data: bytes, *, inside_tls: bool) -> None:
        """Send something, through TLS if hands have been shaken."""
        if inside_tls:
            self._tls.write(data)
            data = self._out.read()
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


class SlowOrigin(SlowReader):
    """Takes one connection and reads from it slowly."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._context = context

    async def __aenter__(self) -> SlowOrigin:
        self._listener = _small_socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(5)
        self.port = self._listener.getsockname()[1]
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="slow origin")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()
        if self.sock is not None:
            self.sock.close()

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def receive_buffer(self) -> int:
        """The most that the kernel holds for it."""
        return self._listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    async def _serve(self) -> None:
        self.sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        if self._context is not None:
            await self.shake_hands(self._context)
        await self.read_slowly()


class SlowClient(SlowReader):
    """Asks for something through the proxy and reads it slowly."""

    def __init__(self, caller: Caller, request: bytes) -> None:
        super().__init__()
        self._caller, self._request = caller, request

    async def __aenter__(self) -> SlowClient:
        loop = asyncio.get_running_loop()
        caller = self._caller
        self.sock = _small_socket()
        await loop.sock_connect(self.sock, ("127.0.0.1", caller.port))
        self.port = self.sock.getsockname()[1]
        credentials = f"Proxy-Authorization: {basic(caller.label, caller.secret)}"
        connect = f"CONNECT {caller.host} HTTP/1.1\r\n{credentials}\r\n\r\n"
        await self.send(connect.encode(), inside_tls=False)
        async with asyncio.timeout(10):
            while not self.receive(4096).endswith(b"\r\n\r\n"):
                await asyncio.sleep(0.001)
        self.read = 0
        secure = caller.way.scheme == "https"
        if secure:
            trust = ssl.create_default_context(cafile=str(caller.trusted))
            await self.shake_hands(trust, caller.host.partition(":")[0])
        await self.send(self._request, inside_tls=secure)
        self._task = loop.create_task(self.read_slowly(), name="slow client")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.sock.close()


def _small_socket() -> socket.socket:
    # Before it connects or listens: the window that a connection offers is settled by its handshake.
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setblocking(False)
    return sock
