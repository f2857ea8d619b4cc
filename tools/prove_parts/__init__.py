# SPDX-License-Identifier: Apache-2.0
"""The parts of tools/prove.py: provers behind one interface, proposers of tactics, search, records."""
