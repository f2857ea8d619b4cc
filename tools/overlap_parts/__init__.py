# SPDX-License-Identifier: Apache-2.0
"""The parts of tools/overlap.py: test items, the two searches, the run over a corpus, what is made of it."""
