# SPDX-License-Identifier: Apache-2.0
"""A corpus to a token file: processes read and tokenise parts of it, one puts the parts together.

Each part is a token file of its own, in a folder beside the output, under a name that is a hash over its
text's file and stretch and over all settings. So a run that is started again finds what it has done before,
and several nodes may fill one folder. What is put together at the end is the same to the byte for any number
of processes, nodes and interruptions. Memory is bounded by a chunk of text a process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.data.parts import Plan, ReadChunk, Stretches, Task, key_of, unreadable
from megatron.data.progress import Progress, say_made, say_result
from megatron.data.readers import Broken, Corpus, Input, source_records
from megatron.data.shares import Share
from megatron.data.token_file import (
    AlreadyThere,
    BeingWritten,
    Provenance,
    Sidecar,
    TokenFile,
    TokenFileWriter,
    TokenizerRecord,
    token_dtype,
)
from megatron.data.workers import WorkerDied, Workers
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from megatron.tokenizer import Tokenizer, build_tokenizer
from megatron.tokenizer.fast import (
    Mismatch,
    Recipe,
    build_engine,
    compare,
    library_recipe,
    plan_engine,
)

_SHOWN_BROKEN_LINES = 20
# Of each part the first document and every so many are encoded by the tokenizer's own library too.
CHECKED_EVERY_DOCUMENTS = 128
_CHECKED_CHARACTERS = 1 << 16
_PARTS_FORMAT = 1


@dataclass(frozen=True)
class TokenizerSpec:
    """What a process needs to build the tokenizer."""

    tokenizer_type: str
    vocab_file: Path
    eod: str | None = None

    def build(self) -> Tokenizer:
        """The tokenizer."""
        return build_tokenizer(self.tokenizer_type, self.vocab_file, self.eod)


@dataclass(frozen=True)
class Wish:
    """What is wanted of a corpus: how it is tokenised, by how many processes, and which share of it here."""

    spec: TokenizerSpec
    append_eod: bool
    workers: int = 1
    skip_broken: bool = False
    overwrite: bool = False
    log_interval_seconds: float = 5.0
    allow_fast: bool = True
    share: Share = field(default_factory=Share)


@dataclass(frozen=True)
class Hashes:
    """The task of hashing inputs."""

    files: tuple[Input, ...]


@dataclass(frozen=True)
class Settings:
    """What parts are made with, beside their text."""

    spec: TokenizerSpec
    recipe: Recipe
    folder: Path
    settings_key: str
    append_eod: bool
    skip_broken: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, wish: Wish, recipe: Recipe, folder: Path) -> Settings:
        """Everything that a part depends on goes into the key."""
        parts = [
            *(_PARTS_FORMAT, tokenizer.name, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eod_id),
            *(wish.append_eod, wish.skip_broken, recipe.name, recipe.version, recipe.definition),
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        return cls(wish.spec, recipe, folder, key, wish.append_eod, wish.skip_broken)

    def prefix(self, key: str) -> Path:
        """Where the part of this key lies."""
        return self.folder / f"{self.settings_key}-{key}"

    def open(self, key: str) -> TokenFile | None:
        """The part, if it is there and whole."""
        try:
            return TokenFile.open(self.prefix(key), may_be_empty=True)
        except UserError:
            return None

    def stretches_file(self, task: Stretches) -> Path:
        """Where the numbers of the stretches of a compressed file are kept."""
        return self.folder / f"{task.file_key}.stretches"

    def hashes_file(self, task: Hashes) -> Path:
        """Where the SHA-256 of inputs are kept."""
        return self.folder / f"{key_of(task.files)}.sha256"


@dataclass(frozen=True)
class Advance:
    """What a process reports of the work since its last report."""

    input_bytes: int = 0
    text_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    broken: tuple[Broken, ...] = ()


@dataclass
class _Counts:
    """What a part's sidecar says beside its documents."""

    text_bytes: int = 0
    empty_documents: int = 0
    broken_lines: int = 0
    checked_documents: int = 0
    reference_documents: int = 0


class _PartMaker:
    """Does tasks in a process."""

    def __init__(self, settings: Settings) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes run beside each other, not threads
        self._settings = settings
        self._tokenizer = settings.spec.build()
        self._engine = build_engine(settings.recipe, self._tokenizer)

    def __call__(self, task: Task | Hashes) -> Iterator[Advance]:
        """Do a task; what is done already is passed over."""
        files = task.files if isinstance(task, Hashes) else task.inputs
        try:
            if isinstance(task, Hashes):
                self._hash(task)
            elif isinstance(task, Stretches):
                yield from self._stretches(task)
            else:
                if (done := self._already(task.key)) is not None:
                    yield replace(done, input_bytes=task.input_bytes)
                else:
                    yield from self._part(task.key, task.chunks(), task.inputs)
            for found in files:
                found.check_unchanged()
        except OSError as error:
            raise unreadable(Path(error.filename or files[0].path), error) from None

    def _hash(self, task: Hashes) -> None:
        path = self._settings.hashes_file(task)
        if not path.exists():
            write_whole(path, json.dumps([found.sha256() for found in task.files]))

    def _stretches(self, task: Stretches) -> Iterator[Advance]:
        numbers = []
        for number, chunks in task.stretches():
            numbers.append(number)
            if number % task.modulus != task.residue:
                continue
            if (done := self._already(task.key(number))) is not None:
                yield done
            else:
                yield from self._part(task.key(number), chunks, task.inputs)
        write_whole(self._settings.stretches_file(task), json.dumps(numbers))

    def _already(self, key: str) -> Advance | None:
        """What a part holds that was made before."""
        part = self._settings.open(key)
        if part is None or part.sidecar is None:
            return None
        return Advance(0, part.sidecar.text_bytes, part.documents, part.tokens)

    def _part(self, key: str, chunks: Iterator[ReadChunk], inputs: Iterable[Input]) -> Iterator[Advance]:
        counts = _Counts()
        prefix = self._settings.prefix(key)
        with TokenFileWriter(prefix, self._tokenizer.vocab_size, overwrite=True, may_be_empty=True) as writer:
            for chunk, input_bytes in chunks:
                yield self._chunk(list(chunk.records()), input_bytes, writer, counts)
            for found in inputs:
                found.check_unchanged()
            writer.finalize(
                Provenance(
                    tokenizer=tokenizer_record(self._tokenizer, self._settings.append_eod),
                    engine=engine_name(self._settings.recipe),
                    sources=[],
                    **vars(counts),
                )
            )

    def _chunk(
        self, records: list[Any], input_bytes: int, writer: TokenFileWriter, counts: _Counts
    ) -> Advance:
        """Tokenise the records of a chunk. A document without a single token is left out and counted, as
        GPT-NeoX leaves it out.
        """
        broken = tuple(record for record in records if isinstance(record, Broken))
        if broken and not self._settings.skip_broken:
            raise UserError(stopped_at(broken))
        counts.broken_lines += len(broken)
        documents: list[npt.NDArray[Any]] = []
        text_bytes = 0
        for record in records:
            if isinstance(record, Broken):
                continue
            text_bytes += len(record.text) if record.text.isascii() else len(record.text.encode("utf-8"))
            ids = self._encode(record.text, writer.documents + len(documents), counts)
            if len(ids):
                documents.append(ids)
            else:
                counts.empty_documents += 1
        counts.text_bytes += text_bytes
        tokens = self._write(documents, writer)
        return Advance(input_bytes, text_bytes, len(documents), tokens, broken)

    def _encode(self, text: str, number: int, counts: _Counts) -> npt.NDArray[Any]:
        before = self._engine.reference_documents
        ids = self._engine.encode(text)
        by_library = self._engine.reference_documents - before
        counts.reference_documents += by_library
        if not by_library and number % CHECKED_EVERY_DOCUMENTS == 0:
            compare(self._engine, self._tokenizer, [text[:_CHECKED_CHARACTERS]])
            counts.checked_documents += 1
        return ids

    def _write(self, documents: list[npt.NDArray[Any]], writer: TokenFileWriter) -> int:
        """Lay documents end to end, each with its end; returns how many tokens that is."""
        eod = int(self._settings.append_eod)
        lengths = np.fromiter((len(ids) + eod for ids in documents), dtype=np.int64, count=len(documents))
        tokens = np.empty(int(lengths.sum()), dtype=token_dtype(self._tokenizer.vocab_size))
        begin = 0
        for ids in documents:
            tokens[begin : begin + len(ids)] = ids
            begin += len(ids) + eod
        if eod and len(documents):
            tokens[np.cumsum(lengths) - 1] = self._tokenizer.eod_id
        writer.add_documents(tokens, lengths)
        return len(tokens)


def tokenizer_record(tokenizer: Tokenizer, append_eod: bool) -> TokenizerRecord:
    """What a sidecar says of the tokenizer."""
    return TokenizerRecord(
        type=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        eod_appended=append_eod,
    )


def engine_name(recipe: Recipe) -> str:
    """What a sidecar says of the encoder, such as "gigatoken 0.10.0"."""
    return f"{recipe.name} {recipe.version}"


def stopped_at(broken: tuple[Broken, ...]) -> str:
    shown = "\n  ".join(f"{line.where}: {line.reason}" for line in broken[:_SHOWN_BROKEN_LINES])
    more = f"\n  and {len(broken) - _SHOWN_BROKEN_LINES} more" if len(broken) > _SHOWN_BROKEN_LINES else ""
    return (
        f"{len(broken)} broken line(s) up to here; nothing was written and what was there has not "
        "changed\n"
        f"  {shown}{more}\n  repair the input, or leave such lines out with --on-bad-line skip"
    )


@dataclass
class _Run:
    """One command: its progress, and the broken lines it has shown."""

    corpus: Corpus
    prefix: Path
    tokenizer: Tokenizer
    wish: Wish
    workers: Workers[Settings, Task | Hashes, Advance]
    progress: Progress
    input_bytes: int = 0
    text_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    broken: int = 0

    @functools.cached_property
    def plan(self) -> Plan:
        """How the corpus is cut."""
        return Plan.of(self.corpus)

    def make_parts(self) -> Settings:
        """Have all parts of the share made, by the library where the fast engine is refused; returns how they
        were made.

        Raises:
            UserError: among others, for a process that was killed.
        """
        share = self.wish.share
        tasks = _without_repeats([*_hash_tasks(self.plan), *self.plan.tasks(self.wish.workers * share.count)])
        try:
            parts_folder(self.prefix).mkdir(parents=True, exist_ok=True)
            return self._make(tasks[share.number :: share.count])
        except WorkerDied:
            raise UserError(
                f"--workers {self.wish.workers}: a process was killed, most often for want of memory; "
                "use fewer workers; nothing that was there has changed"
            ) from None
        except OSError as error:
            raise UserError(
                f"{parts_folder(self.prefix)}: cannot be written ({error.strerror or error}); "
                "choose a folder you may write to"
            ) from None

    def _make(self, tasks: list[Task | Hashes]) -> Settings:
        recipe = plan_engine(self.tokenizer, self.wish.allow_fast)
        if self.wish.share.count > 1:
            self._agree_with_other_shares(recipe)
        refused = parts_folder(self.prefix) / f"{self._settings(recipe).settings_key}.refused"
        if refused.exists():
            recipe = replace(library_recipe(self.tokenizer), reason=refused.read_text(encoding="utf-8"))
        while True:
            if recipe.reason is not None:
                self.progress.say(
                    f"note: tokenising with {engine_name(recipe)}, which is slower: {recipe.reason}"
                )
            try:
                self.do(self._settings(recipe), tasks)
                return self._settings(recipe)
            except Mismatch as mismatch:
                reason = f"{engine_name(recipe)} gave other ids ({mismatch}); all is tokenised again"
                write_whole(refused, reason)
                recipe = replace(library_recipe(self.tokenizer), reason=reason)

    def _agree_with_other_shares(self, recipe: Recipe) -> None:
        """Leave a note of how this share is done beside those of the others.

        Raises:
            UserError: another share of as many is done in another way, so that they never come together.
        """
        share, folder = self.wish.share, parts_folder(self.prefix)
        is_compressed = any(isinstance(entry, Stretches) for entry in self.plan.entries)
        options: dict[str, object] = {
            "tokenizer": f"{self.tokenizer.name} {self.tokenizer.fingerprint[:12]}",
            "end of document": self.tokenizer.eod_id if self.wish.append_eod else None,
            "--on-bad-line skip": self.wish.skip_broken,
            "--engine": engine_name(recipe),
            "--workers": self.wish.workers if is_compressed else None,  # they share out compressed files
            "inputs": key_of(self.corpus.inputs, self.corpus.key)[:12],
        }
        own = folder / f"{share.number}-of-{share.count}.share"
        self._compare_shares(options, own)
        write_whole(own, json.dumps(options))
        try:
            self._compare_shares(options, own)  # with those that have started at the same time
        except UserError:
            own.unlink(missing_ok=True)
            raise

    def _compare_shares(self, options: dict[str, object], own: Path) -> None:
        for other in sorted(own.parent.glob(f"*-of-{self.wish.share.count}.share")):
            try:
                theirs = json.loads(other.read_text(encoding="utf-8")) if other != own else options
            except FileNotFoundError:  # it has just been withdrawn
                continue
            differing = [
                f"{name} {theirs.get(name)} (here {value})"
                for name, value in options.items()
                if theirs.get(name) != value
            ]
            if differing:
                number = other.name.split("-")[0]
                raise UserError(
                    f"--share {self.wish.share.number}/{self.wish.share.count}: share {number} was started "
                    f"with {', '.join(differing)}, so that the shares would never come together; start all "
                    f"with the same options, or delete {own.parent} to begin anew"
                )

    def _settings(self, recipe: Recipe) -> Settings:
        return Settings.of(self.tokenizer, self.wish, recipe, parts_folder(self.prefix))

    def do(self, settings: Settings, tasks: list[Task | Hashes]) -> None:
        """Do tasks in the processes."""
        self.input_bytes = self.text_bytes = self.documents = self.tokens = self.broken = 0
        self.workers.set_up(settings)
        for report in self.workers.run(tasks, self.progress.wait_seconds):
            if report is not None:
                self.input_bytes += report.input_bytes
                self.text_bytes += report.text_bytes
                self.documents += report.documents
                self.tokens += report.tokens
                self._show_broken(report.broken)
            self.progress.show(self.input_bytes, self.text_bytes, self.documents, self.tokens)

    def make_share(self) -> Sidecar | None:
        """Make the parts of this share; where all others are there too, put them together."""
        existing = self.prefix.with_name(self.prefix.name + ".bin")
        if existing.exists() and not self.wish.overwrite:
            raise UserError(f"{existing}: exists; pass --overwrite to replace it, or choose another prefix")
        settings = self.make_parts()
        done = f"{self.wish.share} ({self.wish.share.reason}): {self.documents:,} documents are tokenised"
        # Where another share is putting them together, or has done so, this one has no more to do.
        with contextlib.suppress(BeingWritten, AlreadyThere):
            if self._is_complete(settings):
                with TokenFileWriter(self.prefix, self.tokenizer.vocab_size, self.wish.overwrite) as writer:
                    if self._is_complete(settings):
                        sidecar = self.put_together(settings, writer)
                        # Here, so that who has waited for the lock finds nothing to put together.
                        shutil.rmtree(parts_folder(self.prefix), ignore_errors=True)
                        return sidecar
        self.progress.say(
            f"{done}; the share that ends last puts all together. Should one have failed, start it again, or "
            "the same command without --share"
        )
        return None

    def _is_complete(self, settings: Settings) -> bool:
        """Whether all parts and hashes are there."""
        try:
            hashes = all(settings.hashes_file(task).exists() for task in _hash_tasks(self.plan))
            return hashes and all(
                settings.prefix(key).with_name(settings.prefix(key).name + ".json").exists()
                for key in part_keys(self.plan, settings)
            )
        except FileNotFoundError:
            return False

    def put_together(self, settings: Settings, writer: TokenFileWriter) -> Sidecar:
        """All parts, in the order of the corpus, as one token file."""
        counts = _Counts()
        for key in part_keys(self.plan, settings):
            part = settings.open(key)
            if part is None or part.sidecar is None:
                raise UserError(f"{settings.prefix(key)}: a part has gone; start again, the others are kept")
            if part.documents:
                writer.add_file(part)
            for name in vars(counts):
                setattr(counts, name, getattr(counts, name) + getattr(part.sidecar, name))
        hashes = [
            hashed
            for task in _hash_tasks(self.plan)
            for hashed in zip(task.files, json.loads(settings.hashes_file(task).read_text()), strict=True)
        ]
        if not writer.documents:  # it is refused, and there is nothing to go on with
            shutil.rmtree(parts_folder(self.prefix), ignore_errors=True)
        return writer.finalize(
            Provenance(
                tokenizer=tokenizer_record(self.tokenizer, settings.append_eod),
                engine=engine_name(settings.recipe),
                sources=source_records(hashes),
                **vars(counts),
            )
        )

    def _show_broken(self, broken: tuple[Broken, ...]) -> None:
        already, self.broken = self.broken, self.broken + len(broken)
        for line in broken[: max(0, _SHOWN_BROKEN_LINES - already)]:
            self.progress.say(f"skipped: {line.where}: {line.reason}")
        if already <= _SHOWN_BROKEN_LINES < self.broken:
            self.progress.say("skipped: more broken lines, only counted from here on")


def check_output(corpus: Corpus, prefix: Path) -> None:
    """Raises:
    UserError: what is written at `prefix` would be read as documents of the corpus, now or the next time.
    """
    for name in (f"{prefix.name}.bin", f"{prefix.name}.json", f"{parts_folder(prefix).name}/part.json"):
        folder = corpus.folder_that_reads(prefix.parent / name)
        if folder is not None:
            raise UserError(
                f"--output-prefix: {prefix} lies in the --input folder {folder}, whose files are all read, "
                "these too; write into another folder, or name the files to read with --text-suffixes"
            )


def parts_folder(prefix: Path) -> Path:
    """Where the parts of the token file `prefix` lie until they are put together."""
    return prefix.with_name(prefix.name + ".parts")


def tokenize_corpus(corpus: Corpus, prefix: Path, wish: Wish) -> Sidecar | None:
    """Tokenise `corpus` into the token file `prefix`; returns what its sidecar says.

    A share of several makes its parts. The one that finds all parts there puts them together; the others
    return None.

    Errors: `UserError` for a broken line (unless `skip_broken`), a corpus without a token, an existing output
    of something else (unless `overwrite`), a disk that refuses, and a process that dies. After any of them,
    `prefix` is as it was before, and parts that are done are kept for the next time."""
    check_output(corpus, prefix)
    progress = Progress(corpus.total_bytes // wish.share.count, wish.log_interval_seconds)
    expected = (UserError, Mismatch)
    with Workers[Settings, Task | Hashes, Advance](wish.workers, _PartMaker, expected) as processes:
        tokenizer = wish.spec.build()
        if not wish.overwrite and (made := made_before(corpus, prefix, tokenizer, wish)) is not None:
            shutil.rmtree(parts_folder(prefix), ignore_errors=True)
            say_made(progress, prefix)
            return made
        run = _Run(corpus, prefix, tokenizer, wish, processes, progress)
        if wish.share.count == 1:
            with TokenFileWriter(prefix, tokenizer.vocab_size, wish.overwrite) as writer:
                sidecar = run.put_together(run.make_parts(), writer)
        else:
            found = run.make_share()
            if found is None:
                return None
            sidecar = found
    shutil.rmtree(parts_folder(prefix), ignore_errors=True)
    say_result(progress, prefix, sidecar)
    return sidecar


def made_before(
    corpus: Corpus, prefix: Path, tokenizer: Tokenizer, wish: Wish, form: str = ""
) -> Sidecar | None:
    """The sidecar of a whole output of the same wish, as a job leaves it that is killed or started again when
    all is done. Inputs are compared by SHA-256, and read for it only where their sizes are the same. `form`
    is that of examples with answers.
    """
    try:
        made = TokenFile.open(prefix).sidecar
    except UserError:
        return None
    if made is None or bool(made.loss_mask) != bool(form) or made.form != form:
        return None
    if made.broken_lines and not wish.skip_broken:
        return None
    sizes = [(record.path, record.files, record.bytes) for record in made.sources]
    unread = source_records([(found, "") for found in corpus.inputs])
    if (
        made.tokenizer != tokenizer_record(tokenizer, wish.append_eod)
        or [(record.path, record.files, record.bytes) for record in unread] != sizes
    ):
        return None
    return (
        made if source_records([(found, found.sha256()) for found in corpus.inputs]) == made.sources else None
    )


def _hash_tasks(plan: Plan) -> list[Hashes]:
    """Large files each by itself, small ones together."""
    tasks: list[Hashes] = []
    group: list[Input] = []
    size = 0
    for found in plan.corpus.inputs:
        group.append(found)
        size += found.size
        if size >= 64 << 20 or len(group) >= 4096:
            tasks.append(Hashes(tuple(group)))
            group, size = [], 0
    return [*tasks, Hashes(tuple(group))] if group else tasks


def _without_repeats(tasks: list[Task | Hashes]) -> list[Task | Hashes]:
    """Each once, in their order: an input that is given twice is tokenised once."""
    once: dict[object, Task | Hashes] = {}
    for task in tasks:
        if isinstance(task, Hashes):
            key: object = ("hashes", key_of(task.files))
        elif isinstance(task, Stretches):
            key = (task.file_key, task.residue, task.modulus)
        else:
            key = task.key
        once.setdefault(key, task)
    return list(once.values())


def part_keys(plan: Plan, settings: Settings) -> Iterator[str]:
    """The keys of all parts, in the order of the corpus.

    Raises:
        FileNotFoundError: a compressed file has not been read to its end yet.
    """
    for entry in plan.entries:
        if isinstance(entry, Stretches):
            for number in json.loads(settings.stretches_file(entry).read_text(encoding="utf-8")):
                yield entry.key(number)
        else:
            yield entry.key
