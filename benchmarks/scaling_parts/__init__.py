# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/scaling.py and startup.py: lines through points, training, corpora."""
