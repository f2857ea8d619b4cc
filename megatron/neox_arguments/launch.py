# SPDX-License-Identifier: Apache-2.0
"""Where the ranks of a run come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .fields import Concern, FilePath, Positive, key


class LaunchConfig(Concern):
    """Processes and machines."""

    launcher: Literal["local", "slurm", "openmpi", "pdsh"] = key(
        "local", "How ranks are started: on this machine, or by SLURM, OpenMPI or pdsh."
    )
    cpu_ranks: Positive | None = key(
        None,
        "Ranks to start on CPU, whatever GPUs there are.",
        derived="where there is no GPU, the ranks of one copy of the model",
    )
    num_gpus: Positive | None = key(None, "GPUs to use on each machine.", derived="all")
    num_nodes: Positive | None = key(None, "Machines to use.", derived="all")
    hostfile: FilePath | None = key(None, "File of machines, with lines such as `n0 slots=8`.")
    include: str | None = key(None, "Machines and GPUs to use, as `n0@n1:0,2`.")
    exclude: str | None = key(None, "Machines and GPUs to leave out, as `n0@n1:0,2`.")
    master_addr: str | None = key(None, "Address of rank 0.", derived="the first machine")
    master_port: Annotated[int, Field(gt=0, lt=65536)] | None = key(
        None, "TCP port of rank 0.", derived="a free one"
    )
