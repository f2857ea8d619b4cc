# SPDX-License-Identifier: Apache-2.0
"""The recipe `open-web-math`: web pages in, documents with their mathematics as LaTeX out."""
