# SPDX-License-Identifier: Apache-2.0
"""URLs where a path may stand too: told apart, and what keeps one from being used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")
# What brings a protocol, where it is not fsspec itself.
_REQUIREMENTS = {"s3": "requirements/requirements-s3.txt", "s3a": "requirements/requirements-s3.txt"}
# Variables whose values may not be shown, by the end of their name.
_SECRET = re.compile(r"(KEY|KEY_ID|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_PASSWORD_INSIDE = re.compile(r"(^|//)[^/\s@]*:[^/\s@]*@")  # of a proxy's address, with or without protocol


def is_url(text: object) -> bool:
    return isinstance(text, str) and _URL.match(text) is not None


def holds_password(url: str) -> bool:
    return "@" in urlsplit(url).netloc


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def is_secret(name: str, value: str) -> bool:
    """Whether a variable's value is for nobody else's eyes: a credential, or an address with a password."""
    return _SECRET.search(name) is not None or _PASSWORD_INSIDE.search(value) is not None


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """`text` without the values of credentials in the environment; a library's message may have some."""
    for name, value in environment.items():
        if len(value) >= 4 and name.startswith(("AWS_", "FSSPEC_")) and _SECRET.search(name):
            text = text.replace(value, "…")
    return text


def missing_package(url: str) -> tuple[str, str] | None:
    """Why this Python cannot read and write `url`, and what to do; None where it can."""
    protocol = url.partition("://")[0]
    wanted = _REQUIREMENTS.get(protocol)
    install = f"pip install -r {wanted}" if wanted else "install the package that it names"
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except ValueError:
        return f"fsspec knows no protocol {protocol}", "write for instance s3://bucket/folder"
    except ImportError as error:
        missing = error.name or str(error)
        return f"needs a package that is not installed ({missing})", install
    return None
