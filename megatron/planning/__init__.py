# SPDX-License-Identifier: Apache-2.0
"""What a run will cost: groups, memory, time, checkpoints, and better layouts. No torch."""
