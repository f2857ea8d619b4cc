# SPDX-License-Identifier: Apache-2.0
"""Training: the loop, the step, the optimizer and its schedule, validation."""
