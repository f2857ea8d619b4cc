# SPDX-License-Identifier: Apache-2.0
"""Where a run computes: CUDA with NCCL, or the CPU with gloo. Decided once, when this is imported.

Import this before `megatron.core`: where no CUDA device is present it teaches megatron-core to run on
the CPU, which is only possible while megatron-core is not yet loaded.
"""

import warnings

import torch

from megatron.backend import cpu_engine

# What the engine warns of is not for the person who runs it: that Apex and TransformerEngine are missing (our
# log says what is used instead), and names that torch will rename.
for module in (r"megatron\.core", r"torch\.distributed"):
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=module)

if not torch.cuda.is_available():
    cpu_engine.install()

from megatron.backend.distributed import Backend, initialize, shut_down  # noqa: E402

__all__ = ["Backend", "initialize", "shut_down"]
