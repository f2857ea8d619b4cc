# SPDX-License-Identifier: Apache-2.0
"""The Llama and its relatives: attention, rotary, norms, initialisation, FLOPs, and the building of a rank's part."""

from megatron.model.llama import BuiltModel, build, dtype_of

__all__ = ["BuiltModel", "build", "dtype_of"]
