# SPDX-License-Identifier: Apache-2.0
"""Megatron's token files: `P.bin` (ids), `P.idx` (where documents begin) and our `P.json` (where they came
from).

`P.idx` is MMIDIDX version 1, little-endian, as Megatron-LM, megatron-core and GPT-NeoX read it:

    9 bytes  "MMIDIDX\\0\\0"          8 bytes  version, 1            1 byte  code of the type of an id
    8 bytes  sequences n             8 bytes  length m of the document index
    n int32  tokens of each sequence
    n int64  byte in P.bin at which each sequence begins
    m int64  document index: the first sequence of each document, then n (here one each)

All three files appear together or not at all. They are written to `P.*.partial`; a file `P.commit` then says
that they are complete, and they are renamed. Who opens P after a kill between two of the renames does the
rest of them. Two token files that only make sense together (ids and their loss mask) are committed by the one
`P.commit`; a file `P.with`, written before it, names the other."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import sync

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_CODE_OF_DTYPE = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
_DTYPE_OF_CODE = {code: np.dtype(name) for name, code in _CODE_OF_DTYPE.items()}

# Below it ids are uint16, from it on int32: Megatron's `DType.optimal_dtype`, GPT-NeoX's
# `best_fitting_dtype`.
_UINT16_VOCABULARY = 65500
_SUFFIXES = (".bin", ".idx", ".json")

# Numbers of a stretch of documents that are in memory at a time, and bytes that one system call copies.
_BLOCK_DOCUMENTS = 1 << 20
_COPIED_BYTES = 1 << 28
_Lengths: TypeAlias = "array.array[int] | npt.NDArray[np.int32]"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of an id on disk."""
    return np.dtype(np.uint16 if vocab_size < _UINT16_VOCABULARY else np.int32)


class TokenizerRecord(BaseModel):
    """Which tokenizer wrote a token file."""

    model_config = ConfigDict(frozen=True)
    type: str
    fingerprint: str
    vocab_size: int
    eod_id: int
    eod_appended: bool


class SourceRecord(BaseModel):
    """One input file, or all text files of one input folder (sha256 over their relative paths and hashes)."""

    model_config = ConfigDict(frozen=True)
    path: str
    files: int
    bytes: int
    sha256: str


class Provenance(BaseModel):
    """Where documents came from and what happened to them on the way."""

    model_config = ConfigDict(frozen=True)
    tokenizer: TokenizerRecord
    text_bytes: int
    empty_documents: int
    broken_lines: int
    sources: list[SourceRecord]
    loss_mask: str = ""
    """Name of the token file beside this one that has a 1 for each token in the loss, 0 for the others."""
    pair: str = ""
    """SHA-256 over ids and loss mask, in the sidecars of both: one of other data is known by it."""
    form: str = ""
    """SHA-256 over the keys and the template that examples with answers were written with."""
    engine: str = ""
    checked_documents: int = 0
    reference_documents: int = 0


class Sidecar(Provenance):
    """The contents of `P.json`."""

    format: int = 1
    documents: int
    tokens: int
    dtype: str
    bin_bytes: int


class BeingWritten(UserError):
    """Another process writes the prefix."""


class AlreadyThere(UserError):
    """There is an output, and it is not to be replaced."""


@contextlib.contextmanager
def _write_errors(prefix: Path) -> Iterator[None]:
    """An `OSError` of writing, in words and with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free space there, or choose another --output-prefix",
            errno.EDQUOT: "your quota there is used up; free space, or choose another --output-prefix",
            errno.EFBIG: "a file may not grow that large there; raise the limit, or choose another "
            "--output-prefix",
        }.get(error.errno or 0, "choose a folder you may write to")
        raise UserError(
            f"{prefix}: cannot be written ({error.strerror or error}); nothing that was there has changed; "
            f"{remedy}"
        ) from None


def _sibling(prefix: Path, suffix: str) -> Path:
    """`prefix` with `suffix` behind its whole name (names such as `v1.2` have no suffix of their own)."""
    return prefix.with_name(prefix.name + suffix)


@contextlib.contextmanager
def _exclusive(prefix: Path) -> Iterator[None]:
    """Only one process writes a prefix; the lock goes with the process, however that ends."""
    path = _sibling(prefix, ".lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder removes the file: a lock on a removed file would keep nobody out.
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            reason = "another process is writing it; wait for that one to end"
            raise BeingWritten(f"{prefix}: {reason}") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def _rename_all(prefix: Path) -> None:
    """The renames that make a complete set of partial files the token file, and of the one that goes with it.
    May be repeated after a kill.
    """
    for one in (*_companion(prefix), prefix):
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.replace(_sibling(one, suffix + ".partial"), _sibling(one, suffix))
    sync(prefix.parent)
    for suffix in (".resume", ".with", ".commit"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_sibling(prefix, suffix))


def _companion(prefix: Path) -> list[Path]:
    """The prefix that `P.with` names, if any."""
    try:
        return [prefix.with_name(os.fsdecode(_sibling(prefix, ".with").read_bytes()))]
    except FileNotFoundError:
        return []


class TokenFileWriter:
    """Writes one token file; the only writer of the format.

        with TokenFileWriter(prefix, vocab_size) as writer:
            writer.add_document(ids)
            writer.finalize(provenance)

    Until `finalize` is through, whatever was at `prefix` stays as it is; leaving the block without it leaves
    nothing. With a `resume_key`, which says what is being written, a writer that was killed or interrupted is
    followed by one that need not copy again what `add_file` had brought to the disk.

    Errors: `UserError` for an existing output without `overwrite`, a second writer, and what the
    disk refuses."""

    def __init__(
        self,
        prefix: Path,
        vocab_size: int,
        overwrite: bool = False,
        may_be_empty: bool = False,
        resume_key: str | None = None,
    ) -> None:
        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.tokens = 0
        self.documents = 0
        """Documents added so far."""
        self._overwrite, self._may_be_empty = overwrite, may_be_empty
        self._resume_key = resume_key
        self.kept_bytes = 0
        """Bytes of `.bin` that a former writer has brought to the disk."""
        self._lengths: list[_Lengths] = []
        self._bin: IO[bytes] | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> TokenFileWriter:
        with _write_errors(self.prefix):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(_exclusive(self.prefix))
            try:
                if _sibling(self.prefix, ".commit").exists():
                    _rename_all(self.prefix)
                existing = [path for s in _SUFFIXES if (path := _sibling(self.prefix, s)).exists()]
                if existing and not self._overwrite:
                    raise AlreadyThere(
                        f"{existing[0]}: exists; pass --overwrite to replace it, or choose another prefix"
                    )
                self._bin = self._open_partial()
            except BaseException:
                self._held.close()
                raise
        return self

    def _open_partial(self) -> IO[bytes]:
        path, resume = _sibling(self.prefix, ".bin.partial"), _sibling(self.prefix, ".resume")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_sibling(self.prefix, ".with"))  # of a writer that was killed before it could commit
        self.kept_bytes = self._bytes_to_keep(resume, path) if self._resume_key is not None else 0
        if self.kept_bytes == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(resume)
            return open(path, "wb", buffering=1 << 20)
        os.truncate(path, self.kept_bytes)
        return open(path, "r+b", buffering=1 << 20)

    def _bytes_to_keep(self, resume: Path, partial: Path) -> int:
        try:
            key, kept = resume.read_text(encoding="utf-8").split()
            return int(kept) if key == self._resume_key and partial.stat().st_size >= int(kept) else 0
        except (FileNotFoundError, ValueError):
            return 0

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if self._bin is not None:  # not finalized
                with contextlib.suppress(OSError):  # what is still buffered may not fit either
                    self._bin.close()
                is_interrupted = kind is not None and not issubclass(kind, Exception)
                if self._resume_key is None or not is_interrupted:
                    self._discard()
        finally:
            self._held.close()

    def _discard(self) -> None:
        for suffix in (*(suffix + ".partial" for suffix in _SUFFIXES), ".resume", ".with"):
            with contextlib.suppress(OSError):
                os.unlink(_sibling(self.prefix, suffix))

    def add_document(self, ids: Sequence[int] | npt.NDArray[Any]) -> None:
        """Add one document of at least one token."""
        tokens = np.asarray(ids)
        self.add_documents(tokens, np.asarray([len(tokens)]))

    def add_documents(self, tokens_T: npt.NDArray[Any], lengths_D: npt.NDArray[Any]) -> None:
        """Add D documents, laid end to end in `tokens_T`, of `lengths_D` tokens each (at least one)."""
        assert self._bin is not None, "add_documents outside the with block"
        if len(lengths_D) == 0:
            return
        longest = int(lengths_D.max())
        if lengths_D.min() < 1 or longest > np.iinfo(np.int32).max or int(lengths_D.sum()) != len(tokens_T):
            raise ValueError(
                f"lengths {lengths_D} do not cut {len(tokens_T)} tokens into documents of 1 to 2**31-1"
            )
        if tokens_T.min() < 0 or tokens_T.max() >= self.vocab_size:
            bad = int(tokens_T.min()) if tokens_T.min() < 0 else int(tokens_T.max())
            raise ValueError(f"token id {bad} is outside the vocabulary of {self.vocab_size}")
        with _write_errors(self.prefix):
            self._bin.write(np.ascontiguousarray(tokens_T, dtype=self.dtype.newbyteorder("<")).tobytes())
        if not self._lengths or not isinstance(self._lengths[-1], array.array):
            self._lengths.append(array.array("i"))
        tail = self._lengths[-1]
        assert isinstance(tail, array.array)
        tail.frombytes(np.ascontiguousarray(lengths_D, dtype=np.int32).tobytes())
        self.documents += len(lengths_D)
        self.tokens += len(tokens_T)

    def add_file(self, part: TokenFile, is_checked: bool = True) -> None:
        """Add all documents of another token file of the same vocabulary and type of ids; its bytes are
        copied. Its ids are looked through unless they are `is_checked` already.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        assert self._bin is not None, "add_file outside the with block"
        if part.dtype != self.dtype or not part.is_end_to_end():
            raise ValueError(f"{part.prefix} has ids of {part.dtype.name} or gaps between its documents")
        begin = self.tokens * self.dtype.itemsize
        end = begin + part.tokens * self.dtype.itemsize
        with _write_errors(self.prefix), open(_sibling(part.prefix, ".bin"), "rb") as source:
            position = min(max(begin, self.kept_bytes), end)
            self._bin.seek(position)
            while position < end:
                step = min(end - position, _COPIED_BYTES)
                _copy_bytes(source, position - begin, self._bin, step)
                if not is_checked:  # now, while the bytes are in memory
                    part.check_ids(self.vocab_size, position - begin, step)
                position += step
                self._mark_kept(position)
        self._lengths.append(part.lengths_D)
        self.documents += part.documents
        self.tokens += part.tokens

    def _mark_kept(self, position: int) -> None:
        """Note that the bytes up to `position` are on the disk."""
        assert self._bin is not None
        if self._resume_key is not None:
            os.fsync(self._bin.fileno())
            path = _sibling(self.prefix, ".resume")
            partial = _sibling(self.prefix, ".resume.partial")
            partial.write_text(f"{self._resume_key} {position}\n", encoding="utf-8")
            os.replace(partial, path)

    def complete(self, provenance: Provenance) -> Sidecar:
        """Write index and sidecar, and bring all to the disk; returns what the sidecar says. The files take
        their names with those of the writer whose `finalize` is given this one.
        """
        assert self._bin is not None, "complete outside the with block, or twice"
        if not self.documents and not self._may_be_empty:
            raise UserError(
                f"{self.prefix}: no document has any token, so there is nothing to write; check --input"
            )
        sidecar = Sidecar(
            **dict(provenance),
            documents=self.documents,
            tokens=self.tokens,
            dtype=self.dtype.name,
            bin_bytes=self.tokens * self.dtype.itemsize,
        )
        with _write_errors(self.prefix):
            self._bin.flush()
            os.fsync(self._bin.fileno())
            self._write(".idx", self._index_parts())
            self._write(".json", [sidecar.model_dump_json(indent=1).encode("utf-8") + b"\n"])
            self._bin.close()
        return sidecar

    def finalize(self, provenance: Provenance, companion: TokenFileWriter | None = None) -> Sidecar:
        """Complete the files and put all three in place, and those of a completed companion in the same
        folder with them: all or none. Returns what the sidecar says.
        """
        sidecar = self.complete(provenance)
        with _write_errors(self.prefix):
            if companion is not None:
                assert companion.prefix.parent == self.prefix.parent
                with open(_sibling(self.prefix, ".with"), "wb") as file:  # nobody reads it before the commit
                    file.write(os.fsencode(companion.prefix.name))
                    file.flush()
                    os.fsync(file.fileno())
            self._write_commit()
        if companion is not None:
            companion._bin = None
        self._bin = None  # from here on the new files count: nothing is discarded any more
        try:
            _rename_all(self.prefix)
        except OSError as error:
            raise UserError(
                f"{self.prefix}: is written but could not be renamed ({error.strerror or error}); "
                "the renames are done when it is next opened or written where that is possible"
            ) from None
        return sidecar

    def _write(self, suffix: str, parts: Iterable[bytes]) -> None:
        with open(_sibling(self.prefix, suffix + ".partial"), "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    def _write_commit(self) -> None:
        sync(self.prefix.parent)
        descriptor = os.open(_sibling(self.prefix, ".commit"), os.O_WRONLY | os.O_CREAT, 0o666)
        os.close(descriptor)
        sync(self.prefix.parent)

    def _index_parts(self) -> Iterator[bytes]:
        """`P.idx` in blocks, so that any number of documents takes the same memory."""
        code = _CODE_OF_DTYPE[self.dtype.name]
        yield _HEADER.pack(_MAGIC, _VERSION, code, self.documents, self.documents + 1)
        for block in self._length_blocks():
            yield block.astype("<i4").tobytes()
        position = 0  # a Python integer, and int64 below: a corpus passes 2**31 bytes early
        for block in self._length_blocks():
            ends = np.cumsum(block, dtype=np.int64) * self.dtype.itemsize + position
            yield np.concatenate([[position], ends[:-1]]).astype("<i8").tobytes()
            position = int(ends[-1])
        for begin in range(0, self.documents + 1, _BLOCK_DOCUMENTS):
            end = min(begin + _BLOCK_DOCUMENTS, self.documents + 1)
            yield np.arange(begin, end, dtype="<i8").tobytes()

    def _length_blocks(self) -> Iterator[npt.NDArray[np.int32]]:
        for lengths in self._lengths:
            yield from _blocks(np.asarray(lengths, dtype=np.int32))


def _blocks(values_D: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for begin in range(0, len(values_D), _BLOCK_DOCUMENTS):
        yield values_D[begin : begin + _BLOCK_DOCUMENTS]


def _copy_bytes(source: IO[bytes], begin: int, target: IO[bytes], count: int) -> None:
    """Copy `count` bytes of `source` from `begin` on to the position of `target`, within the kernel."""
    target.flush()
    end = begin + count
    while begin < end:
        copied = os.sendfile(target.fileno(), source.fileno(), begin, end - begin)
        if copied == 0:
            raise OSError(errno.EIO, "the file to copy is shorter than it was")
        begin += copied
    target.seek(0, os.SEEK_END)  # its buffer learns that the file has grown


@dataclass(frozen=True)
class TokenFile:
    """A token file of ours or of others, opened for reading and found whole.

    A "sequence" of the format is a document here, as GPT-NeoX treats it.
    """

    prefix: Path
    dtype: np.dtype[Any]
    lengths_D: npt.NDArray[np.int32]
    pointers_D: npt.NDArray[np.int64]
    tokens: int
    sidecar: Sidecar | None

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.lengths_D)

    @property
    def index_path(self) -> Path:
        """`P.idx`."""
        return _sibling(self.prefix, ".idx")

    def document(self, number: int) -> npt.NDArray[Any]:
        """The ids of one document."""
        return np.fromfile(
            _sibling(self.prefix, ".bin"),
            dtype=self.dtype.newbyteorder("<"),
            count=int(self.lengths_D[number]),
            offset=int(self.pointers_D[number]),
        )

    def check_ids(self, vocab_size: int, begin: int, count: int) -> None:
        """Look through `count` bytes of ids from the byte `begin` on.

        Raises:
            UserError: one is outside the vocabulary.
        """
        size, dtype = self.dtype.itemsize, self.dtype.newbyteorder("<")
        path = _sibling(self.prefix, ".bin")
        ids = np.memmap(path, dtype=dtype, mode="r", offset=begin, shape=(count // size,))
        for bad in (int(ids.min()), int(ids.max())):
            if not 0 <= bad < vocab_size:
                raise UserError(
                    f"{path}: holds id {bad}, which its tokenizer with {vocab_size} ids does not have, so "
                    "it is damaged; copy it again, or tokenise again"
                )

    def is_end_to_end(self) -> bool:
        """Whether the documents follow each other in the order of their numbers, from the beginning on."""
        position = 0
        for lengths, pointers in zip(_blocks(self.lengths_D), _blocks(self.pointers_D), strict=True):
            ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize + position
            if pointers[0] != position or not np.array_equal(pointers[1:], ends[:-1]):
                return False
            position = int(ends[-1])
        return True

    @classmethod
    def open(cls, prefix: Path, may_be_empty: bool = False) -> TokenFile:
        """Open `prefix` (a path without .bin and .idx) and check that index, ids and sidecar belong together.

        Errors: `UserError` naming the file, what is wrong with it and what to do.
        """
        prefix = Path(prefix)
        _finish_interrupted(prefix)
        index, binary = _sibling(prefix, ".idx"), _sibling(prefix, ".bin")
        for path in (index, binary):
            if not path.is_file():
                raise UserError(f"{path}: does not exist; {_prefix_hint(prefix)}")
        try:
            dtype, lengths, pointers = _read_index(index, may_be_empty)
            bin_bytes = binary.stat().st_size
        except OSError as error:
            raise UserError(
                f"{index}: cannot be read ({error.strerror or error}); check its permissions"
            ) from None
        shortest, first, furthest, tokens = _extent(lengths, pointers, dtype.itemsize)
        if shortest < 0 or first < 0 or furthest > bin_bytes:
            raise UserError(
                f"{index}: points at {furthest} bytes of {binary.name}, which has {bin_bytes}; "
                "the two do not belong together or one is cut off: copy both again, or tokenise again"
            )
        sidecar = _read_sidecar(_sibling(prefix, ".json"))
        if sidecar and (sidecar.documents, sidecar.tokens, sidecar.bin_bytes) != (
            len(lengths),
            tokens,
            bin_bytes,
        ):
            raise UserError(
                f"{prefix}.json: tells of {sidecar.documents} documents, {sidecar.tokens} tokens and "
                f"{sidecar.bin_bytes} bytes, but {index.name} and {binary.name} have {len(lengths)}, "
                f"{tokens} and "
                f"{bin_bytes}; copy all three files again, or remove the .json of other data"
            )
        return cls(prefix, dtype, lengths, pointers, tokens, sidecar)


def _extent(
    lengths_D: npt.NDArray[np.int32], pointers_D: npt.NDArray[np.int64], id_bytes: int
) -> tuple[int, int, int, int]:
    """The shortest document, the first byte, the end of the last byte and all tokens, block by block."""
    shortest = first = furthest = tokens = 0
    for lengths, pointers in zip(_blocks(lengths_D), _blocks(pointers_D), strict=True):
        ends = pointers + lengths.astype(np.int64) * id_bytes
        shortest, first = min(shortest, int(lengths.min())), min(first, int(pointers.min()))
        # a damaged pointer may make its end wrap around
        furthest = max(furthest, int(ends.max()), int(pointers.max()))
        tokens += int(lengths.sum(dtype=np.int64))
    return shortest, first, furthest, tokens


def _finish_interrupted(prefix: Path) -> None:
    """Finish the renames of a writer that was killed between them."""
    if not _sibling(prefix, ".commit").exists():
        return
    try:
        with _exclusive(prefix):
            if _sibling(prefix, ".commit").exists():
                _rename_all(prefix)
    except OSError as error:
        raise UserError(
            f"{prefix}: its writer was killed while it put the finished files in place, and that cannot be "
            "finished "
            f"from here ({error.strerror or error}); open it once as a user who may write there"
        ) from None


def _prefix_hint(prefix: Path) -> str:
    if prefix.suffix in (".bin", ".idx"):
        return f"give the path without its suffix: {prefix.with_suffix('')}"
    longer = sorted(prefix.parent.glob(f"{prefix.name}_*_document.idx")) if prefix.parent.is_dir() else []
    if longer:
        return f"did you mean {longer[0].with_suffix('')}?"
    return "make it with tools/preprocess_data.py, or correct the path (it is given without .bin and .idx)"


def _read_index(
    path: Path, may_be_empty: bool
) -> tuple[np.dtype[Any], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Type of an id, lengths in tokens and beginnings in bytes of all sequences."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[: len(_MAGIC)] != _MAGIC:
        raise UserError(
            f"{path}: is not an index of Megatron (MMIDIDX); tokenise with tools/preprocess_data.py"
        )
    _, version, code, sequences, document_index = _HEADER.unpack(head)
    if version != _VERSION or code not in _DTYPE_OF_CODE:
        raise UserError(
            f"{path}: has version {version} and id type {code}; "
            f"version {_VERSION} with integer ids is read here: tokenise again"
        )
    expected = _HEADER.size + 12 * sequences + 8 * document_index
    if size < expected:
        raise UserError(
            f"{path}: has {size} of {expected} bytes, so it is cut off; copy it again, or tokenise again"
        )
    if sequences == 0 and not may_be_empty:
        raise UserError(f"{path}: holds no documents; tokenise a corpus that has some")
    whole = np.memmap(path, mode="r")
    lengths = np.frombuffer(whole, dtype="<i4", count=sequences, offset=_HEADER.size)
    pointers = np.frombuffer(whole, dtype="<i8", count=sequences, offset=_HEADER.size + 4 * sequences)
    last = np.frombuffer(whole, dtype="<i8", count=1, offset=expected - 8) if document_index else [0]
    if int(last[0]) != sequences:
        raise UserError(
            f"{path}: its document index does not end at its {sequences} sequences; tokenise again"
        )
    return _DTYPE_OF_CODE[code], lengths, pointers


def _read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar, or None where others made the token file."""
    if not path.is_file():
        return None
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path}: is not a sidecar of tools/preprocess_data.py ({where}: {first['msg']}); "
            "copy it again, or remove it and its tokenizer goes unchecked"
        ) from None
