# SPDX-License-Identifier: Apache-2.0
"""The parts of tools/mixture.py: mixtures to try, runs of them, the surface through what they measured."""
