# SPDX-License-Identifier: Apache-2.0
"""MMLU-STEM and the SAT."""
