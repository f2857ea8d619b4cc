# SPDX-License-Identifier: Apache-2.0
"""Statistics of results: intervals, pass@k, majority voting, comparison of two models."""
