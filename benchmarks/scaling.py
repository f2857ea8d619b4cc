#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Cost as work grows, one plot a command: points, the straight line through them, how far they are off it.

    python benchmarks/scaling.py length      [--most 16384] [--output benchmarks/scaling_length.json]
    python benchmarks/scaling.py depth       [--most 12]
    python benchmarks/scaling.py micro-batch [--most 16]
    python benchmarks/scaling.py tokenize --model tokenizer.model [--sizes 125 … 2000] [--workers 2]
    python benchmarks/scaling.py overlap     [--sizes …]

FILE.md and FILE.png are written beside FILE.json. Start-up by size of the corpus: benchmarks/startup.py. The
training ones take this engine through steps on a GPU where there is one (four of Llemma-7B's layers), else on
the CPU (10 M parameters). On a machine that others use, the CPU seconds of a command are worth more than its
seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machine
from benchmarks.scaling_parts import corpora, training

COMMANDS = {
    "length": (training.by_length, 16384),
    "depth": (training.by_depth, 12),
    "micro-batch": (training.by_micro_batch, 16),
    "tokenize": (corpora.tokenizing, None),
    "overlap": (corpora.overlapping, None),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (function, most) in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument("--output", type=Path, help="JSON; the page and the picture go beside it")
        if most is not None:
            command.add_argument("--most", type=int, default=most, help="largest point")
            command.add_argument("--steps", type=int, default=3)
            command.add_argument("--dropped", type=int, default=1)
            command.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
            command.add_argument("--limit-seconds", type=float, default=300, help="for one point")
            continue
        command.add_argument("--sizes", type=int, nargs="+", default=[125, 250, 500, 1000, 2000], help="MB")
        command.add_argument("--workers", type=int, default=2)
        command.add_argument("--rounds", type=int, default=3, help="turns of each size; the best counts")
        command.add_argument("--folder", type=Path, help="where to write, about three times the largest size")
        command.add_argument(
            "--limit-seconds", type=float, default=600, help="no new point is begun after it"
        )
        command.add_argument("--model", type=Path, help="a SentencePiece model, for tokenize")
    return parser.parse_args()


def main() -> None:
    options = parse()
    function, _ = COMMANDS[options.command]
    page = function(options)
    where = machine.describe()
    print(page.markdown(where, "…"))
    if options.output is not None:
        page.write(where, options.output)


if __name__ == "__main__":
    main()
