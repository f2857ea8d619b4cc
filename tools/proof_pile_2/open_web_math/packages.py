# SPDX-License-Identifier: Apache-2.0
"""Packages that the recipe needs and a base install lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from megatron.neox_arguments.errors import UserError


@contextmanager
def needed(package: str) -> Iterator[None]:
    """Around an import: a package that is missing becomes a `UserError` that says how to get it."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{package}: is not installed ({error}); pip install -r requirements/requirements-data.txt"
        ) from None


def package_version(package: str) -> str:
    """The version that is installed, for fingerprints. Errors: `UserError` where it is missing."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{package}: is not installed; pip install -r requirements/requirements-data.txt"
        ) from None
