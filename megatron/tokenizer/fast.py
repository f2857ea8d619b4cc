# SPDX-License-Identifier: Apache-2.0
"""The same ids, faster: gigatoken (Rust) behind checks against the library that the tokenizer stands on.

`plan_engine` looks at a tokenizer once. Where its kind is one that gigatoken can follow, it writes the
definition for it, lets both encode texts that are known to be hard, and returns a recipe that processes build
an `Engine` from. Everything else, and every doubt, is the library's own encoder, with the reason in words.

A SentencePiece BPE model merges the pair of neighbours whose piece has the highest score; ties go left.
A `tokenizer.json` merges the pair of the lowest rank. The two agree where the ranks are those of the scores
and no two pieces share a score, other than runs of spaces, which the checks cover. Pieces of control tokens
take no part: `<s>` in a text stays text.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron.tokenizer.interface import Tokenizer

Ids = npt.NDArray[Any]

SPACE_PIECE = "▁"  # what SentencePiece makes of a space

# Longer texts of SentencePiece models are encoded in segments of about this many characters.
SEGMENT_CHARACTERS = 1 << 20
# gigatoken remembers every word it has met. When a process has grown by so much, it starts afresh.
_GROWTH_BYTES = 96 << 20
_LOOK_EVERY_CHARACTERS = 1 << 20
# SentencePiece's types of pieces (sentencepiece_model.proto, SentencePiece.Type).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_BPE = 2  # TrainerSpec.ModelType

# What tokenizers have been found to differ in: tokens as text, runs, byte order marks, NUL, composed
# characters, text of the space piece itself, other spaces and line ends, bidirectional and joined characters.
HARD_TEXTS = (
    *("", " ", "  ", "a", " a", "a ", "\n", "\r\n\r\n", "\t\tx\t", "\x00", "a\x00b\x00\x00", "\x01\x7f\x80"),
    *("<s>", "</s> <s>a<unk>", "x</s>", "<0x0A><0x00>", "<|endoftext|>", "<|im_start|>user\n", "[INST] x"),
    *(SPACE_PIECE, f"a{SPACE_PIECE}b {SPACE_PIECE} {SPACE_PIECE}{SPACE_PIECE}", "\ufeffx", "a\u200bb\u200d"),
    *("e\u0301 \u00e9 \ufb01 \u212b \u00bd", "\u3000\u00a0 \u2028x\u2029\u0085", "\ufffd\U0010ffff\ue000"),
    *("\U0001f600 \U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\U0001f926\U0001f3fd\u200d\u2642\ufe0f"),
    *("\u4e2d\u6587\u5b57 \u3072\u3089 \ud55c\uad6d\uc5b4", "\u05e9\u05dc \u0639\u0631\u0628 \u202eabc"),
    *("\U0001d53d \u222e \u2207\u00d7\U0001d401 \u27e8\u03c8|\u03c6\u27e9", "1234567890 3.14159e-10"),
    r"\frac{\alpha_{i,j}}{\sqrt{2\pi}}$ \begin{align*} & \\ \end{align*}",
    "def f(x):\n\treturn {\n        'a': x**2,  # ==== ---- ####\n\n\n    }\n",
    "It's we'RE I'll 'tis x's",
)


class Mismatch(Exception):
    """Two encoders gave one text different ids. The argument tells which text."""


class Engine(Protocol):
    """What a process encodes with."""

    reference_documents: int
    """Texts that the library itself has encoded."""

    def encode(self, text: str) -> Ids:
        """The ids of one text."""


@dataclass(frozen=True)
class Recipe:
    """What a process needs to build its engine. Without `definition` that is the library itself.

    `name` and `version` say which encoder, `reason` why it is not the fast one. Texts that hold one of
    `reserved` (user-defined symbols, which SentencePiece finds before any merge) are left to the library."""

    name: str
    version: str
    reason: str | None = None
    definition: str | None = None
    is_sentencepiece: bool = False
    reserved: tuple[str, ...] = ()


class LibraryEngine:
    """The library's own encoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.reference_documents = 0

    def encode(self, text: str) -> Ids:
        """The ids of one text."""
        self.reference_documents += 1
        return np.asarray(self._tokenizer.encode(text), dtype=np.uint32)


class FastEngine:
    """gigatoken, in one thread. Its memory stays within a bound, whatever it encodes.

    `memory_bytes` tells how much memory the process holds (a parameter for tests)."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, memory_bytes: Callable[[], int] | None = None
    ) -> None:
        assert recipe.definition is not None
        self._recipe, self._tokenizer = recipe, tokenizer
        self._memory_bytes = memory_bytes or _resident_bytes
        self.reference_documents = 0
        self._id_type = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        self._characters = self._begin_bytes = 0
        self._start_afresh()

    def encode(self, text: str) -> Ids:
        """The ids of one text."""
        if any(token in text for token in self._recipe.reserved):
            self.reference_documents += 1
            return np.asarray(self._tokenizer.encode(text), dtype=np.uint32)
        self._characters += len(text)
        if self._characters >= _LOOK_EVERY_CHARACTERS:
            self._characters = 0
            if self._memory_bytes() > self._begin_bytes + _GROWTH_BYTES:
                self._start_afresh()
        if self._recipe.is_sentencepiece and len(text) > SEGMENT_CHARACTERS:
            return np.concatenate([self._encode_segment(part) for part in self._segments(text)])
        ids: Ids = self._backend.encode(text)
        return ids

    def _start_afresh(self) -> None:
        self._backend: Any = None  # the old one goes before the new one comes
        self._backend = _load(self._recipe.definition or "")
        self._characters, self._begin_bytes = 0, self._memory_bytes()

    def _encode_segment(self, segment: str) -> Ids:
        ids: Ids = self._backend.encode_no_normalize(segment.replace(" ", SPACE_PIECE))
        return ids.astype(self._id_type)

    def _segments(self, text: str) -> Iterator[str]:
        """`text` with its space in front, cut where no piece has the two characters side by side: there no
        merge can cross."""
        begin, front = 0, SPACE_PIECE
        while begin < len(text):
            end = self._cut(text, begin + SEGMENT_CHARACTERS)
            yield front + text[begin:end]
            begin, front = end, ""

    def _cut(self, text: str, earliest: int) -> int:
        for place in range(earliest, len(text)):
            if text[place - 1 : place + 1].replace(" ", SPACE_PIECE) not in self._neighbours:
                return place
        return len(text)

    @functools.cached_property
    def _neighbours(self) -> frozenset[str]:
        """Every two characters that stand side by side in a piece."""
        pieces = json.loads(self._recipe.definition or "")["model"]["vocab"]
        return frozenset(first + second for piece in pieces for first, second in itertools.pairwise(piece))


def build_engine(recipe: Recipe, tokenizer: Tokenizer) -> Engine:
    """The engine of a recipe; `tokenizer` is the one that the recipe was planned for."""
    return LibraryEngine(tokenizer) if recipe.definition is None else FastEngine(recipe, tokenizer)


def plan_engine(tokenizer: Tokenizer, allow_fast: bool = True) -> Recipe:
    """The fastest engine that gives the ids of `tokenizer`, and why it is the library where it is."""
    library = library_recipe(tokenizer)
    if not allow_fast:
        return _because(library, "it was asked for")
    try:
        version = importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError:
        return _because(library, "gigatoken is not installed (pip install -r requirements/requirements.txt)")
    try:
        if tokenizer.name == "SPMTokenizer":
            recipe, probes = _sentencepiece_recipe(tokenizer, version)
        else:
            recipe, probes = _hugging_face_recipe(tokenizer, version)
        compare(FastEngine(recipe, tokenizer), tokenizer, [*HARD_TEXTS, *probes])
    except _Unsupported as reason:
        return _because(library, str(reason))
    except Mismatch as mismatch:
        return _because(library, f"gigatoken {version} gives other ids ({mismatch})")
    return recipe


def library_recipe(tokenizer: Tokenizer) -> Recipe:
    """The library that a tokenizer stands on."""
    name = "sentencepiece" if tokenizer.name == "SPMTokenizer" else "tokenizers"
    return Recipe(name, importlib.metadata.version(name))


def compare(engine: Engine, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Encode `texts` with both.

    Raises:
        Mismatch: they differ in one of them, or the engine cannot encode it.
    """
    for text in texts:
        expected = tokenizer.encode(text)
        try:
            found = engine.encode(text).tolist()
        except Exception as error:
            raise Mismatch(f"{error} for {_shown(text)}") from None
        if found != expected:
            first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
            place = min(len(found), len(expected)) if first is None else first
            raise Mismatch(f"from token {place} of {_shown(text)} on")


class _Unsupported(Exception):
    """A tokenizer of a kind that gigatoken does not follow; the argument says why."""


def _because(library: Recipe, reason: str) -> Recipe:
    return Recipe(library.name, library.version, reason=reason)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _load(definition: str) -> Any:
    # The extension alone: the package's own front wants awkward arrays, which cost seconds and memory.
    from gigatoken import gigatoken_rs

    try:
        return gigatoken_rs.load_hf_json(definition)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the extension is no Exception
        said = str(error).strip().partition("\n")[0]  # below it stands where in its source
        raise _Unsupported(f"gigatoken cannot read it: {said}") from None


def _file_of(tokenizer: Tokenizer) -> Path:
    return tokenizer.files[0]


def _hugging_face_recipe(tokenizer: Tokenizer, version: str) -> tuple[Recipe, list[str]]:
    """The file as it is, without what adds tokens at the ends; probes are its tokens, as text."""
    definition = json.loads(_file_of(tokenizer).read_text(encoding="utf-8"))
    if (definition.get("model") or {}).get("type") != "BPE":
        raise _Unsupported("its model is not BPE")
    added = [str(token["content"]) for token in definition.get("added_tokens") or []]
    definition |= {"truncation": None, "padding": None, "post_processor": None}
    ids = range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 4096))
    probes = [f"a {token}b{token} {token}" for token in added[:512]]
    probes += [tokenizer.decode(list(ids[i : i + 64])) for i in range(0, len(ids), 64)]
    recipe = Recipe("gigatoken", version, definition=json.dumps(definition, ensure_ascii=False))
    return recipe, probes


def _sentencepiece_recipe(tokenizer: Tokenizer, version: str) -> tuple[Recipe, list[str]]:
    """A `tokenizer.json` for a SentencePiece BPE model; probes are its pieces in each other's company."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(_file_of(tokenizer).read_bytes())
    _check_supported(model)
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    user_defined = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
    definition = {
        "version": "1.0",
        "added_tokens": [],  # control tokens in a text stay text
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE_PIECE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_PIECE},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": model.trainer_spec.unk_piece,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": _merges(normal, ids),
        },
    }
    recipe = Recipe(
        "gigatoken",
        version,
        definition=json.dumps(definition, ensure_ascii=False),
        is_sentencepiece=True,
        reserved=tuple(piece.strip(SPACE_PIECE) for piece in user_defined),
    )
    return recipe, [*user_defined, *_probes(list(normal))]


def _check_supported(model: Any) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = {piece.type for piece in model.pieces}
    merged = [
        piece.score
        for piece in model.pieces
        if piece.type == _NORMAL and len(piece.piece) > 1 and piece.piece.strip(SPACE_PIECE)
    ]
    unsupported = {
        "it is not a BPE model": trainer.model_type != _BPE,
        "it has no byte for what it does not know": not trainer.byte_fallback,
        "it normalises text": bool(normalizer.precompiled_charsmap) or normalizer.remove_extra_whitespaces,
        "it has no space in front of a text": not normalizer.add_dummy_prefix,
        "it keeps spaces as they are": not normalizer.escape_whitespaces,
        "it counts spaces to the word before": trainer.treat_whitespace_as_suffix,
        "it has unused pieces": bool(types - {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}),
        "pieces share a score": len(set(merged)) < len(merged),
        "it has a user-defined symbol with spaces": any(
            SPACE_PIECE in (piece.piece.strip(SPACE_PIECE) or SPACE_PIECE)
            for piece in model.pieces
            if piece.type == _USER_DEFINED
        ),
    }
    for reason, holds in unsupported.items():
        if holds:
            raise _Unsupported(reason)


def _merges(score_of: dict[str, float], ids: dict[str, int]) -> list[list[str]]:
    """Every way to put a piece together from two others, by the score of the piece."""
    merges = [
        (-score, ids[piece], ids[piece[:cut]], [piece[:cut], piece[cut:]])
        for piece, score in score_of.items()
        for cut in range(1, len(piece))
        if piece[:cut] in score_of and piece[cut:] in score_of
    ]
    return [parts for *_, parts in sorted(merges)]


def _probes(pieces: list[str]) -> list[str]:
    """Every piece once in a text of many, as they stand and apart; runs of what repeats; self-overlaps."""
    texts = [piece.replace(SPACE_PIECE, " ") for piece in pieces]
    mixed = texts[::2] + texts[1::2]
    probes = [between.join(mixed[i : i + 512]) for between in ("", "\n") for i in range(0, len(mixed), 512)]
    runs = {text[0] for text in texts if len(text) > 1 and len(set(text)) == 1}
    lengths = (*range(1, 20), 31, 32, 33, 64, 65)
    probes += ["\n".join("x" + run * length + "y" for length in lengths) for run in sorted(runs)]
    probes += [run * length for run in sorted(runs) for length in (2, 3, 7, 17, 64)]
    overlaps = [
        text + text[border:]
        for text in texts
        for border in range(1, len(text))
        if text.startswith(text[len(text) - border :])
    ]
    return [*probes, *(" | ".join(overlaps[i : i + 64]) for i in range(0, len(overlaps), 64))]
