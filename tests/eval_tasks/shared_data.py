# SPDX-License-Identifier: Apache-2.0
"""The real generations that some tests need; they skip where these are absent."""

from __future__ import annotations

import json
from typing import Any

from tests.data.corpora import shared_folder


def shared_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of the shared data."""
    with open(shared_folder() / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
