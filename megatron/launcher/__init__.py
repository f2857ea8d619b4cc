# SPDX-License-Identifier: Apache-2.0
"""Where ranks come from. Needs no torch, and starts in a blink.

Nothing is imported here: `megatron.launcher.rank` runs once for every rank of a run, before anything else.
"""
