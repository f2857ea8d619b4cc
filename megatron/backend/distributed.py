# SPDX-License-Identifier: Apache-2.0
"""The process groups of a run: one rank joins the others, and megatron-core lays TP, PP and DP over them."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron.core import parallel_state, tensor_parallel
from megatron.neox_arguments.config import ParallelConfig
from megatron.neox_arguments.errors import UserError


@dataclass(frozen=True)
class Backend:
    """What this rank computes on and where it stands among the others."""

    device: torch.device
    collectives: str
    rank: int
    local_rank: int
    world_size: int
    tensor_parallel_size: int
    tensor_parallel_rank: int
    pipeline_parallel_size: int
    pipeline_parallel_rank: int
    data_parallel_size: int
    data_parallel_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the run (log lines, files that exist once)."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the loss."""
        return self.pipeline_parallel_rank == self.pipeline_parallel_size - 1

    def describe(self) -> str:
        """One line for the log: device, collectives and layout."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"CPU, {torch.get_num_threads()} threads a rank"
        return (
            f"{self.world_size} rank(s) on {name}, {self.collectives}: TP "
            f"{self.tensor_parallel_size} x PP {self.pipeline_parallel_size} x DP {self.data_parallel_size}"
        )


def _rank_from_environment() -> tuple[int, int, int]:
    """Returns (rank, local rank, world size) as the launcher set them; a lone process is rank 0 of 1."""
    if "RANK" not in os.environ:
        return 0, 0, 1
    rank = int(os.environ["RANK"])
    return rank, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ["WORLD_SIZE"])


def _join(collectives: str, world_size: int, timeout: datetime.timedelta) -> None:
    """Ranks meet at MASTER_ADDR:MASTER_PORT; a lone process needs no meeting place, so it takes no port and
    leaves the environment, which its own children inherit, as it is."""
    if world_size == 1:
        dist.init_process_group(collectives, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        # torch notes the last collectives of each group, so that a run that hangs can say in which.
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
        dist.init_process_group(collectives, timeout=timeout)


def _choose_collectives(wanted: str | None) -> str:
    has_cuda = torch.cuda.is_available()
    if wanted == "gloo" and has_cuda:
        raise UserError(
            "distributed_backend=gloo: this machine has CUDA devices and ranks compute there; "
            "remove the key, or hide the devices with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return "nccl" if has_cuda else "gloo"


def initialize(parallel: ParallelConfig, seed: int) -> Backend:
    """Joins the process group and builds megatron-core's TP, PP and DP groups.

    Ranks come from the environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), as the
    launcher sets it. `seed` seeds torch and megatron-core's model-parallel random states.

    Raises:
        UserError: the requested backend contradicts the machine.
    """
    rank, local_rank, world_size = _rank_from_environment()
    collectives = _choose_collectives(parallel.distributed_backend)
    device = torch.device("cpu")
    if collectives == "nccl":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join(collectives, world_size, datetime.timedelta(minutes=parallel.distributed_timeout_minutes))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_size,
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return backend_of(parallel, device, collectives, rank=rank, local_rank=local_rank, world_size=world_size)


def backend_of(
    parallel: ParallelConfig,
    device: torch.device,
    collectives: str,
    *,
    rank: int,
    local_rank: int,
    world_size: int,
) -> Backend:
    """This rank's place in megatron-core's groups, which are there already."""
    return Backend(
        device=device,
        collectives=collectives,
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        tensor_parallel_size=parallel.model_parallel_size,
        tensor_parallel_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_parallel_size=parallel.pipeline_size,
        pipeline_parallel_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
    )


def shut_down() -> None:
    """Leaves the process groups; safe to call twice."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
