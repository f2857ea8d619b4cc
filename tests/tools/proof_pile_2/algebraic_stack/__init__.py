# SPDX-License-Identifier: Apache-2.0
"""Tests of tools/proof_pile_2/algebraic_stack."""
