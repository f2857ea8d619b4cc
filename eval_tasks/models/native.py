# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of this program as lm-eval takes a model: texts go in and come out as with lm-eval's `hf`.

What decides a result besides the weights is done as lm-eval's HFLM does it on the exported model: the
tokenizer is transformers' own, from the files that an export has; contexts and continuations are encoded
together; a beginning of sequence is put where the tokenizer puts it; what is too long loses its left end;
`until` ends a text before itself. The tests hold both against each other.

On several ranks lm-eval runs on the first. The others call `follow`:

    lm = NativeLM(opened)
    if lm.is_first:
        with lm:
            lm_eval.simple_evaluate(model=lm, …)
    else:
        lm.follow()
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpointing.convert import write_all_but_weights
from megatron.checkpointing.export_files import GENERATION
from megatron.checkpointing.inference import OpenedModel
from megatron.neox_arguments.errors import UserError
from megatron.text_generation import ModelSession, Request, TextStream

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
except ImportError as error:
    raise UserError(
        f"{error.name}: is not installed; pip install -r requirements/requirements-eval.txt"
    ) from None

# HFLM's, for a task that does not say.
DEFAULT_NEW_TOKENS = 256
# Settings of a task that mean something here, and those that only say what temperature says.
SAMPLING = {"temperature", "top_p", "top_k", "seed"}
SPENT = {"do_sample", "until", "max_gen_toks"}


@dataclass(frozen=True)
class Generated:
    """What was written for the request with this place in the list, and the ids it was made of."""

    place: int
    text: str
    ids: tuple[int, ...]


@dataclass
class _Writing:
    """A request under way."""

    place: int
    until: list[str]
    stream: TextStream
    ids: list[int]


def _transformers_tokenizer(opened: OpenedModel) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The tokenizer, config.json and generation_config.json that the checkpoint's export would have."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:
        folder = Path(name)
        write_all_but_weights(opened.folder, opened.record, folder, opened.folder.name)
        config, generation = (
            json.loads((folder / file).read_text(encoding="utf-8")) for file in ("config.json", GENERATION)
        )
        try:
            return AutoTokenizer.from_pretrained(folder), config, generation
        except (OSError, ValueError) as error:
            raise UserError(
                f"{opened.folder}: transformers cannot read its tokenizer ({error}); "
                "convert the checkpoint with tools/convert_checkpoint.py neox-to-hf and measure the export"
            ) from None


class NativeLM(TemplateLM):
    """lm-eval's model over a session of this engine."""

    def __init__(
        self,
        opened: OpenedModel,
        *,
        batch_size: int = 16,
        max_cache_tokens: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
    ) -> None:
        """`batch_size` sequences are written at a time.

        Args:
            max_cache_tokens: of all sequences together; None is `batch_size` times the longest asked for.
            max_length: tokens of context; None is the model's `max_position_embeddings`.
            add_bos_token, prefix_token_id: as HFLM has them.
            seed: of draws whose request has none of its own (`seed` beside `temperature`).
        """
        super().__init__()
        self._opened, self._seed = opened, seed
        self.batch_size, self._max_cache_tokens = batch_size, max_cache_tokens
        self.session = ModelSession(opened.built, opened.backend)
        self.tokenizer, config, generation = _transformers_tokenizer(opened)
        self.max_length = max_length or int(config["max_position_embeddings"])
        self.add_bos_token, self._prefix_token_id = add_bos_token, prefix_token_id
        ends = generation.get("eos_token_id")
        self._stop_ids = tuple(
            dict.fromkeys([self.eot_token_id, *(ends if isinstance(ends, list) else [ends] if ends else [])])
        )

    # Ranks

    @property
    def is_first(self) -> bool:
        """Whether lm-eval runs on this rank."""
        return self.session.is_first

    def follow(self) -> None:
        """On the other ranks: works for the first until it closes the model."""
        self.session.follow()

    def close(self) -> None:
        """On the first rank: lets the others go."""
        self.session.close()

    def __enter__(self) -> NativeLM:
        return self

    def __exit__(self, *error: Any) -> None:
        self.session.__exit__(*error)

    # Tokens

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos = self.tokenizer.bos_token_id
        return int(self.eot_token_id if bos is None else bos)

    @property
    def tokenizer_name(self) -> str:
        return self._opened.record.tokenizer_fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; special tokens as the tokenizer has them, no second beginning of sequence."""
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token
            if has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
        return self._encode(string, add_special_tokens)

    def _encode_prompt(self, string: str) -> list[int]:
        """As `tok_encode`, but a text counts as begun only if it begins with the tokenizer's own token."""
        add_special_tokens = self.add_bos_token
        if has_bos_prefix(string, self.tokenizer.bos_token):
            add_special_tokens = False
        return self._encode(string, add_special_tokens)

    def _encode(self, string: str, add_special_tokens: bool | None) -> list[int]:
        """None leaves it to the tokenizer."""
        keys = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **keys))

    # Likelihood

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        answers = [(score.loglikelihood, score.is_greedy) for score in self.session.score(pairs)]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:  # None: a window of a longer text
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """What fits: the last token is predicted and not read."""
        if len(continuation) > self.max_length:
            raise UserError(
                f"max_length={self.max_length}: a continuation has {len(continuation):,} tokens; "
                "measure it as rolling likelihood, or with a model of a longer context"
            )
        room = self.max_length + 1 - len(continuation)
        return context[-room:], continuation

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of `max_length` tokens."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for place, instance in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(instance.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(place)
        sums = [0.0] * len(requests)
        for place, (loglikelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[place] += loglikelihood
        for instance, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (instance.args[0],), total)
        return sums

    # Generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to `until`."""
        texts = [""] * len(requests)
        for generated in self.generate(requests):
            texts[generated.place] = generated.text
            self.cache_hook.add_partial("generate_until", requests[generated.place].args, generated.text)
        return texts

    def generate(self, requests: Sequence[Any]) -> Iterator[Generated]:
        """What follows each context, as it comes; lm-eval's instances go in.

        Raises:
            UserError: a setting has no meaning here, or leaves no room for a context.
        """
        seen: Counter[str] = Counter()
        asked = []
        for place, instance in enumerate(requests):
            context, settings = instance.args
            asked.append(self._ask(place, context, settings, seen))
        if not asked:
            return
        needed = max(request.most_tokens for request, _ in asked)
        batch = min(self.batch_size, len(asked))
        self.session.open_engine(
            max_batch_sequences=batch,
            max_cache_tokens=max(needed, min(batch * needed, self._max_cache_tokens or batch * needed)),
        )
        # The longest first: then rows seldom have to become longer.
        asked.sort(key=lambda pair: -pair[0].most_tokens)
        writing = {self.session.add(request): each for request, each in asked}
        while writing:
            for token in self.session.step():
                each = writing.get(token.request)
                if each is None:
                    continue
                if token.finish_reason != "stop":
                    each.ids.append(token.token_id)
                    each.stream.feed([token.token_id])
                is_stopped = each.stream.stopped_by is not None
                if is_stopped and token.finish_reason is None:
                    self.session.cancel(token.request)
                if is_stopped or token.finish_reason is not None:
                    del writing[token.request]
                    yield self._finished(each)

    def _ask(
        self, place: int, context: str, settings: dict[str, Any], seen: Counter[str]
    ) -> tuple[Request, _Writing]:
        """`seen` counts equal requests, so that those without a seed are drawn differently."""
        known = normalize_gen_kwargs(settings, DEFAULT_NEW_TOKENS)
        if unknown := sorted(set(known) - SAMPLING - SPENT):
            raise UserError(
                f"generation_kwargs: {', '.join(unknown)} means nothing to this engine; it has "
                f"{', '.join(sorted(SAMPLING | SPENT))}"
            )
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(known["until"], eos=end)
        new_tokens = int(known["max_gen_toks"])
        room = self.max_length - new_tokens
        if room <= 0:
            raise UserError(
                f"max_gen_toks={new_tokens}: leaves no room for a context in max_length={self.max_length}; "
                "ask for fewer tokens"
            )
        ids = self._encode_prompt(context)[-room:]
        seed = known.get("seed")
        if seed is None:
            key = f"{self._seed} {json.dumps(settings, sort_keys=True)} {context}"
            digest = hashlib.sha256(f"{key} {seen[key]}".encode()).digest()
            seen[key] += 1
            seed = int.from_bytes(digest[:8], "big")
        request = Request(
            prompt_ids=tuple(ids),
            max_new_tokens=new_tokens,
            temperature=float(known["temperature"]) if known.get("do_sample") else 0.0,
            top_p=float(known.get("top_p", 1.0)),
            top_k=int(known.get("top_k", 0)),
            seed=seed,
            stop_ids=self._stop_ids,
        )
        return request, _Writing(place, until, TextStream(self._opened.tokenizer, ids, until), [])

    def _finished(self, each: _Writing) -> Generated:
        """The text as HFLM makes it of the ids: without special tokens, cut at each stop text in turn."""
        text = self.tokenizer.decode(each.ids, skip_special_tokens=True)
        text = postprocess_generated_text(text, each.until, None)
        return Generated(each.place, text, tuple(each.ids))
