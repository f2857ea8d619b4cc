# SPDX-License-Identifier: Apache-2.0
"""The parts of `tools/quickstart.py`: base model, corpus, steps that resume, and what is shown at the end."""
