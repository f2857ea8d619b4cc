# SPDX-License-Identifier: Apache-2.0
"""Programs that a model wrote: run where they can harm nothing, and judged."""
