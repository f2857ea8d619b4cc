# SPDX-License-Identifier: Apache-2.0
"""What a YAML file names as `process_results`, for those who run the tasks with lm-eval's own command.

evaluate.py does not use it: it saves samples, and its verdicts are made from them offline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def process_likelihood(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The log-likelihood of the reference with its bytes; lm-eval makes a perplexity per byte of all."""
    likelihood, _ = results[0]
    # A blank stands before the reference and is scored with it.
    return {"byte_perplexity": (likelihood, len(f" {doc['reference']}".encode()))}


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Placeholder."""
    raise NotImplementedError
