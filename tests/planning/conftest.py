# SPDX-License-Identifier: Apache-2.0
"""What tests of whole plans share."""

from __future__ import annotations

import pytest

from megatron.planning import plan as planning


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a login node: nothing is built, all of the plan is arithmetic."""
    monkeypatch.setattr(planning, "missing_packages", lambda: ["torch", "megatron.core"])
