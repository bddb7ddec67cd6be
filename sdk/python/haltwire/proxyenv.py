"""The environment that sends an agent's traffic through the proxy and lets it trust our CA.

Pure: nothing is read from this process's environment or from disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",  # OpenSSL: urllib, httpx, aiohttp, OpenAI and Anthropic SDKs, websockets; Go, uv
    "REQUESTS_CA_BUNDLE",  # requests, and boto3 and pip behind it
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "NPM_CONFIG_CAFILE",  # npm's own beats NODE_EXTRA_CA_CERTS
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "DENO_CERT",
    "CARGO_HTTP_CAINFO",
    "NIX_SSL_CERT_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "HTTPLIB2_CA_CERTS",
)
"Variables that name the file of all trusted CAs: system roots plus ours, since they replace the system's."

_OTHER_PROXY = re.compile(
    r"(?:HTTPS?|ALL|NO|FTP|SOCKS5?|WSS?|GRPC|RSYNC|NPM_CONFIG|NPM_CONFIG_HTTPS?|CARGO_HTTP|PIP"
    r"|GLOBAL_AGENT_HTTPS?|NO_GRPC)_PROXY|NPM_CONFIG_NOPROXY|GLOBAL_AGENT_NO_PROXY",
    re.IGNORECASE,
)
_OURS = "HALTWIRE_"


def proxy_environment(proxy_url: str, ca_file: str, ca_bundle: str) -> dict[str, str]:
    """The variables for an agent whose proxy URL, with its secret, this is.

    Both cases, because curl, wget, git and gRPC read only the lower one for http://, and others only
    the upper. ALL_PROXY too, so that an inherited one cannot lead elsewhere. NO_PROXY is empty: a
    list there is a way around.
    """
    environment = {}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        environment[name] = environment[name.lower()] = proxy_url
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ""
    environment["NODE_USE_ENV_PROXY"] = "1"  # Node's own fetch ignores a proxy otherwise
    for name in BUNDLE_VARIABLES:
        environment[name] = ca_bundle
    environment["NODE_EXTRA_CA_CERTS"] = ca_file  # adds to Node's own roots
    return environment


def without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what an agent must not have: operators' HALTWIRE_*, and other ways out."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_OURS) and not _OTHER_PROXY.fullmatch(name)
    }
