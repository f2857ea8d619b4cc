# SPDX-License-Identifier: Apache-2.0
"""Models as lm-eval takes them, beside those that it has itself."""
