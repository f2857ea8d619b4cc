# SPDX-License-Identifier: Apache-2.0
"""AlgebraicStack: mathematical code in 17 languages, from the Stack and from GitHub."""
