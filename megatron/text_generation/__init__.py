# SPDX-License-Identifier: Apache-2.0
"""Text from a model: many requests at a time with a KV cache, and the likelihood of given text."""

from megatron.text_generation.beams import Beam, BeamOrder
from megatron.text_generation.engine import Engine
from megatron.text_generation.requests import NewToken, PromptToken, Request
from megatron.text_generation.scoring import Score, score
from megatron.text_generation.session import ModelSession
from megatron.text_generation.text import TextStream

__all__ = [
    "Beam",
    "BeamOrder",
    "Engine",
    "ModelSession",
    "NewToken",
    "PromptToken",
    "Request",
    "Score",
    "TextStream",
    "score",
]
