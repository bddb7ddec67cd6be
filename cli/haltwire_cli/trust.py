"""Whom we take for the control server: TLS contexts of clients, and what their errors mean.

On this machine only our own authority counts, or the very certificate that the control server was given; the
system's roots, and whatever variables name others, count for servers elsewhere alone. Dates are not looked at
on this machine: a wrong clock must not stand between a person and a stop, nor end the link of a worker.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from haltwire_cli.failures import Failure

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python has no name for
_UNKNOWN = {18, 19, 20, 21}
"X509_V_ERR_*: self-signed, self-signed in the chain, no local issuer, unable to verify the leaf."
_NOT_YET, _EXPIRED = 9, 10
_OTHER_NAME = {62, 64}
_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
}
_PROBE_S = 3.0


def of_our_authority(ca_file: Path) -> ssl.SSLContext:
    """Takes what our authority has signed for the name that is called; OSError when there is none."""
    context = _client()
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.load_verify_locations(cafile=str(ca_file))
    return context


def of_this_certificate(file: Path) -> ssl.SSLContext:
    """Takes the certificates in this file and no others, whatever they are called; OSError when there are none."""
    context = _client()
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cafile=str(file))
    return context


def of_this_authority(file: Path) -> ssl.SSLContext:
    """Takes what the CAs in this file vouch for, on the dates that they say, and nothing else; OSError when there are none."""
    context = _client()
    context.load_verify_locations(cafile=str(file))
    return context


def of_the_world(ca_file: Path | None = None) -> ssl.SSLContext:
    """Takes what the system's roots vouch for, or this file's; Failure when it holds none."""
    context = _client()
    context.load_default_certs()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except OSError as error:  # ssl.SSLError too
            raise Failure(
                f"{ca_file} holds no PEM certificates: give another --ca-file."
            ) from error
    return context


def _client() -> ssl.SSLContext:
    # Not create_default_context, which writes the session's keys to where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def sentence(url: str, error: ssl.SSLError) -> str:
    """What went wrong in the handshake, and what to do. Nothing has been sent to the server then."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or "handshake failed").lower().replace("_", " ")
        if error.reason in _NOT_TLS:
            return f"{url} does not speak TLS: write http:// if that is how it is meant to be."
        return f"{url} speaks no TLS that is good enough ({reason}); the key was not sent."
    if error.verify_code in _UNKNOWN:
        why = "nobody who is trusted here vouches for it: name its CA with --ca-file or HALTWIRE_CA_FILE (with haltwire's own, that is public/ca.pem in its data directory)"
    elif error.verify_code == _EXPIRED:
        why = "its certificate has run out: give it a new one, or set this machine's clock"
    elif error.verify_code == _NOT_YET:
        why = "its certificate is not valid yet: set this machine's clock"
    elif error.verify_code in _OTHER_NAME:
        why = "its certificate is for other names: write a URL with one of those"
    else:
        why = f"its certificate is not good ({error.verify_message})"
    return f"{url} does not prove who it is, so the key was not sent; {why}."


def speaks_tls(host: str, port: int) -> bool:
    """Whether a server there answers a TLS handshake. Nothing else is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_PROBE_S) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:
        return False
