# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a checkpoint's files is found by the manifest, and the file is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.checkpointing import manifest
from tests.runs import Place, make_place

Harm = Callable[[Path], None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as one rank writes it, with optimizer and what travels."""
    place: Place = make_place(tmp_path_factory.mktemp("place"))
    done = place.train(place.folder, ranks=1, train_iters=2)
    assert done.status == 0, done.err
    return place.folder / "save" / "global_step2"


def flip(path: Path) -> None:
    """Flips one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_first(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 32
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Takes the last byte off."""
    path.write_bytes(path.read_bytes()[:-1])


def add(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


HARMS: dict[str, tuple[Harm, str]] = {
    "flipped": (flip, "is not what was written"),
    "flipped at its start": (flip_first, "is not what was written"),
    "cut": (cut, "bytes"),
    "longer": (add, "bytes"),
    "missing": (Path.unlink, "is missing"),
}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_has_all_kinds_of_files_and_is_whole(checkpoint: Path) -> None:
    there = set(files(checkpoint))
    assert there >= {".metadata", "__0_0.distcp", "checkpoint.json", "common.pt", "manifest.json"}
    assert there >= {"metadata.json", "base/config.json", "base/tokenizer.json"}
    verified = manifest.verify(checkpoint, contents=True)
    assert verified.has_manifest
    assert verified.files == len(there) - 1, "all but the manifest itself"
    content = json.loads((checkpoint / "manifest.json").read_text())
    tensors = (checkpoint / "__0_0.distcp").read_bytes()
    assert content["files"]["__0_0.distcp"] == {
        "size_bytes": len(tensors),
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }


@pytest.mark.parametrize("how", HARMS)
def test_harm_to_any_file_is_found_and_the_file_named(checkpoint: Path, tmp_path: Path, how: str) -> None:
    harm, words = HARMS[how]
    for name in files(checkpoint):
        folder = tmp_path / name.replace("/", "-") / "global_step2"
        shutil.copytree(checkpoint, folder)
        harm(folder / name)
        for parts in (1, 3):
            found = []
            for part in range(parts):
                try:
                    manifest.verify(folder, contents=True, part=part, parts=parts)
                except manifest.Damaged as damage:
                    found.append(str(damage))
            assert found, name
            assert all(f"the file {name} " in text for text in found)
            if name != "manifest.json" or how == "missing":
                assert len(found) == 1 or name == "manifest.json"
                assert words in found[0]


def test_sizes_alone_see_what_is_cut_and_not_what_is_flipped(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "global_step2"
    shutil.copytree(checkpoint, folder)
    flip(folder / "__0_0.distcp")
    manifest.verify(folder, contents=False)
    cut(folder / "__0_0.distcp")
    with pytest.raises(manifest.Damaged, match="__0_0.distcp has"):
        manifest.verify(folder, contents=False)


def test_every_byte_of_the_manifest_and_the_record_counts(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "global_step2"
    shutil.copytree(checkpoint, folder)
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(manifest.Damaged, match="manifest.json"):
            manifest.read(folder)


def test_a_manifest_does_not_lead_outside(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "global_step2"
    shutil.copytree(checkpoint, folder)
    (folder / "manifest.json").write_text(manifest._render({"../passwd": manifest.FileEntry(1, "0" * 64)}))
    with pytest.raises(manifest.Damaged, match=r"names ../passwd, which lies outside"):
        manifest.verify(folder, contents=True)


def test_a_checkpoint_from_before_manifests_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "global_step2"
    shutil.copytree(checkpoint, folder)
    (folder / "manifest.json").unlink()
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["has_manifest"], record["data"]
    (folder / "checkpoint.json").write_text(json.dumps(record))
    assert manifest.verify(folder, contents=True) == manifest.Verified(has_manifest=False)


def test_imported_checkpoints_have_one_too(checkpoint: Path) -> None:
    imported = checkpoint.parents[1] / "base" / "global_step0"
    assert manifest.verify(imported, contents=True).has_manifest
