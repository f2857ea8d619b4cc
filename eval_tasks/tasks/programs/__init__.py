# SPDX-License-Identifier: Apache-2.0
"""Programs in Python as answers."""
