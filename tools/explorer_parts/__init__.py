# SPDX-License-Identifier: Apache-2.0
"""The Sample Explorer: what is read, how it is gathered and written, and the page itself."""
