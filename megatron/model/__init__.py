# SPDX-License-Identifier: Apache-2.0
"""The Llama and its relatives: attention, rotary, norms, initialisation, FLOPs, building a rank's part."""

from megatron.model.llama import BuiltModel, build, dtype_of

__all__ = ["BuiltModel", "build", "dtype_of"]
