# SPDX-License-Identifier: Apache-2.0
"""JSONL files of others, read one line at a time; a complaint names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line; empty lines are passed over, and so is a last line without its line
    end that is no JSON: what a run leaves that was killed, or still writes.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError):
                    fields = None
                if isinstance(fields, dict):
                    yield number, fields
                elif line.endswith(b"\n"):
                    raise UserError(f"{path}:{number}: is no JSON object; repair or remove the line")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None
