# SPDX-License-Identifier: Apache-2.0
"""Where the ranks of a run come from, how often they are started again, and what SLURM is asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .fields import Concern, FilePath, Form, Lines, Names, NonNegative, Positive, Text, key


def _as_text(value: Any) -> Any:
    """Variables are text; YAML reads the value of `NCCL_DEBUG_LEVEL: 1` as a number."""
    if not isinstance(value, dict):
        return value
    return {
        name: str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one
        for name, one in value.items()
    }


Variables = Annotated[dict[str, Text], BeforeValidator(_as_text)]
# What sbatch's options of these names take; it reads neither blanks nor quotes there.
_Name = Annotated[Text, Form(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+/-]*", "is not a name that sbatch takes", "gpu")]
_Features = Annotated[
    Text,
    Form(
        r"[A-Za-z0-9_(\[][A-Za-z0-9_.,:@+/()\[\]&|*=-]*",
        "is not a list of features as sbatch has it",
        "a100|h100",
    ),
]
_Time = Annotated[
    Text,
    Form(
        r"([0-9]+-)?[0-9]+(:[0-9][0-9]){0,2}",
        "is not a time as sbatch has it",
        "24:00:00, 2-00:00:00, or 240 for minutes",
        or_whole=True,
    ),
]
_Memory = Annotated[
    Text,
    Form(
        r"[0-9]+[KMGTkmgt]?",
        "is not an amount of memory as sbatch has it",
        "500G, or 0 for all of it",
        or_whole=True,
    ),
]


class LaunchConfig(Concern):
    """Processes and machines."""

    launcher: Literal["auto", "local", "slurm", "openmpi", "pdsh"] = key(
        "auto",
        "How ranks are started: on this machine, or by SLURM, OpenMPI or pdsh; auto takes slurm inside an "
        "allocation, pdsh where there is a hostfile, local otherwise, and says so.",
    )
    cpu_ranks: Positive | None = key(
        None,
        "Ranks to start on CPU over all machines, whatever GPUs there are.",
        derived="where there is no GPU, the ranks of one copy of the model",
    )
    num_gpus: Positive | None = key(None, "GPUs to use on each machine.", derived="all")
    num_nodes: Positive | None = key(None, "Machines to use.", derived="all")
    hostfile: FilePath | None = key(
        None, "File of machines, with lines such as `n0 slots=8`.", derived="what DLTS_HOSTFILE names"
    )
    include: Text | None = key(None, "Machines and GPUs to use, as `n0@n1:0,2`.")
    exclude: Text | None = key(None, "Machines and GPUs to leave out, as `n0@n1:0,2`.")
    master_addr: Text | None = key(None, "Address of rank 0.", derived="the first machine")
    master_port: Annotated[int, Field(gt=0, lt=65536)] | None = key(
        None, "TCP port of rank 0.", derived="a free one; on several machines one made from the job"
    )
    max_restarts: NonNegative = key(
        0, "How often all ranks are started again after one of them has died, in one start of deepy.py."
    )
    restart_seconds: Annotated[float, Field(ge=0, le=3600)] = key(
        10.0, "Seconds before the first restart; each further one waits twice as long, at most 300 s."
    )
    environment: Variables = key(
        lambda: {}, "Variables that every rank gets, as `{NAME: value}`.", derived="empty"
    )
    rank_python: Text | None = key(
        None, "Python that runs the ranks.", derived="the one that runs deepy.py; in a container python3"
    )


class SlurmConfig(Concern):
    """What `--submit` asks SLURM for, beside num_nodes and num_gpus."""

    slurm_partition: _Name | None = key(None, "Partition of the job.", derived="the site's default")
    slurm_account: _Name | None = key(None, "Account that pays.", aliases=("account",))
    slurm_qos: _Name | None = key(None, "Quality of service.")
    slurm_job_name: Text | None = key(None, "Name of the job.", derived="that of the save folder")
    slurm_time: _Time | None = key(
        None,
        "Time limit, as `24:00:00` or `2-00:00:00`; a number alone is minutes.",
        derived="the partition's",
    )
    slurm_signal_seconds: Annotated[int, Field(gt=0, le=65535)] = key(
        300,
        "Seconds before the time limit at which USR1 asks the ranks to save; more than a checkpoint takes.",
    )
    slurm_max_requeues: NonNegative = key(
        20, "How often the job goes back into the queue after it was asked to stop and has saved."
    )
    slurm_constraint: _Features | None = key(None, "Features that the nodes must have, as `a100`.")
    slurm_cpus_per_task: Positive | None = key(
        None, "Cores for each rank.", derived="the node's cores divided by its ranks"
    )
    slurm_memory: _Memory | None = key(
        None, "Memory of each node, as `500G`; a number alone is MiB, and `0` all of it."
    )
    slurm_options: Names = key((), "Further options of sbatch, as `--exclusive`.")
    slurm_prologue: Annotated[tuple[Lines, ...], Field(strict=False)] = key(
        (),
        "Lines of shell that the job runs first, as `module load cuda`; what they export reaches the ranks.",
    )
    slurm_container: Text | None = key(
        None, "Container image the ranks run in.", derived="none; ranks run on the node itself"
    )
    slurm_container_runtime: Literal["pyxis", "apptainer"] = key(
        "pyxis", "What starts the container: srun's own option (pyxis, with enroot), or apptainer."
    )
    slurm_container_mounts: Names = key(
        (), "Folders the container sees beside the current one and save, as `/data` or `/outside:/inside`."
    )
