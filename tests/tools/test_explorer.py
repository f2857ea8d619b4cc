# SPDX-License-Identifier: Apache-2.0
"""What tools/explorer.py writes: all data, equal bytes for equal input, nothing over the files of others."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.corpora import shared_folder
from tests.runs import ROOT
from tests.tools.explorer_results import HOSTILE, MATH, write_hostile, write_lines, write_results
from tools import explorer
from tools.explorer_parts import folder, page_data
from tools.explorer_parts.page_data import as_script, one_line

PARTS = ROOT / "tools" / "explorer_parts"


def run(output: Path, *arguments: object) -> Path:
    explorer.main([*map(str, arguments), "--output", str(output)])
    return output


def fail(capsys: pytest.CaptureFixture[str], output: Path, *arguments: object) -> str:
    """What the command says when it ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(output, *arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    return said


def handed_over(script: Path) -> list[Any]:
    """The arguments of the call that a data script is."""
    text = script.read_text(encoding="ascii")
    found = re.fullmatch(r"explorer\.store\.receive(?:Index|Chunk)\((.*)\);\n", text)
    assert found, text[:100]
    return list(json.loads(f"[{found[1]}]"))


def index_of(output: Path) -> dict[str, Any]:
    index: dict[str, Any] = handed_over(output / "data" / "index.js")[0]
    return index


def items_of(output: Path) -> list[dict[str, Any]]:
    """All items, by the chunks."""
    index = index_of(output)
    items: list[dict[str, Any]] = []
    chunks = sorted((output / "data").glob("items-*.js"))
    assert len(chunks) == len(index["chunk_starts"])
    for number, chunk in enumerate(chunks):
        at, content = handed_over(chunk)
        assert at == number
        assert index["chunk_starts"][number] == len(items)
        items += content
    assert len(items) == len(index["items"]["id"])
    return items


def contents(output: Path) -> dict[str, bytes]:
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def plain(number: int, **fields: object) -> dict[str, Any]:
    return {
        "problem": f"What is {number}?",
        "generation": f"It is {number}.",
        "reference": str(number),
        **fields,
    }


def test_every_line_of_every_file_is_in_the_page(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    output = run(tmp_path / "page", *results)
    index, items = index_of(output), items_of(output)
    places = {
        (index["tasks"][task]["name"], item): number
        for number, (task, item) in enumerate(zip(index["items"]["task"], index["items"]["id"], strict=True))
    }
    assert len(places) == len(items) == 12
    for model, results_folder in enumerate(results):
        for kind in ("samples", "verdicts", "votes"):
            for path in results_folder.glob(f"{kind}_*.jsonl"):
                for line in map(json.loads, path.read_text().splitlines()):
                    item = items[places[path.stem.removeprefix(f"{kind}_"), line["item"]]]
                    held = item["runs"][model]
                    if kind == "votes":
                        assert dict(held["vote"]["votes"]) == line["votes"]
                        continue
                    sample = next(sample for sample in held["samples"] if sample["n"] == line["sample"])
                    names = {"generation": "text"}
                    shared = ("problem", "reference", "level", "subject")
                    for name, value in line.items():
                        if name in shared:
                            assert item[name] == value
                        elif name not in ("task", "item", "sample", "prompt_sha256"):
                            assert sample[names.get(name, name)] == value
        for line in map(json.loads, (results_folder / "proofs.jsonl").read_text().splitlines()):
            proof = items[places["proofs", line["theorem"]]]["runs"][model]["proof"]
            assert {
                name: proof[name] for name in ("proved", "proof", "seconds", "status")
            }.items() <= line.items()
            assert len(proof["tree"] or []) == len(line["tree"] or [])
    assert index["models"][0]["settings"][:2] == [["model", "checkpoints/llemma_7b"], ["temperature", 0.6]]
    math = index["tasks"][1]["results"][1]
    assert math["published"][1] == ["Llemma 34B", [["accuracy", 0.25], ["maj@256", 0.431]]]
    assert math["metrics"][-1] == ["maj@8", {"value": 1.0, "low": 0.61, "high": 1.0}]


def test_a_folder_of_proofs_has_the_task_of_its_measures(tmp_path: Path) -> None:
    proof = {"theorem": "t", "statement": "theorem t : True", "proved": True, "proof": "trivial"}
    for name in ("a", "b"):
        write_lines(tmp_path / name / "proofs.jsonl", [proof])
        measures = {
            "items": 1,
            "metrics": {"proved": {"value": 1.0}},
            "published": {"Llemma 7B": {"proved": 0.2623}},
        }
        (tmp_path / name / "results.json").write_text(json.dumps({"tasks": {"minif2f": measures}}))
    index = index_of(run(tmp_path / "page", tmp_path / "a", tmp_path / "b"))
    assert [task["name"] for task in index["tasks"]] == ["minif2f"]
    assert index["tasks"][0]["results"][1]["published"] == [["Llemma 7B", [["proved", 0.2623]]]]
    assert index["states"] == [[17], [17]]
    assert index["items"]["title"] == ["True"]


def test_states_say_verdicts_disagreements_and_programs(tmp_path: Path) -> None:
    index = index_of(run(tmp_path / "page", *write_results(tmp_path)))
    state = dict(zip(index["items"]["id"], index["states"][0], strict=True))
    right, wrong, present = 1, 2, 16
    assert state["math_0"] == right | present
    assert state["math_1"] == wrong | present
    assert state["math_5"] == right | 8 | present  # 0.3125: math-verify alone accepts it
    assert state["gsm8k_0"] == right | 32 | present
    assert state["gsm8k_1"] == wrong | 32 | 64 | present
    assert state["solution_0"] == present
    assert (state["plus_n_O"], state["sqrt2"]) == (right | present, wrong | present)
    assert dict(zip(index["items"]["id"], index["right"][0], strict=True))["math_1"] == MATH[1][5][0]
    assert index["judged"][0][index["items"]["id"].index("solution_0")] == 0
    no_votes = write_lines(tmp_path / "x.jsonl", [
        plain(1, item="a", correct=True), plain(1, item="a", correct=False), plain(2, item="b"),
        plain(3, item="c", correct=1), plain(3, item="c", correct=None),
    ])  # fmt: skip
    assert index_of(run(tmp_path / "other", no_votes))["states"] == [[3 | present, present, right | present]]


def test_the_same_input_in_any_order_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_data, "CHUNK_BYTES", 3000)
    results = write_results(tmp_path)
    first = contents(run(tmp_path / "page", *results))
    assert len([name for name in first if "items-" in name]) > 5
    shuffled = random.Random(3)
    for path in tmp_path.glob("llemma*/*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        shuffled.shuffle(lines)
        path.write_text("".join([*lines, lines[0]]))  # and a line that stands twice
    assert contents(run(tmp_path / "again", *results)) == first


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["<!--", "\ud800", HOSTILE]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
))  # fmt: skip
def test_a_script_holds_any_data_and_ends_no_tag(value: Any) -> None:
    script = as_script("receiveChunk", 3, value)
    assert script.isascii()
    assert "<" not in script
    assert json.loads(script.removeprefix("explorer.store.receiveChunk(3,").removesuffix(");\n")) == value


@given(st.text(max_size=2000))
def test_a_title_is_one_short_line(text: str) -> None:
    title = one_line(text)
    assert len(title) <= page_data.TITLE_CHARACTERS + 1
    assert len(title.splitlines()) <= 1


def test_hostile_texts_are_never_names_of_fields(tmp_path: Path) -> None:
    output = run(tmp_path / "page", write_hostile(tmp_path / "hostile.jsonl"))

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(names, value.values()))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    used = names([index_of(output), items_of(output)])
    assert all(re.fullmatch("[a-z_]+", name) for name in used)
    assert "__proto__" not in used
    assert items_of(output)[0]["problem"] == HOSTILE


def test_generations_of_others_find_their_item_by_the_text(tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [plain(1), plain(2, correct=True), plain(1)])
    b = write_lines(
        tmp_path / "b.jsonl", [plain(3), plain(1, generation="other", level="Level 4", subject="S")]
    )
    output = run(tmp_path / "page", f"first={a}", b, "--max-samples", "1")
    index, items = index_of(output), items_of(output)
    assert [model["name"] for model in index["models"]] == ["first", "b"]
    # Tasks are the files' names here, so the two stand apart; with one task they stand beside each other.
    assert [task["name"] for task in index["tasks"]] == ["a", "b"]
    assert index["samples"] == [[2, 1, 0, 0], [0, 0, 1, 1]]
    assert items[0]["runs"][0]["left_out"] == 1
    lines = [{**json.loads(line), "task": "t"} for path in (a, b) for line in path.read_text().splitlines()]
    write_lines(a, lines[:3])
    write_lines(b, lines[3:])
    index = index_of(run(tmp_path / "both", a, b))
    assert index["items"]["title"] == ["What is 1?", "What is 2?", "What is 3?"]
    assert index["samples"] == [[2, 1, 0], [1, 0, 1]]


def test_names_html_and_models_of_lines(tmp_path: Path) -> None:
    lines = [plain(1, model="x"), plain(1, model="y", generation="1 &lt; 2 &amp;&amp; &#x27;")]
    path = write_lines(tmp_path / "a.jsonl", lines)
    output = run(tmp_path / "page", path, "--html", "--title", "T <&> T")
    assert [model["name"] for model in index_of(output)["models"]] == ["x", "y"]
    assert index_of(output)["title"] == "T <&> T"
    assert items_of(output)[0]["runs"][1]["samples"][0]["text"] == "1 < 2 && '"
    named = index_of(run(tmp_path / "named", f"mine={path}"))
    assert [model["name"] for model in named["models"]] == ["mine"]
    assert named["samples"] == [[2]]


def test_folders_of_one_name_are_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = {"metrics": {"accuracy": {"value": 1.0}}}
    for place, task in (("results/7b", "math"), ("proofs/7b", "minif2f")):
        (tmp_path / place).mkdir(parents=True)
        content = {"tasks": {task: measures}, "settings": {"temperature": len(task)}}
        (tmp_path / place / "results.json").write_text(json.dumps(content))
    write_lines(tmp_path / "results/7b/samples_math.jsonl", [plain(1, item="a", sample=0)])
    write_lines(tmp_path / "proofs/7b/proofs.jsonl", [{"theorem": "t", "statement": "s", "proved": True}])
    both = [f"7b={tmp_path}/{place}/7b" for place in ("results", "proofs")]
    index = index_of(run(tmp_path / "page", *both))
    assert [model["name"] for model in index["models"]] == ["7b"]
    assert [task["name"] for task in index["tasks"] if task["results"][0]] == ["math", "minif2f"]
    assert index["models"][0]["settings"] == [
        [f"{tmp_path}/results/7b.temperature", 4], [f"{tmp_path}/proofs/7b.temperature", 7]
    ]  # fmt: skip
    (tmp_path / "proofs/7b/results.json").write_text(json.dumps({"tasks": {"math": measures}}))
    assert "7b: math has measures in" in fail(capsys, tmp_path / "other", *both)
    assert "is called 7b too" in fail(
        capsys, tmp_path / "other", tmp_path / "results/7b", tmp_path / "proofs/7b"
    )


def test_a_model_without_lines_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = write_lines(tmp_path / "some.jsonl", [plain(1)])
    (tmp_path / "killed").mkdir()
    empty = tmp_path / "killed" / "samples_math.jsonl"
    empty.write_text('{"task": "math", "it')  # killed in its first line
    page = tmp_path / "page"
    explorer.main([f"A={some}", f"B={empty.parent}", "--output", str(page)])
    assert capsys.readouterr().err == (
        f"note: {empty}: holds no whole line, and the page is without the model B\n"
    )
    assert [model["name"] for model in index_of(page)["models"]] == ["A"]
    write_lines(empty.with_name("samples_other.jsonl"), [plain(2, item="a", sample=0)])
    explorer.main([f"A={some}", f"B={empty.parent}", "--output", str(page), "--overwrite"])
    assert capsys.readouterr().err == f"note: {empty}: holds no whole line\n"
    write_lines(some, [])
    explorer.main([f"A={some}", f"B={empty.parent}", "--output", str(page), "--overwrite"])
    assert f"note: {some}: holds no whole line, and the page is without the model A\n" in (
        capsys.readouterr().err
    )


def test_a_killed_run_s_last_line_is_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [plain(1), plain(2)])
    path.write_text(path.read_text() + '{"problem": "What is')
    assert len(items_of(run(tmp_path / "page", path))) == 2


BAD_LINES = [
    ("a.jsonl", "[1]\n", "a.jsonl:1: is no JSON object"),
    ("a.jsonl", '{"problem": "p"}\n', "a.jsonl:1: has no 'generation'"),
    ("a.jsonl", '{"generation": "g"}\n', "a.jsonl:1: has no 'problem'"),
    ("a.jsonl", '{"problem": 3, "generation": "g"}\n', "a.jsonl:1: problem=3: is no text"),
    (
        "a.jsonl",
        '{"problem": "p", "generation": "g", "correct": "yes"}\n',
        "correct='yes': is not true or false",
    ),
    ("a.jsonl", '{"problem": "p", "generation": "g", "sample": 1.5}\n', "sample=1.5: is no whole number"),
    ("a.jsonl", '{"theorem": "t", "proved": true}\n', "a.jsonl:1: has no 'statement'"),
    ("a.jsonl", "", "holds no sample and no proof"),
    ("r/other.txt", "x", "holds neither samples_*.jsonl nor proofs.jsonl"),
    (
        "r/samples_t.jsonl",
        '{"problem": "p", "generation": "g"}\n',
        "samples_t.jsonl:1: has no 'item' or 'sample'",
    ),
    ("r/votes_t.jsonl", '{"item": "i", "votes": 3}\n', "votes_t.jsonl:1: votes=3: is no object"),
    (
        "r/votes_t.jsonl",
        '{"item": "i", "votes": {}, "correct": null}\n',
        "votes_t.jsonl:1: item=i: has no sample",
    ),
    (
        "r/verdicts_t.jsonl",
        '{"item": "i", "sample": 0}\n',
        "verdicts_t.jsonl:1: item=i sample=0: has no sample",
    ),
    ("r/verdicts_t.jsonl", '{"item": "i"}\n', "verdicts_t.jsonl:1: has no 'sample'"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD_LINES)
def test_bad_input_names_file_and_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, said: str
) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    given = path.parent if path.parent.name == "r" else path
    assert said in fail(capsys, tmp_path / "page", given)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_lines(tmp_path / "a.jsonl", [plain(1)])
    assert "nowhere: is not there" in fail(capsys, tmp_path / "page", tmp_path / "nowhere")
    assert "--max-samples=0: must be at least 1" in fail(capsys, tmp_path / "page", good, "--max-samples", 0)
    for name in ("x/r", "y/r"):
        write_lines(tmp_path / name / "samples_t.jsonl", [plain(1, item="i", sample=0)])
    assert "is called r too" in fail(capsys, tmp_path / "page", tmp_path / "x/r", tmp_path / "y/r")
    run(tmp_path / "page", tmp_path / "x/r", f"other={tmp_path / 'y/r'}")
    (tmp_path / "x/r/results.json").write_text("[]")
    assert "results.json: is no results file" in fail(capsys, tmp_path / "page2", tmp_path / "x/r")
    other = write_lines(tmp_path / "b.jsonl", [plain(2, item="i", task="t")])
    assert "has another problem in" in fail(capsys, tmp_path / "page2", tmp_path / "y/r", other)
    differs = write_lines(
        tmp_path / "c.jsonl", [plain(1, item="i", sample=0), plain(1, item="i", sample=0, correct=True)]
    )
    assert "c.jsonl:2: item=i sample=0" in fail(capsys, tmp_path / "page2", differs)
    assert not (tmp_path / "page2").exists()


def test_nothing_but_an_explorer_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_lines(tmp_path / "a.jsonl", [plain(1)])
    output = tmp_path / "page"
    output.mkdir()
    run(output, good)  # an empty folder is taken
    before = contents(output)
    assert "add --overwrite" in fail(capsys, output, good)
    bad = write_lines(tmp_path / "bad.jsonl", [{}])
    fail(capsys, output, bad, "--overwrite")
    assert contents(output) == before
    (output / "data" / "notes.txt").write_text("mine")
    assert "holds data/notes.txt, which no explorer wrote" in fail(capsys, output, good, "--overwrite")
    (output / "data" / "notes.txt").unlink()
    run(output, write_lines(tmp_path / "a.jsonl", [plain(2)]), "--overwrite")
    assert items_of(output)[0]["problem"] == "What is 2?"
    for path, said in ((tmp_path, "holds "), (good, "is no folder")):
        assert said in fail(capsys, path, good, "--overwrite")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    assert (
        f"is a link, whose place a folder would take; give the folder it leads to ({tmp_path}/nothing"
        in fail(capsys, link, good)
    )
    with monkeypatch.context() as mounted:  # as a container has a volume
        mounted.setattr(os.path, "ismount", lambda path: Path(path) == output)
        assert (
            f"is a mount point, which no other folder can take the place of; give a folder in it ({output}/"
            in (fail(capsys, output, good, "--overwrite"))
        )
    with folder.drafted(output):
        assert "another explorer is being written" in fail(capsys, output, good, "--overwrite")
        assert (tmp_path / ".page.draft").is_dir()


@pytest.mark.slow
def test_a_kill_leaves_the_old_page_or_the_new_one(tmp_path: Path) -> None:
    old_results = write_lines(tmp_path / "old.jsonl", [plain(number) for number in range(300)])
    new_results = write_lines(tmp_path / "new.jsonl", [plain(number) for number in range(1000, 5000)])
    output = run(tmp_path / "page", old_results)
    old, new = contents(output), contents(run(tmp_path / "new_page", new_results))
    command = [
        sys.executable,
        "-m",
        "tools.explorer",
        str(new_results),
        "--output",
        str(output),
        "--overwrite",
    ]
    chance = random.Random(5)
    begun = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    for turn in range(6):
        run(output, old_results, "--overwrite")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert contents(output) in (old, new), turn
    run(output, new_results, "--overwrite")
    assert contents(output) == new
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_kill_between_the_two_renames_is_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_lines(tmp_path / "a.jsonl", [plain(1)])
    before = contents(run(tmp_path / "page", good))
    (tmp_path / "page").rename(tmp_path / ".page.old")
    fail(capsys, tmp_path / "page", write_lines(tmp_path / "bad.jsonl", [{}]))
    assert contents(tmp_path / "page") == before
    (tmp_path / ".page.old").mkdir()  # and a kill after them
    (tmp_path / ".page.old" / "index.html").touch()
    run(tmp_path / "page", good, "--overwrite")
    assert not (tmp_path / ".page.old").exists()


def test_memory_does_not_grow_with_the_generations(tmp_path: Path) -> None:
    lines = (plain(number % 50, generation=f"{number} " * 4000) for number in range(1500))
    path = write_lines(tmp_path / "a.jsonl", lines)
    tracemalloc.start()
    output = run(tmp_path / "page", *[path])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list((output / "data").glob("items-*.js"))) > 20
    assert peak_bytes < path.stat().st_size / 3


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [plain(1)])
    program = (
        "import sys; from tools import explorer; explorer.main(sys.argv[1:]);"
        "print([name for name in ('torch', 'numpy', 'lm_eval', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(path), "--output", str(tmp_path / "page")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# KaTeX 0.19.1 as npm has it: dist/katex.min.js, dist/katex.min.css, dist/fonts/*.woff2, and LICENSE.
KATEX_SHA256 = "cd4fd0a37907acc882f82e99ebe3302feab92370e7d543a40c848ec70f6593b2"


def test_katex_is_as_released(tmp_path: Path) -> None:
    paths = sorted(
        path for path in (PARTS / "katex").rglob("*") if path.is_file() and path.name != "README.md"
    )
    listing = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(PARTS / 'katex').as_posix()}\n"
        for path in paths
    )
    assert len(paths) == 23
    assert hashlib.sha256(listing.encode()).hexdigest() == KATEX_SHA256
    assert 'version:"0.19.1"' in (PARTS / "katex" / "katex.min.js").read_text()
    output = run(tmp_path / "page", write_lines(tmp_path / "a.jsonl", [plain(1)]))
    copied = {path.relative_to(PARTS / "katex") for path in paths}
    assert {
        path.relative_to(output / "katex") for path in (output / "katex").rglob("*") if path.is_file()
    } == copied


def test_the_page_s_files_are_all_named_by_the_page() -> None:
    page = (PARTS / "page" / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="((?:script|style)/[^"]+)"', page))
    there = {path.relative_to(PARTS / "page").as_posix() for path in (PARTS / "page").rglob("*.*")} - {
        "index.html"
    }
    assert named == there
    for path in (PARTS / "page").rglob("*.js"):
        text = path.read_text()
        assert text.startswith("// SPDX-License-Identifier: Apache-2.0\n// "), path
        assert '"use strict";' in text, path
        # Strings never become HTML, and nothing is evaluated.
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), path
        assert len(text.splitlines()) < 260, path


def test_real_data_of_every_kind(tmp_path: Path) -> None:
    data = shared_folder()
    samples = sorted(data.glob("*_llemma34b_samples.jsonl"))
    index = index_of(run(tmp_path / "page", *samples, "--html"))
    assert index["models"][0]["name"] == "llemma_34b"
    assert len(index["items"]["id"]) == sum(len(path.read_text().splitlines()) for path in samples)
    right = [json.loads(line)["correct"] for path in samples for line in path.read_text().splitlines()]
    assert sum(state & 3 == 1 for state in index["states"][0]) == sum(right)
    index = index_of(run(tmp_path / "solutions", data / "gsm8k_openai_model_solutions.jsonl"))
    assert (len(index["models"]), len(index["items"]["id"])) == (4, 1319)
    proofs = index_of(run(tmp_path / "proofs", data / "minif2f_llemma_proofs.jsonl"))
    assert sum(state & 3 == 1 for state in proofs["states"][0]) == 64
