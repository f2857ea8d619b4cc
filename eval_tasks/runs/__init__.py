# SPDX-License-Identifier: Apache-2.0
"""An evaluation under way: which tasks there are, what is asked of the model, what has been saved so far."""
