# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: checkpoints, and the numbers it reports."""

from __future__ import annotations

from typing import Literal

from .fields import Concern, FilePath, Iterations, NonNegative, Place, Positive, Ranks, Text, Url, key


class CheckpointConfig(Concern):
    """Where checkpoints come from and go to."""

    save: FilePath | None = key(None, "Folder that checkpoints are written to.", derived="nothing is saved")
    load: Place | None = key(
        None,
        "Folder of the checkpoint to start from, or its URL; where it is also save or s3_path, a first run "
        "starts without.",
    )
    finetune: bool = key(False, "Take the weights only, and count iterations from 0.")
    iteration: NonNegative | None = key(None, "Iteration to load.", derived="the latest")
    checkpoint_factor: Positive | None = key(
        None, "Steps between two checkpoints.", aliases=("save_interval",), derived="only at the end"
    )
    keep_last_n_checkpoints: Positive | None = key(
        None, "Newest checkpoints that are kept, milestones not counted.", derived="all"
    )
    checkpoint_milestone_factor: Positive | None = key(
        None, "Steps between two milestones: checkpoints that are written too and never removed."
    )
    extra_save_iters: Iterations = key((), "Further iterations that are milestones.")
    async_save: bool = key(
        False,
        "Write checkpoints from a copy in the host's memory, as large as a rank's share of one, while "
        "training goes on.",
    )
    checkpoint_verify: Literal["full", "sizes", "none"] = key(
        "full",
        "How a checkpoint is compared with its manifest before training: every byte (each file is read once "
        "more, about 1 s for each GB of a rank's share), sizes of files, or not at all.",
    )
    s3_path: Url | None = key(
        None,
        "URL, s3:// or any other of fsspec's, that checkpoints are uploaded to while training goes on, and "
        "that the run goes on from where save holds none.",
        derived="nothing is uploaded",
    )
    upload_wait_minutes: NonNegative = key(
        30, "Longest time, in minutes, that the end of a run waits for its last uploads."
    )
    no_load_optim: bool = key(False, "Do not take the optimizer's state from the checkpoint.")
    no_load_rng: bool = key(False, "Do not take the random number generators' state from the checkpoint.")

    def is_milestone(self, iteration: int) -> bool:
        """Whether a checkpoint of this iteration is never removed."""
        factor = self.checkpoint_milestone_factor
        return iteration in self.extra_save_iters or (factor is not None and iteration % factor == 0)


class LoggingConfig(Concern):
    """Numbers about the run, and where they go."""

    log_interval: Positive = key(1, "Steps between two log lines.")
    log_dir: FilePath | None = key(None, "Folder of logs and plots.", derived="`logs` in save")
    plots: bool = key(True, "Draw loss per source and learning rate as PNG when the run ends.")
    tensorboard: bool = key(True, "Write TensorBoard files.")
    tensorboard_dir: FilePath | None = key(
        None, "Folder of the TensorBoard files.", derived="`tensorboard` in log_dir"
    )
    use_wandb: bool = key(False, "Report to Weights & Biases.")
    wandb_mode: Literal["online", "offline"] = key("online", "Report as the run goes, or only write files.")
    wandb_group: Text | None = key(None, "Group of runs at Weights & Biases.")
    wandb_project: Text | None = key(None, "Project at Weights & Biases.")
    wandb_team: Text | None = key(None, "Team (entity) at Weights & Biases.")
    wandb_host: Text | None = key(None, "Address of the Weights & Biases server.", derived="the public one")
    peak_tflops_per_gpu: float | None = key(
        None,
        "Peak of one GPU in the run's precision, in TFLOP/s, for MFU.",
        derived="a table of known GPUs",
        gt=0,
    )
    profile: bool = key(
        False, "Trace some steps with torch's profiler, into `traces` in log_dir, for ui.perfetto.dev."
    )
    profile_step_start: Positive = key(10, "First iteration in the trace.")
    profile_step_stop: Positive = key(12, "Iteration at which the trace ends; it is not in it.")
    profile_ranks: Ranks = key((0,), "Ranks that write a trace each.")
