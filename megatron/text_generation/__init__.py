# SPDX-License-Identifier: Apache-2.0
"""Text from a model: many requests at a time with a KV cache, and the likelihood of given text."""
