"""The CA files that an agent must trust: of the proxy on this data directory, or of all that the control server knows."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from haltwire_cli.api import Api
from haltwire_cli.failures import Failure

NAMES = ("ca.pem", "ca-bundle.pem")


def ca_files(api: Api) -> tuple[Path, Path]:
    """The paths of the proxies' CAs alone, and of the system's roots with them."""
    local = api.home.endpoints() if api.is_local else None
    if local is not None and local.proxy_url is not None:
        folder = api.home.path / "public"
    else:
        folder = api.home.path / "remote" / urlsplit(api.url).netloc.replace(":", "_")
        _copy(api, folder)
    ca_file, ca_bundle = (folder / name for name in NAMES)
    return ca_file, ca_bundle


def _copy(api: Api, folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in NAMES:
            # Another `run` may be reading the old one: it is replaced whole.
            written = folder / f"{name}.{os.getpid()}"
            written.write_bytes(b"".join(api.stream(f"/{name}")))
            written.replace(folder / name)
    except OSError as error:
        raise Failure(
            f"{folder} cannot hold the CA files: {error.strerror}; choose another --data-dir."
        ) from error
