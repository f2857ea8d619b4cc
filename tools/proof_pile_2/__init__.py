# SPDX-License-Identifier: Apache-2.0
"""Proof-Pile-2's recipes: mathematical corpora out of code, papers and the web. See docs/proof_pile_2.md."""
