# SPDX-License-Identifier: Apache-2.0
"""Answer rules: the answer of a generation, when two answers are the same, which one wins a vote."""
