# SPDX-License-Identifier: Apache-2.0
"""A folder of proof search: `settings.json`, and `proofs.jsonl`, a line a theorem, appended as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval_tasks.results.json_lines import Appender, encoded_line, read_lines
from megatron.neox_arguments.errors import UserError, shown
from megatron.neox_arguments.whole_files import write_whole
from tools.prove_parts.provers import Theorem

PROOFS, SETTINGS = "proofs.jsonl", "settings.json"
# Settings that may be larger where a run tries again what met one of them.
_TIME_LIMITS = ("tactic_seconds", "start_seconds", "check_seconds", "theorem_seconds", "hammer_seconds")

# What each line has, and of which kind.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "theorem": (str,), "statement": (str,), "proved": (bool,), "proof": (str, type(None)),
    "seconds": (int, float), "expansions": (int,), "status": (str,), "tree": (list, type(None)),
}  # fmt: skip


def read_proofs(path: Path) -> dict[str, dict[str, Any]]:
    """theorem → its line, in the order of the file; a half last line, which a kill leaves, is passed over.

    Raises:
        UserError: the file cannot be read, a line is broken, or a theorem has two lines.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in read_lines(path):
        for key, kinds in _KINDS.items():
            if key not in line:
                raise UserError(f"{path}:{number}: has no {key}; repair or remove the line")
            if not isinstance(line[key], kinds):
                raise UserError(
                    f"{path}:{number}: {key}={shown(line[key])}: is no {kinds[0].__name__}; repair or "
                    "remove the line"
                )
        if found.setdefault(line["theorem"], line) is not line:
            raise UserError(
                f"{path}:{number}: theorem={line['theorem']}: is there twice; remove one of the lines"
            )
    return found


class ProofRun:
    """The folder of a run that writes: nobody else does meanwhile.

    Attributes:
        done: theorem → line, of the runs before this one.
    """

    FILE = PROOFS

    @staticmethod
    def read(path: Path) -> dict[str, dict[str, Any]]:
        """The lines of the file by their keys."""
        return read_proofs(path)

    @staticmethod
    def is_unsettled(line: Mapping[str, Any]) -> bool:
        """Whether a time limit was met, or the prover died too often, on the way to no proof."""
        tree, rejected = line["tree"] or [], line.get("rejected") or []
        return not line["proved"] and (
            line["status"] in ("timeout", "prover_died")
            or any(isinstance(node, dict) and node.get("outcome") == "timeout" for node in tree)
            or any(isinstance(proof, dict) and proof.get("unsettled") for proof in rejected)
        )

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], overwrite: bool, try_again: bool = False
    ) -> None:
        """Begins a run or goes on with one.

        Args:
            try_again: lines that are not settled are taken out, and time limits may have grown.

        Raises:
            UserError: the folder holds a run with other settings, or another process writes to it.
        """
        self.folder = folder
        path = folder / self.FILE
        self._appender = Appender(path)
        try:
            if overwrite:
                path.write_bytes(b"")
                (folder / SETTINGS).unlink(missing_ok=True)
            grown = self._agree(settings, try_again)
            self.done = self.read(path)
            if try_again:
                self._take_out_unsettled(path)
            if grown:
                self._write_settings(settings)
        except OSError as error:
            self.close()
            raise UserError(
                f"--output={folder}: cannot be written ({error}); choose another folder"
            ) from None
        except BaseException:
            self.close()
            raise

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        write_whole(self.folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def _take_out_unsettled(self, path: Path) -> None:
        self.done = {key: line for key, line in self.done.items() if not self.is_unsettled(line)}
        write_whole(path, b"".join(map(encoded_line, self.done.values())))
        before, self._appender = self._appender, Appender(path)  # the file has another inode now
        before.close()

    def _agree(self, settings: Mapping[str, Any], may_grow: bool) -> bool:
        """Whether time limits are larger than those of the folder, and nothing else differs."""
        path = self.folder / SETTINGS
        plain = json.loads(json.dumps(settings))
        if not path.exists():
            if (self.folder / self.FILE).stat().st_size > 0:
                raise UserError(
                    f"--output={self.folder}: holds {self.FILE} without {SETTINGS}; choose another folder, "
                    "or add --overwrite"
                )
            self._write_settings(settings)
            return False
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); choose another folder, or add --overwrite"
            ) from None
        keys = [key for key in {**before, **plain} if before.get(key) != plain.get(key)]
        grown = [key for key in keys if key in _TIME_LIMITS and key in before and key in plain]
        grown = [key for key in grown if isinstance(before[key], (int, float)) and before[key] < plain[key]]
        if keys and not (may_grow and grown == keys):
            differing = ", ".join(
                f"{key}={shown(before.get(key))} and now {shown(plain.get(key))}" for key in keys
            )
            raise UserError(
                f"--output={self.folder}: was begun with other settings ({differing}); repeat those, choose "
                f"another folder, or add --overwrite{' or --try-again' if grown == keys else ''}"
            )
        return bool(grown)

    def remaining(self, theorems: Iterable[Theorem]) -> list[Theorem]:
        """Those without a line, in their order.

        Raises:
            UserError: one has a line with another statement or header.
        """
        left = []
        for theorem in theorems:
            line = self.done.get(theorem.name)
            if line is None:
                left.append(theorem)
            else:
                self.agree_on(theorem, line)
        return left

    def agree_on(self, theorem: Theorem, line: Mapping[str, Any]) -> None:
        """Raises:
        UserError: the line is about another statement, or one below another header.
        """
        header = line.get("header_sha256", theorem.header_sha256)  # lines of older runs have none
        for what, same in (
            ("statement", line.get("statement") == theorem.statement),
            ("header", header == theorem.header_sha256),
        ):
            if not same:
                raise UserError(
                    f"--output={self.folder}: has {theorem.name} with another {what}; choose another folder, "
                    "or add --overwrite"
                )

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line; it is on the disk when this returns."""
        self._appender.append([line])

    def close(self) -> None:
        """Lets another process write."""
        self._appender.close()
