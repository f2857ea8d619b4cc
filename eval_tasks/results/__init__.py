# SPDX-License-Identifier: Apache-2.0
"""A results folder: samples, verdicts, votes, measures, tables and plots beside published figures."""
