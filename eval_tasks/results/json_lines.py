# SPDX-License-Identifier: Apache-2.0
"""Files of JSON objects, one a line: read with `file:line` in every complaint, appended to so that a kill at
any moment costs at most the line under way.

A last line that is cut short is what such a kill leaves. Readers pass over it, and the appender removes it
when it opens the file. A last line that is whole and only lacks its line end counts.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from megatron.neox_arguments.errors import UserError


def encoded_line(fields: Mapping[str, Any]) -> bytes:
    """One line of UTF-8 with its line end. Numbers that are not finite become null, which JSON has no other
    word for, and halves of surrogate pairs become `?`."""
    try:
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        return json.dumps(_plain(fields), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def read_lines(path: Path, *, may_be_cut: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line; empty lines are passed over, and a last line that is cut short
    where it `may_be_cut`: files of ours are, by a kill.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object; `file:line` is in the message.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                fields = _decoded(line)
                if isinstance(fields, dict):
                    yield number, fields
                elif line.endswith(b"\n") or not may_be_cut:
                    raise UserError(f"{path}:{number}: {_why_not(line)}; repair or remove the line")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None


def _decoded(line: bytes) -> Any:
    """What the line holds; None where it is no JSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:  # json takes halves of surrogate pairs, big integers and NaN, which orjson refuses
        return _plain(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _why_not(line: bytes) -> str:
    """Why `_decoded` gives no object."""
    try:
        json.loads(line)
    except RecursionError:
        return "is nested too deeply"
    except (json.JSONDecodeError, UnicodeDecodeError):
        if not line.endswith(b"\n"):
            return "is no JSON object: the file is cut short"
    except ValueError:
        return "has a number of too many digits"
    return "is no JSON object"


class Appender:
    """Appends objects to a JSONL file, each call with what it brings to the disk before it returns.

    Only one appender may have a file at a time. `with Appender(path) as file: file.append([…])`.

    Raises:
        UserError: the file cannot be opened, or another process appends to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._opened()
        while not self._is_there():  # whoever had it has removed it
            os.close(self._descriptor)
            self._descriptor = self._opened()
        try:
            self._end_last_line()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _opened(self) -> int:
        """A descriptor of the file, which is locked."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); choose another folder with --output"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"{self.path}: another process writes to it; wait for it, or choose another folder with "
                "--output"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _is_there(self) -> bool:
        """Whether the file that was locked is still the one of its name."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _end_last_line(self) -> None:
        """Removes a last line that was cut short; ends one that only lacks its line end."""
        size = os.fstat(self._descriptor).st_size
        start, tail = size, b""
        while start > 0 and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            tail = os.pread(self._descriptor, step, start) + tail
        last = tail[tail.rfind(b"\n") + 1 :]
        if not last:
            return
        if isinstance(_decoded(last), dict):
            os.write(self._descriptor, b"\n")
        else:
            os.ftruncate(self._descriptor, size - len(last))

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line a record.

        Raises:
            UserError: the disk refuses. The file is as it was before the call.
        """
        content = b"".join(map(encoded_line, records))
        size = os.fstat(self._descriptor).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room and start the command again"
            ) from None

    def close(self) -> None:
        """Lets another process append."""
        os.close(self._descriptor)

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
