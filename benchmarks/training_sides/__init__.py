# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/train_gpu.py: shapes, a file for each side, measuring, and the report."""
