"""Talks to the control server: finds it, shows the key, turns every refusal into a sentence and an exit code.

A key is never part of a sentence, and never shown to a server that it does not belong to.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import click
from click.core import ParameterSource

from haltwire_cli import trust
from haltwire_cli.failures import FAILED, NOT_ALLOWED, NOT_FOUND, USAGE, Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.listen import is_exposed
from haltwire_cli.options import connection_options, server_url

TIMEOUT_S = 10.0
_EXIT_CODES = {400: USAGE, 401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND, 422: USAGE}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the control server said: as it came, and read."""

    text: str
    document: Mapping[str, Any]


class Refused(Failure):
    """The control server answered, and said no."""

    def __init__(self, status: int, answer: Answer) -> None:
        error = answer.document.get("error")
        said = error.get("message") if isinstance(error, Mapping) else None
        self.status = status
        self.answer = answer
        super().__init__(_no(status, str(said or "")), _EXIT_CODES.get(status, FAILED))


class Lost(Failure):
    """The connection ended before an answer: whether it was done is not known."""


@dataclass(frozen=True, slots=True)
class Api:
    """One control server, and the key that it is shown."""

    url: str
    key: str
    home: Home
    is_local: bool
    "Whether it is the one that runs on `home`."
    tls: ssl.SSLContext | None = None
    "Whom to take for it, when its URL is https."

    def get(
        self,
        path: str,
        parameters: Mapping[str, str | int | None] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """GET; Failure on anything but success. Parameters without a value are left out."""
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given)}" if given else path, None, timeout_s)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> Answer:
        """POST; fields without a value are left out."""
        given = {name: value for name, value in body.items() if value is not None}
        return self._write("POST", path, given, timeout_s)

    def delete(self, path: str) -> Answer:
        """DELETE."""
        return self._write("DELETE", path, None, TIMEOUT_S)

    def stream(self, path: str) -> Iterator[bytes]:
        """GET, in pieces, as they come."""
        with _Exchange(self, "GET", path, None, TIMEOUT_S) as response:
            if response.status != 200:
                raise Refused(response.status, _read(self.url, response))
            while piece := response.read1(65_536):
                yield piece

    def _write(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> Answer:
        """Once, also when the connection ends before the answer: both requests bear the same key."""
        once = secrets.token_urlsafe(16)
        try:
            return self._call(method, path, body, timeout_s, once)
        except Lost:
            # A control server that died is back in a second; its port takes connections meanwhile.
            return self._call(method, path, body, timeout_s, once)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_s: float,
        once: str | None = None,
    ) -> Answer:
        with _Exchange(self, method, path, body, timeout_s, once) as response:
            answer = _read(self.url, response)
        if not 200 <= response.status < 300:
            raise Refused(response.status, answer)
        return answer


class _Exchange:
    """One request on one connection; network trouble inside the `with` becomes a Failure."""

    def __init__(
        self,
        api: Api,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_s: float,
        once: str | None = None,
    ) -> None:
        self._once = once
        self._api, self._method, self._path, self._body = api, method, path, body
        self._timeout_s = timeout_s
        parts = urlsplit(api.url)
        self._is_plain = parts.scheme == "http"
        if not self._is_plain:
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=timeout_s, context=api.tls
            )
        else:
            self._connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
        self._prefix = parts.path.rstrip("/")

    def __enter__(self) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self._api.key}", "Accept": "application/json"}
        body = None
        if self._body is not None:
            body = json.dumps(self._body).encode()
            headers["Content-Type"] = "application/json"
        if self._once is not None:
            headers["Idempotency-Key"] = self._once
        try:
            self._connection.request(self._method, self._prefix + self._path, body, headers)
            return self._connection.getresponse()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._connection.close()
        url = self._api.url
        if isinstance(error, TimeoutError):
            raise Failure(
                f"the control server at {url} did not answer within {self._timeout_s:g} s: whether this was done is not known."
            ) from error
        if isinstance(error, ssl.SSLError):
            raise Failure(trust.sentence(url, error)) from error
        ended = isinstance(error, (ConnectionResetError, http.client.HTTPException))
        if ended and self._is_plain and self._speaks_tls():
            raise Failure(f"{url} speaks TLS: write https:// instead of http://.") from error
        if isinstance(error, ConnectionResetError | BrokenPipeError) and self._once is not None:
            raise Lost(
                f"the control server at {url} ended the connection before it answered: whether this was done is not known."
            ) from error
        if isinstance(error, OSError):
            raise Failure(
                f"no control server answers at {url} ({error.strerror or error}): start one with `haltwire up`, or name it with --url."
            ) from error
        if isinstance(error, http.client.HTTPException):
            raise Failure(f"{url} does not speak HTTP as a control server does.") from error

    def _speaks_tls(self) -> bool:
        return trust.speaks_tls(self._connection.host, self._connection.port)


def with_api(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that find the control server, and an Api as its first argument."""

    @connection_options
    @functools.wraps(command)
    def found(
        *args: Any,
        url: str | None,
        key_file: Path | None,
        data_dir: Path,
        ca_file: Path | None,
        **kwargs: Any,
    ) -> None:
        source = click.get_current_context().get_parameter_source
        if (
            source("data_dir") is ParameterSource.COMMANDLINE
            and source("url") is not ParameterSource.COMMANDLINE
        ):
            url = None  # what is typed beats what the environment says
        command(connect(url, key_file, data_dir, ca_file), *args, **kwargs)

    return found


def connect(
    url: str | None, key_file: Path | None, data_dir: Path, ca_file: Path | None = None
) -> Api:
    """The control server that is meant, with the key for it."""
    home = Home(data_dir.absolute())
    try:
        local = home.endpoints()
    except Failure:
        if url is None:
            raise
        local = None
    if url is None:
        if local is None:
            raise Failure(
                f"no haltwire runs on {home.path}: start one with `haltwire up`, or name a control server with --url."
            )
        if local.control_url is None:
            raise Failure(
                f"only a proxy runs on {home.path}: name the control server that it follows with --url, and give a key with --key-file."
            )
        url = local.control_url
    else:
        url = _checked_url(url)
    is_local = local is not None and url == local.control_url
    if key_file:
        key = _key_in(key_file)
    elif os.environ.get("HALTWIRE_API_KEY"):
        key = _checked_key(os.environ["HALTWIRE_API_KEY"], "HALTWIRE_API_KEY")
    elif is_local:
        key = _key_in(home.admin_key)
    else:
        raise Failure(f"there is no key for {url}: give one with --key-file or HALTWIRE_API_KEY.")
    tls = None
    if url.startswith("https:"):
        tls = _local_trust(local) if local is not None and is_local else trust.of_the_world(ca_file)
    return Api(url, key, home, is_local, tls)


def _local_trust(local: Endpoints) -> ssl.SSLContext:
    try:
        if local.control_certificate is not None:
            return trust.of_this_certificate(Path(local.control_certificate))
        return trust.of_our_authority(Path(local.ca_file))
    except OSError as error:
        raise Failure(
            f"the control server on this machine cannot be verified: {local.control_certificate or local.ca_file} cannot be used ({error.strerror})."
        ) from error


def _checked_url(url: str) -> str:
    try:
        url = server_url(url)
    except click.BadParameter as error:
        error.param_hint = "'--url'"
        raise
    if is_exposed(url):
        host = urlsplit(url).hostname
        click.echo(f"haltwire: the key travels unencrypted to {host}; use https.", err=True)
    return url


def _key_in(path: Path) -> str:
    try:
        return _checked_key(path.read_text(encoding="ascii", errors="replace"), str(path))
    except OSError as error:
        raise Failure(
            f"{path} cannot be read ({error.strerror}): give a key of your own with --key-file or HALTWIRE_API_KEY.",
            NOT_ALLOWED,
        ) from error


def _checked_key(text: str, where: str) -> str:
    key = text.strip()
    if key.startswith("hwa_"):
        raise Failure(f"{where} holds an agent's token; this needs an operator's key.", NOT_ALLOWED)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Failure(f"{where} holds no key.", NOT_ALLOWED)
    return key


def _read(url: str, response: http.client.HTTPResponse) -> Answer:
    body = response.read()
    try:
        text = body.decode()
        document = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise Failure(f"{url} does not answer as a control server does.") from error
    if not text.endswith("\n"):
        text += "\n"  # one answer a line, also where several are appended to one file
    return Answer(text, document if isinstance(document, Mapping) else {"value": document})


def _no(status: int, said: str) -> str:
    said = said.rstrip(".")
    if status == 401:
        return f"the control server does not know this key{_because(said)}: give another one with --key-file or HALTWIRE_API_KEY."
    if status == 403:
        return f"this key may not do that{_because(said)}."
    return f"{said or f'the control server answered {status}'}."


def _because(said: str) -> str:
    return f" ({said})" if said else ""
