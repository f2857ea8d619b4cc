# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: saving, loading and resharding; and the one table between here and Hugging Face."""
