"""Why there is no link to the control server, said so that a person can act on it, and not at every attempt."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable

import aiohttp

log = logging.getLogger(__name__)
REMIND_S = 300.0
"How long a reason that has been told stays told."
_WAITING = "waiting for the control server, and without it nothing passes: %s"
_ENDED = "the link to the control server has ended"
_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = (62, 64)
"X509_V_ERR_*, as in `verify_code`."


class Trouble:
    """Tells each reason once, reminds of it, and says when it is over."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[..., None] = log.warning,
    ) -> None:
        self._url = url
        self._clock, self._tell = clock, tell
        self._told: dict[str, float] = {}

    def failed(self, error: BaseException | None) -> None:
        """There is no link, or no longer; None when one that there was has ended, on whichever side."""
        sentence = _ENDED if error is None else sentence_of(self._url, error)
        now = self._clock()
        if now - self._told.get(sentence, float("-inf")) < REMIND_S:
            return
        self._told[sentence] = now
        if error is None:
            self._tell(sentence)
        else:
            self._tell(_WAITING, sentence)

    def over(self) -> None:
        """There is a link, and a lease by it."""
        if self._told:
            self._told.clear()
            self._tell("the control server is there: traffic may pass")


def sentence_of(url: str, error: BaseException) -> str:
    """What a failed attempt to connect means, and what to do. Holds no secret."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return _answered(url, error.status)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{url} does not prove who it is, so it was sent nothing; {_unproven(error.certificate_error)}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = getattr(error.os_error, "reason", None) or "handshake failed"
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
            return f"{url} does not speak TLS: write http:// if that is how it is meant to be"
        return f"{url} speaks no TLS that is good enough ({str(reason).lower().replace('_', ' ')})"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the name in {url} cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"nothing answers at {url} ({_os_reason(error.os_error)})"
    if isinstance(error, TimeoutError):
        return f"{url} does not answer in time"
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        hint = "; if it speaks TLS, write https://" if url.startswith("http:") else ""
        return f"{url} closed the connection without an answer{hint}"
    return f"{url} does not answer as a control server does ({type(error).__name__})"


def _os_reason(error: OSError) -> str:
    # asyncio words some of them itself, with the address in Python's own spelling.
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def _answered(url: str, status: int) -> str:
    if status == 401:
        return f"{url} does not know this proxy's key: make one there with `haltwire key create NAME --role proxy`, and start this proxy with it"
    if status == 403:
        return f"{url} does not let this key connect a proxy: make one there with `haltwire key create NAME --role proxy`, and start this proxy with it"
    if status == 429:
        return f"{url} has had too many wrong keys from this address, and lets it try again later"
    if status >= 500:
        return f"{url} fails: it answered {status}"
    return f"{url} is no control server of haltwire: it answered {status} where proxies connect"


def _unproven(error: Exception) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not good"
    if error.verify_code == _EXPIRED:
        return "its certificate has run out: give it a new one, or set this machine's clock"
    if error.verify_code == _NOT_YET:
        return "its certificate is not valid yet: set this machine's clock"
    if error.verify_code in _OTHER_NAME:
        return "its certificate is for other names: write a URL with one of those"
    return f"nobody who is trusted here vouches for it ({error.verify_message}): name its CA with --ca-file; haltwire's own is public/ca.pem in the control server's data directory"
