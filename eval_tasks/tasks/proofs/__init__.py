# SPDX-License-Identifier: Apache-2.0
"""Whole formal proofs from informal ones."""
