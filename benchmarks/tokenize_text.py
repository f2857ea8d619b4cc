# SPDX-License-Identifier: Apache-2.0
"""Text to token files: this repository's command and others, on the same file and cores.

    python benchmarks/tokenize_text.py --model tokenizer.model [--megabytes 84] [--workers 2] [--rounds 2]
        [--only NAME …] [--folder DIR] [--output FILE.json]

The text is real and of this machine: TeX files where there are some, the LaTeX of the documentation of
sympy, scipy, numpy, networkx and mpmath, then their and torch's and transformers' Python, one document a
file, shuffled by a hash of the path, as JSON lines. `--model` is a SentencePiece BPE model (Llama 2 has one).

Each turn is a process of its own, started cold; seconds are from its start to its end, CPU seconds those of
it and all its processes, memory that of its largest process. Turns go round, so that a disturbance meets all.

    ours                  tools/preprocess_data.py
    classic-sentencepiece the classic loop: Pool.imap over the lines, 25 at a time, json and sentencepiece in
                          the processes, megatron-core's IndexedDatasetBuilder in the first one. The form of
                          GPT-NeoX's and Megatron-LM's scripts, written anew here
    classic-hf            the same with Hugging Face tokenizers
    gigatoken-awkward     the form of Megatron-LM's fast script, written anew: gigatoken reads the file with
                          threads, awkward arrays get their ends, megatron-core's builder writes
    datatrove             JsonlReader and MegatronDocumentTokenizer, as many tasks as workers (needs
                          `pip install datatrove`; left out where it is missing)
    sentencepiece, tokenizers, gigatoken   the library alone, one thread, one document at a time, no output

Every token file is compared with that of the first classic loop, byte by byte.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sympy", "scipy", "numpy", "networkx", "mpmath", "torch", "transformers")
LIBRARIES = ("sentencepiece", "tokenizers", "gigatoken")
WRITERS = ("ours", "classic-sentencepiece", "classic-hf", "gigatoken-awkward", "datatrove")
LINES_AT_A_TIME = 25  # both classic scripts


def documents() -> Iterator[tuple[str, str]]:
    """(path, text), LaTeX before Python."""
    from tools.quickstart_parts.corpus import TEX_FOLDERS, package_documents, place_of, tex_documents

    for document in tex_documents(TEX_FOLDERS):
        yield document.path, document.text
    for document in package_documents():
        if document.source == "latex":
            yield f"latex of {document.path}", document.text
    for package in PACKAGES:
        folder = place_of(package)
        for path in sorted(folder.rglob("*.py")):
            try:
                yield path.relative_to(folder.parent).as_posix(), path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def make_corpus(path: Path, megabytes: float) -> dict[str, Any]:
    """Write so many megabytes of text; returns what it is."""
    chosen: list[tuple[str, str]] = []
    text_bytes = latex_bytes = 0
    for place, text in documents():
        if text and text_bytes < megabytes * 1e6:
            chosen.append((place, text))
            text_bytes += len(text.encode())
            latex_bytes += len(text.encode()) if not place.endswith(".py") or place.startswith("latex") else 0
    chosen.sort(key=lambda document: hashlib.sha256(document[0].encode()).digest())
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for _, text in chosen)
    return {"documents": len(chosen), "text_mb": text_bytes / 1e6, "latex_mb": latex_bytes / 1e6}


def write_hugging_face(model: Path, folder: Path) -> None:
    """The tokenizer.json with the merges in the order of the scores, for those that read no SentencePiece."""
    from megatron.tokenizer import build_tokenizer
    from megatron.tokenizer.fast import plan_engine

    recipe = plan_engine(build_tokenizer("SPMTokenizer", model))
    if recipe.definition is None:
        raise SystemExit(f"{model}: {recipe.reason}; give a SentencePiece BPE model such as Llama 2's")
    folder.mkdir()
    (folder / "tokenizer.json").write_text(recipe.definition, encoding="utf-8")


@functools.cache
def encoder_of_process(library: str, model: str, json_folder: str) -> Callable[[str], list[int]]:
    """One document at a time, by a library."""
    if library == "sentencepiece":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=model)
        return lambda text: processor.EncodeAsIds(text)
    if library == "tokenizers":
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(f"{json_folder}/tokenizer.json")
        return lambda text: tokenizer.encode(text).ids
    from gigatoken import gigatoken_rs

    backend = gigatoken_rs.load_hf_json(Path(json_folder, "tokenizer.json").read_text(encoding="utf-8"))
    return lambda text: backend.encode(text)


def encode_line(line: str, library: str, model: str, json_folder: str) -> list[int]:
    """What a process of the classic loop does."""
    ids = encoder_of_process(library, model, json_folder)(json.loads(line)["text"])
    return [*ids, 2] if ids else ids


def classic_loop(library: str, options: argparse.Namespace) -> None:
    import torch

    import megatron.backend  # noqa: F401  (before megatron.core)
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    encode = functools.partial(
        encode_line, library=library, model=str(options.model), json_folder=str(options.json_folder)
    )
    builder = IndexedDatasetBuilder(f"{options.prefix}.bin", dtype=options.id_type)
    with multiprocessing.Pool(options.workers) as pool, open(options.text, encoding="utf-8") as file:
        for ids in pool.imap(encode, file, LINES_AT_A_TIME):
            if ids:
                builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{options.prefix}.idx")


def gigatoken_awkward(options: argparse.Namespace) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)
    import awkward
    import gigatoken
    import numpy as np
    import torch

    import megatron.backend  # noqa: F401  (before megatron.core)
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokenizer = gigatoken.Tokenizer(options.json_folder / "tokenizer.json")
    encoded = tokenizer.encode_files(gigatoken.JsonlFileSource([options.text], field="text"))
    ends = awkward.singletons(awkward.Array(np.full(len(encoded), 2, dtype=np.uint32)))
    builder = IndexedDatasetBuilder(f"{options.prefix}.bin", dtype=options.id_type)
    for ids in awkward.concatenate([encoded, ends], axis=1):
        row = torch.from_numpy(np.asarray(ids).astype(np.int64))
        builder.add_document(row, [len(row)])
    builder.finalize(f"{options.prefix}.idx")


def datatrove(options: argparse.Namespace) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    tokenizer = str(options.json_folder / "tokenizer.json")
    split = options.prefix.parent / "datatrove_input"
    split.mkdir()
    lines = options.text.read_text(encoding="utf-8").split("\n")[:-1]
    size = -(-len(lines) // options.workers)
    for number in range(options.workers):  # a task reads whole files
        part = lines[number * size : (number + 1) * size]
        (split / f"{number:02}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    LocalPipelineExecutor(
        [
            JsonlReader(str(split), default_metadata={}),
            MegatronDocumentTokenizer(
                str(options.prefix.parent / "datatrove"),
                save_filename="part",
                tokenizer_name_or_path=tokenizer,
                eos_token="</s>",
            ),
        ],
        tasks=options.workers,
        workers=options.workers,
        logging_dir=str(options.prefix.parent / "datatrove_logs"),
        start_method="spawn",  # a fork server's processes would not be counted
    ).run()
    with open(f"{options.prefix}.bin", "wb") as whole:
        for part in sorted((options.prefix.parent / "datatrove").glob("*.bin")):
            whole.write(part.read_bytes())


def library_alone(library: str, options: argparse.Namespace) -> None:
    encode = encoder_of_process(library, str(options.model), str(options.json_folder))
    with open(options.text, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    started, cpu = time.perf_counter(), time.process_time()
    for text in texts:
        encode(text)
    print(json.dumps([time.perf_counter() - started, time.process_time() - cpu]))


def child(options: argparse.Namespace) -> None:
    import numpy as np

    options.id_type = np.uint16
    if options.child in LIBRARIES:
        library_alone(options.child, options)
    elif options.child == "datatrove":
        datatrove(options)
    elif options.child == "gigatoken-awkward":
        gigatoken_awkward(options)
    else:
        library = "sentencepiece" if options.child == "classic-sentencepiece" else "tokenizers"
        classic_loop(library, options)


def turn(name: str, options: argparse.Namespace, folder: Path, text: Path) -> dict[str, Any]:
    """One turn of one side."""
    prefix = folder / name / "out"
    prefix.parent.mkdir()
    if name == "ours":
        command = [
            *(sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(text)),
            *("--output-prefix", str(prefix), "--tokenizer-type", "SPMTokenizer", "--append-eod"),
            *("--vocab-file", str(options.model), "--workers", str(options.workers)),
        ]
        bin_file = prefix.parent / "out_text_document.bin"
    else:
        command = [
            *(sys.executable, __file__, "--model", str(options.model), "--workers", str(options.workers)),
            *("--child", name, "--text", str(text), "--prefix", str(prefix)),
            *("--json-folder", str(folder / "json")),
        ]
        bin_file = prefix.parent / "out.bin"
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    started = time.perf_counter()
    log = open(prefix.parent / "log", "wb")  # noqa: SIM115
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    log.close()
    if status:
        raise SystemExit(f"{name} failed:\n{(prefix.parent / 'log').read_text()[-2000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    if name in LIBRARIES:
        seconds, cpu_seconds = json.loads(shown.splitlines()[-1])
    digest = hashlib.sha256(bin_file.read_bytes()).hexdigest() if bin_file.exists() else None
    subprocess.run(["rm", "-r", str(prefix.parent)], check=True)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "largest_process_mb": usage.ru_maxrss * 1024 / 1e6,
        "sha256": digest,
    }


def summary(name: str, turns: list[dict[str, Any]], text_mb: float, reference: str | None) -> dict[str, Any]:
    seconds, cpu_seconds = (min(one[key] for one in turns) for key in ("seconds", "cpu_seconds"))
    is_compared = reference is not None and turns[0]["sha256"] is not None
    same = all(one["sha256"] == reference for one in turns) if is_compared else None
    return {
        "name": name,
        "mb_per_second": text_mb / seconds,
        "mb_per_cpu_second": text_mb / cpu_seconds,
        "largest_process_mb": max(one["largest_process_mb"] for one in turns),
        "same_bytes": same,
        "turns": turns,
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    ours = next((row for row in rows if row["name"] == "ours"), None)
    lines = [
        "| | MB/s | MB per CPU second | largest process, MB | same bytes | ours, times as fast (wall, CPU) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = ""
        if ours is not None and row is not ours:
            wall, cpu = (ours[key] / row[key] for key in ("mb_per_second", "mb_per_cpu_second"))
            ratio = f"{wall:.1f}, {cpu:.1f}"
        same = {True: "yes", False: "no", None: ""}[row["same_bytes"]]
        lines.append(
            f"| {row['name']} | {row['mb_per_second']:.1f} | {row['mb_per_cpu_second']:.1f} "
            f"| {row['largest_process_mb']:.0f} | {same} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=84)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=(*WRITERS, *LIBRARIES))
    parser.add_argument("--folder", type=Path, help="where to write, about four times the text")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it as .md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for name in ("--text", "--prefix", "--json-folder"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.child is not None:
        child(options)
        return
    names = list(options.only or (*WRITERS, *LIBRARIES))
    if "datatrove" in names and importlib.util.find_spec("datatrove") is None:
        print("datatrove: is not installed, left out (pip install datatrove)", flush=True)
        names.remove("datatrove")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        text = folder / "text.jsonl"
        about = make_corpus(text, options.megabytes)
        print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)
        write_hugging_face(options.model, folder / "json")
        turns: dict[str, list[dict[str, Any]]] = {side: [] for side in names}
        for _ in range(options.rounds):
            for side in names:
                turns[side].append(turn(side, options, folder, text))
                last = turns[side][-1]
                print(f"{side}: {last['seconds']:.2f} s, {last['cpu_seconds']:.2f} CPU s", flush=True)
    reference = next((turns[side][0]["sha256"] for side in names if side.startswith("classic")), None)
    rows = [summary(side, turns[side], about["text_mb"], reference) for side in names]
    table = as_markdown(rows)
    print(table, flush=True)
    packages = ("sentencepiece", "tokenizers", "gigatoken", "megatron-core", "torch", "datatrove")
    content = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {package: version(package) for package in packages},
        "text": about,
        "rows": rows,
    }
    if options.output is not None:
        sizes = f"{about['text_mb']:.1f} MB of text, {about['latex_mb']:.1f} MB of it LaTeX"
        head = f"`{content['command']}`: {sizes}"
        page.write(options.output, content, f"{head}, {content['machine']}.\n\n{table}")


def version(package: str) -> str | None:
    """Of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
