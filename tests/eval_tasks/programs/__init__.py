# SPDX-License-Identifier: Apache-2.0
"""As eval_tasks/programs."""
