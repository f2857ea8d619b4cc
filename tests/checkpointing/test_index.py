# SPDX-License-Identifier: Apache-2.0
"""Programs in a checkpoint's pickles are not run, by tools or by training; an index leads nowhere else."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing import convert, index, tensors
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama
from tests.runs import Place, make_place


class Program:
    """What a malicious pickle does: it names something to be called."""

    def __init__(self, trace: Path) -> None:
        self._command = f"touch {trace}"

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


@pytest.fixture
def step(tmp_path: Path) -> Path:
    convert.hf_to_neox(save_hf_llama(tmp_path / "hf"), tmp_path / "neox", 1)
    return tmp_path / "neox" / "global_step0"


def test_a_program_in_an_index_is_not_run(step: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (step / ".metadata").write_bytes(pickle.dumps(Program(trace)))
    with pytest.raises(UserError, match=r"the file \.metadata is damaged: it holds .*system"):
        tensors.open_model(step)
    with pytest.raises(UserError, match="system"):
        convert.neox_to_hf(step, tmp_path / "out")
    assert not trace.exists()
    pickle.loads((step / ".metadata").read_bytes())
    assert trace.exists(), "the program would have run"


class OldMember:
    """A member of an enumeration as Python 3.11.0 to 3.11.3 pickles it."""

    def __init__(self, owner: Any, name: str) -> None:
        self._call = getattr, (owner, name)

    def __reduce__(self) -> Any:
        return self._call


def test_members_of_enumerations_are_read_as_every_python_writes_them(step: Path) -> None:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as FORMATS

    found = index.read_index(step)
    for member in (OldMember(FORMATS, "TORCH_CONTIGUOUS_FORMAT"), FORMATS.TORCH_CONTIGUOUS_FORMAT):
        changed = dataclasses.replace(found, planner_data=member)
        (step / ".metadata").write_bytes(pickle.dumps(changed))
        assert index.read_index(step).planner_data is FORMATS.TORCH_CONTIGUOUS_FORMAT


@pytest.mark.parametrize("name", ["__init__", "__class__", "mro", "no_member"])
def test_nothing_else_is_taken_from_a_class(step: Path, name: str) -> None:
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

    for owner in (_MEM_FORMAT_ENCODING, Metadata):
        (step / ".metadata").write_bytes(pickle.dumps(OldMember(owner, name)))
        with pytest.raises(UserError, match="which is not of an index"):
            tensors.open_model(step)


@pytest.mark.parametrize("place", ["../other.distcp", "/etc/passwd"])
def test_an_index_that_leads_outside_is_refused(step: Path, place: str) -> None:
    found = index.read_index(step)
    key, entry = next(iter(found.storage_data.items()))
    found.storage_data[key] = dataclasses.replace(entry, relative_path=place)
    (step / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(UserError, match="outside the checkpoint"):
        tensors.open_model(step)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04N.", b"\x80\x04}."])
def test_an_index_of_something_else_is_damage(step: Path, content: bytes) -> None:
    (step / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=r"\.metadata is damaged"):
        tensors.open_model(step)


def test_a_program_in_common_pt_is_not_run_when_training_resumes(tmp_path: Path) -> None:
    """The manifest is made to fit, as somebody who means harm would."""
    from megatron.checkpointing import manifest

    place: Place = make_place(tmp_path)
    done = place.train(tmp_path / "run", ranks=1, train_iters=2)
    assert done.status == 0, done.err
    step, trace = tmp_path / "run" / "save" / "global_step2", tmp_path / "trace"
    common = torch.load(step / "common.pt", weights_only=True)
    torch.save({**common, "more": Program(trace)}, step / "common.pt")
    manifest.seal(step)
    again = place.train(tmp_path / "run", ranks=1, train_iters=3)
    assert again.status == 2
    assert "cannot be read" in again.err
    assert not trace.exists()
    torch.load(step / "common.pt", weights_only=False)
    assert trace.exists(), "the program would have run"
