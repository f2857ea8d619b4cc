# SPDX-License-Identifier: Apache-2.0
"""What tools/prove.py is made of: provers behind one interface, proposers of tactics, the search, its records."""
