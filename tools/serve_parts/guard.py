# SPDX-License-Identifier: Apache-2.0
"""Who may ask: a key where there is one, and no web page that a browser on this machine shows.

A server on loopback without a key is open to every program of the machine, which is what its user wants. A
web page is not such a program, but it can have the browser post to 127.0.0.1, or call its own name by that
address (DNS rebinding, as Ollama's CVE-2024-28224); both show in the request's head.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tools.serve_parts.refusal import Refused

# For what watches whether the server is up; it tells nothing of the model.
OPEN_PATHS = ("/health",)


class Guard:
    """An ASGI application in front of another."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        only_loopback_names: bool,
        refuse: Callable[[str, Refused], Any],
    ) -> None:
        """`refuse` makes the answer to a path's request that is refused."""
        self._app = app
        self._digests = [_digest(key) for key in keys]
        self._only_loopback_names = only_loopback_names
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refused = self._problem(Headers(scope=scope))
            if refused is not None:
                await self._refuse(scope["path"], refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> Refused | None:
        if self._digests:
            return (
                None
                if self._has_key(headers)
                else Refused(
                    401, "no valid API key; send it as Authorization: Bearer KEY", code="invalid_api_key"
                )
            )
        if self._only_loopback_names:
            origin = headers.get("origin")
            for name, value in (("Host", headers.get("host", "")), ("Origin", origin)):
                if value is not None and not is_loopback_name(_host_of(value)):
                    return Refused(
                        403, f"{name}: is not this machine's; without a key only programs of it are answered"
                    )
        return None

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        # All are compared, each in constant time: how long it takes says nothing about any.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_of(value: str) -> str:
    """The name in a Host or an Origin header; "" where there is none, as in Origin: null."""
    try:
        return urlsplit(value if "://" in value else f"//{value}").hostname or ""
    except ValueError:
        return ""


def is_loopback_name(name: str) -> bool:
    """Whether a host name means this machine, and cannot mean another."""
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
