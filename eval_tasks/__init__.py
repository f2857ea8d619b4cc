# SPDX-License-Identifier: Apache-2.0
"""What the paper measured: lm-eval tasks, prompts, answer rules, and results beside the published ones."""
