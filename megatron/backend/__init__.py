# SPDX-License-Identifier: Apache-2.0
"""Where a run computes: CUDA with NCCL, or the CPU with gloo. Decided once, when this is imported.

Import this before `megatron.core`: where no CUDA device is present it teaches megatron-core to run on
the CPU, which is only possible while megatron-core is not yet loaded.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator

import torch

from megatron.backend import cpu_engine

# What the engine warns of is not for the person who runs it: that Apex and TransformerEngine are missing (our
# log says what is used instead), and names that torch will rename.
for module in (r"megatron\.core", r"torch\.distributed"):
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=module)


@contextlib.contextmanager
def _as_if_absent(*modules: str) -> Iterator[None]:
    """Imports of `modules` fail in between; those that are loaded stay as they are."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# megatron-core's timers import both, for a check of a type that nothing here comes to: a quarter of a second
# and more. Rank 0 imports what its run reports to when it opens it.
with _as_if_absent("torch.utils.tensorboard", "wandb"):
    if not torch.cuda.is_available():
        cpu_engine.install()
    import megatron.core.timers  # noqa: F401

from megatron.backend.distributed import Backend, initialize, shut_down  # noqa: E402

__all__ = ["Backend", "initialize", "shut_down"]
