# SPDX-License-Identifier: Apache-2.0
"""What becomes of a checkpoint that is whole: uploaded where `s3_path` says, removed when it is old.

Rank 0 does both, so `save` is one folder that all nodes see. An upload in progress keeps its folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron.checkpointing import folders
from megatron.checkpointing.remote import Remote, in_words, is_lasting, open_remote, try_for
from megatron.checkpointing.upload import Uploader
from megatron.neox_arguments.config import CheckpointConfig
from megatron.neox_arguments.errors import UserError

# How long a run waits at its start for a store that is away.
_PATIENCE_SECONDS = 30.0


class Keeper:
    """Made on every rank; ranks other than 0 do nothing with it."""

    def __init__(self, checkpoint: CheckpointConfig, is_main: bool, log: Callable[[str], None]) -> None:
        """Looks, on rank 0, whether `s3_path` can be written to, before anything is trained.

        Raises:
            UserError: it cannot, and no waiting would mend it.
        """
        self._checkpoint, self._is_main, self._log = checkpoint, is_main, log
        self._remote: Remote | None = None
        self._uploader: Uploader | None = None
        if is_main and checkpoint.s3_path is not None:
            self._remote = open_remote(checkpoint.s3_path)
            self._check(self._remote)
            self._uploader = Uploader(self._remote, log)

    def _check(self, remote: Remote) -> None:
        try:
            try_for(_PATIENCE_SECONDS, remote.check_writable)
        except Exception as error:
            if is_lasting(error):
                raise UserError(
                    f"s3_path={remote.url}: cannot be written to ({in_words(error)}); check the address, and "
                    "the credentials and the endpoint in the environment"
                ) from error
            self._log(f"warning: {remote.url} does not answer ({in_words(error)}); it is tried again later")

    def add_missing(self, start: Path | None) -> None:
        """Queues what is not there yet: the checkpoint to start from, and milestones before it."""
        save = self._checkpoint.save
        if self._uploader is None or self._remote is None or start is None or start.parent != save:
            return
        iteration = folders.iteration_of(start)
        for step in folders.iterations_in(save):
            if step < iteration and self._checkpoint.is_milestone(step):
                milestone = save / folders.step_name(step)
                self._uploader.add(milestone, may_be_skipped=False, moves_latest=False)
        try:
            there = self._remote.latest()
        except Exception:  # it is away: nothing is known of what is there
            there = None
        is_behind = there is not None and there > iteration
        if is_behind:
            self._log(
                f"warning: {self._remote.url} has a later checkpoint, global_step{there}, than {save}, which "
                f"this run goes on from ({start.name}); to go on from that one, give an empty save"
            )
        self._uploader.add(start, moves_latest=not is_behind)

    def saved(self, folder: Path) -> None:
        """A checkpoint is whole: it is uploaded in its turn, and old ones go."""
        if not self._is_main:
            return
        if self._uploader is not None:
            # Before any is removed: the one that waited until now gives way, and may go too.
            is_milestone = self._checkpoint.is_milestone(folders.iteration_of(folder))
            self._uploader.add(folder, may_be_skipped=not is_milestone)
        self._remove_old()

    def _remove_old(self) -> None:
        checkpoint = self._checkpoint
        if checkpoint.save is not None and checkpoint.keep_last_n_checkpoints is not None:
            in_use = self._uploader.in_progress if self._uploader is not None else None
            kept = checkpoint.keep_last_n_checkpoints
            folders.keep_newest(checkpoint.save, kept, checkpoint.is_milestone, in_use)

    def finish(self, is_interrupted: Callable[[], bool]) -> None:
        """Waits for the uploads, no longer than `upload_wait_minutes` and until `is_interrupted`.

        Raises:
            UserError: something was not uploaded.
        """
        if self._uploader is None:
            return
        minutes = self._checkpoint.upload_wait_minutes
        if waiting := self._uploader.not_uploaded():
            place = self._checkpoint.s3_path
            self._log(f"waiting at most {minutes} min for uploads to {place}: {', '.join(waiting)}")
        left = self._uploader.finish(60.0 * minutes, is_interrupted)
        self._remove_old()
        if left:
            raise UserError(
                f"s3_path={self._checkpoint.s3_path}: not uploaded: {', '.join(left)}; all is done and saved "
                f"in {self._checkpoint.save}, and the same command uploads what is missing"
            )

    def abandon(self) -> None:
        """Ends without waiting, and says what was not uploaded."""
        if self._uploader is None:
            return
        left = self._uploader.not_uploaded()
        self._uploader.stop()
        if left:
            self._log(
                f"warning: not uploaded to {self._checkpoint.s3_path}: {', '.join(left)}; the same command "
                "uploads what is missing"
            )
