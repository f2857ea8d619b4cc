# SPDX-License-Identifier: Apache-2.0
"""tools/overlap.py as it is typed: every form of corpus, kills, bad input, clean corpora, hostile reports."""

from __future__ import annotations

import gzip
import html.parser
import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from eval_tasks.results.samples import Sample, SampleWriter, Verdict, verdicts_file, write_records
from megatron.data.token_file import TokenFile
from tests.data.corpora import train_sentencepiece, write_documents
from tests.tools.overlaps import (
    arguments,
    documents,
    fail,
    items,
    plain_hits,
    read_hits,
    succeed,
    write_jsonl,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("test") / "test.jsonl"
    lines = [
        json.dumps({"problem": item, "level": f"Level {number % 3 + 1}"})
        for number, item in enumerate(items())
    ]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def hits_by_where(output: Path) -> set[tuple[str, int, str]]:
    return {
        (Path(hit["where"]).name, item, hit["ngram"]) for hit in read_hits(output) for item in hit["items"]
    }


def write_corpora(folder: Path, texts: list[str]) -> tuple[list[Path], dict[int, str]]:
    """The documents in every form there is; returns the arguments, and where each document stands."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(texts) // 5
    parts = [texts[at : at + size] for at in range(0, 5 * size, size)]
    plain = write_jsonl(folder / "a.jsonl", parts[0])
    raw = write_jsonl(folder / "tmp.jsonl", parts[1]).read_bytes()
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(raw[:900]) + zstandard.compress(raw[900:]))
    raw = write_jsonl(folder / "tmp.jsonl", parts[2]).read_bytes()
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(raw))
    (folder / "tmp.jsonl").unlink()
    table = pyarrow.table({"id": range(size), "text": parts[3], "tag": [["x", str(n)] for n in range(size)]})
    pyarrow.parquet.write_table(table, folder / "d.parquet", row_group_size=7)
    (folder / "e" / "deep").mkdir(parents=True)
    for number, text in enumerate(parts[4]):
        name = f"{'deep/' if number % 2 else ''}{number:03}.tex"
        (folder / "e" / name).write_bytes(text.encode())
    wheres = {}
    for part, name in enumerate(("a.jsonl", "b.jsonl.zst", "c.jsonl.gz", "d.parquet")):
        wheres.update({part * size + number: f"{name}:{number + 1}" for number in range(size)})
    wheres.update({4 * size + number: f"{number:03}.tex" for number in range(size)})
    names = ("b.jsonl.zst", "c.jsonl.gz", "d.parquet", "e")
    return [plain, *(folder / name for name in names)], wheres


def test_every_form_of_corpus_and_what_is_left_when_hits_are_dropped(tmp_path: Path, test_set: Path) -> None:
    texts = documents(100)
    corpora, wheres = write_corpora(tmp_path / "corpora", texts)
    clean = tmp_path / "clean"
    command = arguments(test_set, tmp_path / "out", *corpora, write_clean=clean)
    succeed(command)
    expected = {(wheres[doc], item, gram) for doc, item, gram in plain_hits(texts, items(), 30)}
    assert len(expected) > 100
    assert hits_by_where(tmp_path / "out") == expected
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    hit_documents = {where for where, _, _ in expected}
    assert sum(corpus["documents"] for corpus in report["corpora"]) == 100
    assert sum(corpus["hit_documents"] for corpus in report["corpora"]) == len(hit_documents)
    assert {entry["item"] for entry in report["hits_by_item"]} == {item for _, item, _ in expected}
    assert report["items_too_short"] == sum(len(item.split()) < 30 for item in items())
    # Clean corpora have the same forms; searched again they have no hit, and nothing else is missing.
    kept = [text for number, text in enumerate(texts) if wheres[number] not in hit_documents]
    assert read_back(clean) == kept
    again = [clean / path.name for path in corpora]
    succeed(arguments(test_set, tmp_path / "out2", *again))
    assert read_hits(tmp_path / "out2") == []
    first = (clean / "a.jsonl").read_bytes().splitlines()
    assert set(first) < set(corpora[0].read_bytes().splitlines())  # lines keep their bytes
    assert pyarrow.parquet.read_table(clean / "d.parquet").schema.names == ["id", "text", "tag"]
    # The same command does nothing anew and leaves the same.
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")}
    succeed(command)
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("[!.]*")} == before


def read_back(clean: Path) -> list[str]:
    """All documents of the clean corpora, in order."""
    raw = (clean / "a.jsonl").read_bytes()
    with zstandard.open(clean / "b.jsonl.zst", "rb") as file:
        raw += file.read()
    raw += gzip.decompress((clean / "c.jsonl.gz").read_bytes())
    texts = [orjson.loads(line)["text"] for line in raw.splitlines()]
    texts += pyarrow.parquet.read_table(clean / "d.parquet").column("text").to_pylist()
    files = sorted((clean / "e").rglob("*.tex"), key=lambda path: path.name)
    return [*texts, *(path.read_bytes().decode() for path in files)]


def test_masking_keeps_all_but_the_words(tmp_path: Path, test_set: Path) -> None:
    question = next(item for item in items() if len(item.split()) == 46)
    kept = "before\n\n\tit"
    text = f"{kept} {' '.join(question.split()[2:40])}\n and after"
    corpus = write_jsonl(tmp_path / "c.jsonl", [text, "no hit"])
    command = arguments(test_set, tmp_path / "out", corpus, write_clean=tmp_path / "clean", clean="mask")
    succeed([*command, "--mask-text", "[…]"])
    lines = [json.loads(line) for line in (tmp_path / "clean" / "c.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [f"{kept} […]\n and after", "no hit"]
    assert [line["meta"] for line in lines] == [{"n": 0, "big": 2**70}, {"n": 1, "big": 2**70}]


def test_tokens_in_text_and_in_token_files(tmp_path: Path) -> None:
    model = train_sentencepiece(tmp_path)
    questions = ["The derivative of the function is zero at x = 3", "short"]
    test = write_jsonl(tmp_path / "t.jsonl", questions, key="problem")
    texts = [questions[0], "nothing", f"{questions[0]} and more", "The derivative"]
    corpus = write_jsonl(tmp_path / "c.jsonl", texts)
    tokenizer = {"unit": "tokens", "tokenizer_type": "SPMTokenizer", "vocab_file": model, "ngram": 8}
    succeed(arguments(test, tmp_path / "text", corpus, **tokenizer))
    hits = read_hits(tmp_path / "text")
    assert {hit["where"] for hit in hits} == {f"{corpus}:1", f"{corpus}:3"}
    assert all(hit["ngram"] in questions[0] for hit in hits)

    from megatron.tokenizer import build_tokenizer

    spm = build_tokenizer("SPMTokenizer", model)
    prefix = write_documents(
        tmp_path / "tokens_document", [[*spm.encode(text), spm.eod_id] for text in texts], spm
    )
    command = arguments(test, tmp_path / "bin", prefix, write_clean=tmp_path / "clean", **tokenizer)
    succeed(command)
    assert [(hit["items"], hit["position"], hit["ngram"]) for hit in read_hits(tmp_path / "bin")] == [
        (hit["items"], hit["position"], hit["ngram"]) for hit in hits
    ]
    assert {hit["where"] for hit in read_hits(tmp_path / "bin")} == {f"{prefix}:0", f"{prefix}:2"}
    clean = TokenFile.open(tmp_path / "clean" / "tokens_document")
    assert [clean.document(number).tolist()[:-1] for number in range(2)] == [
        spm.encode(texts[1]),
        spm.encode(texts[3]),
    ]
    assert "other tokenizer" not in fail(arguments(test, tmp_path / "no", prefix))
    other = write_documents(tmp_path / "other_document", [[5, 6]])
    assert "another tokenizer" in fail(arguments(test, tmp_path / "no", other, **tokenizer))


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".overlap" not in path.parts
    }


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path: Path, test_set: Path) -> None:
    generator = random.Random()
    texts = documents(60)
    corpora = [
        write_jsonl(tmp_path / "one.jsonl", texts * 40),
        write_jsonl(tmp_path / "two.jsonl", texts[::-1] * 40),
    ]
    options: dict[str, Any] = {"workers": 2, "write_clean": tmp_path / "clean", "clean": "mask"}
    started = time.monotonic()
    assert subprocess.run(arguments(test_set, tmp_path / "out", *corpora, **options)).returncode == 0
    seconds = time.monotonic() - started
    whole = outputs(tmp_path / "out"), outputs(tmp_path / "clean")
    (tmp_path / "clean").rename(tmp_path / "first")
    command = arguments(test_set, tmp_path / "again", *corpora, **options)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(0.3 * seconds + generator.random() * seconds * 0.9)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            continue
        break
    succeed(command)
    assert (outputs(tmp_path / "again"), outputs(tmp_path / "clean")) == whole


def test_a_search_goes_on_after_its_last_commit(tmp_path: Path, test_set: Path) -> None:
    """Hits behind the state are cut off, those before it are not searched again."""
    from tools.overlap_parts import scan
    from tools.overlap_parts.corpus import places_of
    from tools.overlap_parts.items import Spec

    texts = documents(60)
    corpus = write_jsonl(tmp_path / "one.jsonl", texts * 30)
    succeed(arguments(test_set, tmp_path / "whole", corpus))

    def job(output: Path) -> scan.Job:
        places = tuple(places_of([corpus], "words"))
        return scan.Job(Spec(test_set, "problem", 30), places, "text", None, output, False, 1)

    class Killed(Exception):
        pass

    searched: list[Any] = []
    limit = 3
    search_stretch = scan.search_stretch

    def counted(stretch: Any, spec: Spec) -> Any:
        if len(searched) == limit:
            raise Killed
        searched.append(stretch)
        return search_stretch(stretch, spec)

    with pytest.MonkeyPatch.context() as patch, scan.sole_writer(tmp_path / "out"):
        patch.setattr(scan, "COMMIT_SECONDS", -1.0)
        patch.setattr(scan, "search_stretch", counted)
        with pytest.raises(Killed):
            scan.run_search(job(tmp_path / "out"), False)
        with open(tmp_path / "out" / ".overlap" / "hits.jsonl", "ab") as file:
            file.write(b'{"half a li')
        first = searched[:]
        searched.clear()
        limit = 10**6
        state = scan.run_search(job(tmp_path / "out"), False)
    assert {id(stretch) for stretch in first}.isdisjoint(map(id, searched))
    assert first[-1].first_line < searched[0].first_line
    assert state.counts[0].documents == 1800
    assert (tmp_path / "out" / "hits.jsonl").read_bytes() == (tmp_path / "whole" / "hits.jsonl").read_bytes()


def test_broken_input_is_counted_and_stops_only_when_it_should(tmp_path: Path, test_set: Path) -> None:
    question = next(item for item in items() if len(item.split()) >= 45)
    good = json.dumps({"text": question}).encode()
    corpus = tmp_path / "c.jsonl"
    corpus.write_bytes(
        b"\n".join([good, b'{"text": 3}', b"no json", b'{"text": "\xff"}', b'["x"]', good]) + b"\n"
    )
    whole = zstandard.compress(b"\n".join([good] * 3000))
    (tmp_path / "cut.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.tex").write_bytes(b"\xff\xfe")
    (tmp_path / "texts" / "empty.tex").write_bytes(b"")
    corpora = [corpus, tmp_path / "cut.jsonl.zst", tmp_path / "texts"]
    shown = fail(arguments(test_set, tmp_path / "out", *corpora))
    assert f"{corpus}:2" in shown
    assert "--on-bad-line skip" in shown
    # The search that was stopped by the line goes on when it is allowed to.
    command = arguments(
        test_set, tmp_path / "out", *corpora, write_clean=tmp_path / "clean", on_bad_line="skip"
    )
    succeed(command)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [corpus["broken"] for corpus in report["corpora"]] == [4, 1, 1]
    assert report["corpora"][0]["hit_documents"] == 2
    assert report["clean"]["unsearched"] == 6
    assert (tmp_path / "clean" / "c.jsonl").read_bytes() == b""


@pytest.mark.parametrize(("changes", "said"), [
    ({"key": "nothing"}, "--key"),
    ({"unit": "tokens"}, "--tokenizer-type"),
    ({"match_short_from": 40}, "must be below --ngram=30"),
    ({"metric": "acc"}, "add them"),
    ({"results": "/none.jsonl"}, "--results"),
    ({"id_key": "problem_id"}, "--id-key"),
    ({"corpus": "/none"}, "does not exist"),
    ({"write_clean": "."}, "--write-clean"),
])  # fmt: skip
def test_wrong_options_are_told(tmp_path: Path, test_set: Path, changes: dict[str, Any], said: str) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", ["x"])
    if changes.get("write_clean") == ".":
        changes = {"write_clean": tmp_path}
    corpora = [Path(changes.pop("corpus"))] if "corpus" in changes else [corpus]
    assert said in fail(arguments(test_set, tmp_path / "out", *corpora, **changes))


def test_nothing_of_others_is_overwritten(tmp_path: Path, test_set: Path) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", ["x"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert "thesis.tex" in fail([*arguments(test_set, tmp_path / "out", corpus), "--overwrite"])
    succeed(arguments(test_set, tmp_path / "mine", corpus))
    write_jsonl(corpus, ["x", "y"])
    assert "--overwrite" in fail(arguments(test_set, tmp_path / "mine", corpus))
    succeed([*arguments(test_set, tmp_path / "mine", corpus), "--overwrite"])
    assert json.loads((tmp_path / "mine" / "report.json").read_text())["corpora"][0]["documents"] == 2


def test_a_corpus_that_changed_in_place_is_not_the_one_that_was_searched(
    tmp_path: Path, test_set: Path
) -> None:
    """Two lines of one size change places: paths, sizes and the cut stay what they were."""
    question = next(item for item in items() if len(item.split()) > 30)
    other = "x" * len(question.encode())
    corpus = write_jsonl(tmp_path / "c.jsonl", [question, other])
    command = arguments(test_set, tmp_path / "out", corpus)
    succeed(command)
    size = corpus.stat().st_size
    write_jsonl(corpus, [other, question])
    assert corpus.stat().st_size == size
    cleaning = arguments(test_set, tmp_path / "out", corpus, write_clean=tmp_path / "clean")
    assert "--overwrite" in fail(cleaning)
    assert not (tmp_path / "clean").exists()
    succeed([*cleaning, "--overwrite"])
    assert json.loads((tmp_path / "clean" / "c.jsonl").read_text())["text"] == other


def test_a_text_under_two_corpora_is_refused(tmp_path: Path, test_set: Path) -> None:
    inner = write_jsonl(tmp_path / "d" / "a.jsonl", ["x"])
    said = fail(arguments(test_set, tmp_path / "out", tmp_path / "d", inner))
    assert f"--corpus={inner}: lies in {tmp_path / 'd'}, which is searched too" in said
    said = fail(arguments(test_set, tmp_path / "out", inner, tmp_path / "d" / ".." / "d" / "a.jsonl"))
    assert "stands twice" in said


def test_clean_corpora_stay_in_their_folder(
    tmp_path: Path, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "corp" / "a.jsonl", ["x"])
    (tmp_path / "corp" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "corp" / "sub")
    succeed(arguments(test_set, tmp_path / "out", Path(".."), write_clean=tmp_path / "clean"))
    assert (tmp_path / "clean" / "corp" / "a.jsonl").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "corp", "out"]


class Tags(html.parser.HTMLParser):
    """The tags, attributes and text of a page, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_runs_nothing_that_a_document_says(tmp_path: Path) -> None:
    attack = """<script>alert(1)</script> <img src=x onerror=alert(2)> "onmouseover='alert(3)' </td></table>
        </code><svg/onload=alert(4)> &lt;script&gt; ]]> --> <!-- javascript:alert(5) \u202e \x00 end"""
    test = write_jsonl(tmp_path / "<b>t.jsonl", [attack], key="problem", level="<i>hard</i>")
    corpus = write_jsonl(tmp_path / "<u onclick=alert(6)>.jsonl", [f"{attack} {attack}"])
    results = tmp_path / "r.jsonl"
    results.write_text(json.dumps({"problem": attack, "correct": True, "level": "<script>x</script>"}) + "\n")
    command = arguments(test, tmp_path / "out", corpus, ngram=5, results=results, id_key="problem")
    succeed(command)
    page = (tmp_path / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    known = "html head meta title style body h1 h2 p code table tr th td span br"
    assert set(tags.tags) <= set(known.split())
    assert {name for name, _ in tags.attributes} <= {"lang", "charset", "http-equiv", "content", "class"}
    assert "<script>alert(1)</script>" in "".join(tags.texts)
    assert "default-src 'none'" in page
    assert "http:" not in page
    assert "https:" not in page


@pytest.mark.parametrize("of", ["problem", "reference"])
def test_verdicts_of_evaluate_are_results_as_they_are(tmp_path: Path, test_set: Path, of: str) -> None:
    """Two samples an item; its text, under whichever name, and its level lie in the samples beside them."""
    questions = items()
    hit = [number for number, item in enumerate(questions) if len(item.split()) >= 30][:8]
    corpus = write_jsonl(tmp_path / "c.jsonl", [questions[number] for number in hit])
    folder = tmp_path / "results"
    verdicts = []
    with SampleWriter(folder, "llemma_math") as writer:
        for number, question in enumerate(questions):
            problem, reference = (question, "other") if of == "problem" else ("other", question)
            for sample in range(2):
                made = Sample(
                    "llemma_math", f"x{number}", sample, problem, reference, number % 3 + 1, generation=""
                )
                writer.append([made])
                right = (number + sample) % 3 == 0
                verdicts.append(Verdict(f"x{number}", sample, None, right, None, right))
    write_records(verdicts_file(folder, "llemma_math"), verdicts)
    command = arguments(test_set, tmp_path / "out", corpus, results=verdicts_file(folder, "llemma_math"))
    succeed(command)
    table = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    assert (table["results"], table["unmatched_results"], table["items_without_result"]) == (120, 0, 0)
    assert [row["level"] for row in table["rows"]] == ["1", "2", "3", "all items"]
    for number, row in enumerate(table["rows"]):
        for name, is_hit in (("with_hits", True), ("without_hits", False)):
            of_row = [n for n in range(60) if (number == 3 or n % 3 == number) and (n in hit) == is_hit]
            count = sum((n + sample) % 3 == 0 for n in of_row for sample in (0, 1))
            assert (row[name]["right"], row[name]["of"]) == (count, 2 * len(of_row))
            assert row[name]["accuracy"] == (count / (2 * len(of_row)) if of_row else None)


def test_items_without_a_level_have_a_row_of_their_own(tmp_path: Path) -> None:
    test = tmp_path / "t.jsonl"
    test.write_text("".join(json.dumps({"problem": f"{n} is a number"}) + "\n" for n in range(4)))
    corpus = write_jsonl(tmp_path / "c.jsonl", ["x"])
    results = tmp_path / "r.jsonl"
    lines = [{"id": n, "correct": n > 0, **({"level": "1"} if n < 3 else {})} for n in range(4)]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeed(arguments(test, tmp_path / "out", corpus, results=results))
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["rows"]
    shares = [(row["level"], row["without_hits"]["right"], row["without_hits"]["of"]) for row in rows]
    assert shares == [("1", 2, 3), ("no level", 1, 1), ("all items", 3, 4)]


def test_accuracy_with_and_without_hits(tmp_path: Path, test_set: Path) -> None:
    questions = items()
    hit = [number for number, item in enumerate(questions) if len(item.split()) >= 30][:8]
    corpus = write_jsonl(tmp_path / "c.jsonl", [questions[number] for number in hit])
    lines = [
        {
            "doc_id": number,
            "doc": {"problem": item, "level": f"Level {number % 3 + 1}"},
            "exact_match": number % 2,
        }
        for number, item in enumerate(questions)
    ]
    lines.append({"doc_id": 0, "doc": {"problem": "of another test set"}, "exact_match": 1})
    results = tmp_path / "samples.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeed(arguments(test_set, tmp_path / "out", corpus, results=results))
    table = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    assert [row["level"] for row in table["rows"]] == ["Level 1", "Level 2", "Level 3", "all items"]
    assert (table["results"], table["unmatched_results"], table["items_without_result"]) == (61, 1, 0)
    for number, row in enumerate(table["rows"]):
        of_level = [n for n in range(60) if number == 3 or n % 3 == number]
        for name, members in (
            ("with_hits", [n for n in of_level if n in hit]),
            ("without_hits", [n for n in of_level if n not in hit]),
        ):
            assert (row[name]["right"], row[name]["of"]) == (sum(n % 2 for n in members), len(members))
