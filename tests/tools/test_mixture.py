# SPDX-License-Identifier: Apache-2.0
"""tools/mixture.py as it is typed: tiny real runs, kills, the plan, an array job."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.loader import load_config
from tests.runs import Done, Place, make_place, run, start, write_texts
from tools.mixture import main
from tools.mixture_parts.runs import value_at


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("mixture"), num_hidden_layers=1)
    lines = [json.loads(line)["text"] for line in write_texts(place.folder / "t.jsonl", 9, 6).open()]
    documents = [{"problem": line[:40], "solution": line[40:]} for line in lines]
    (place.folder / "math.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    place.write(place.folder / "run.yml", train_iters=4, eval_interval=100, eval_iters=1, warmup_iters=1,
                checkpoint_factor=2)  # fmt: skip
    return place


def typed(place: Place, output: Path, *more: object, **options: Any) -> list[object]:
    """The command line of a study of three mixtures."""
    options = {
        "cpu_ranks": 1,
        "documents": place.folder / "math.jsonl",
        "template": "{problem}{solution}",
        "levels": 2,
        "output": output,
        **options,
    }
    words = [word for key, value in options.items() if value is not None
             for word in (f"--{key.replace('_', '-')}", value)]  # fmt: skip
    return ["tools/mixture.py", place.model_yaml, place.folder / "run.yml", *words, *more]


def values(output: Path) -> list[float]:
    return [
        json.loads((output / "points" / f"{number:03}" / "result.json").read_text())["value"]
        for number in range(3)
    ]


def succeeded(done: Done) -> Done:
    assert done.status == 0, done.err
    return done


@pytest.fixture(scope="module")
def whole(place: Place) -> tuple[Path, Done]:
    """A study that nobody disturbed."""
    output = place.folder / "whole"
    return output, succeeded(run(place.folder / "w", *typed(place, output)))


def test_runs_are_measured_fitted_drawn_and_become_yaml(place: Place, whole: tuple[Path, Done]) -> None:
    output, done = whole
    report = json.loads((output / "report.json").read_text())
    assert [one["weights"] for one in report["runs"]] == [[1, 0], [0.5, 0.5], [0, 1]]
    assert [one["value"] for one in report["runs"]] == values(output)
    assert len(set(values(output))) == 3  # another mixture is another run
    assert report["best_perplexity_per_byte"] == pytest.approx(2 ** report["best_value"])
    assert (output / "mixture.png").read_bytes().startswith(b"\x89PNG")
    best = yaml.safe_load((output / "best.yml").read_text())
    assert best == {"train_data_weights": list(report["best_weights"].values())}
    assert sum(best["train_data_weights"]) == pytest.approx(1)
    assert f"{report['best_weights']['arxiv']:.4f}" in done.out
    assert "no uncertainty" in done.out  # three runs decide three coefficients
    # What the run read is what it was told to, and checkpoints are gone once they are measured.
    assert "code: has weight 0 and is not read" in (output / "points" / "000" / "run.log").read_text()
    assert not list(output.glob("points/*/save/global_step*"))
    # The YAML file is taken by the long run.
    files = [place.model_yaml, place.folder / "run.yml", output / "best.yml"]
    assert load_config(files, overrides=["save=there"])[0].data.train_data_weights == tuple(
        best["train_data_weights"]
    )


def test_the_value_is_what_bits_per_byte_says(place: Place, whole: tuple[Path, Done], tmp_path: Path) -> None:
    output = tmp_path / "kept"
    succeeded(run(tmp_path / "a", *typed(place, output, "--point", 1, "--keep-checkpoints")))
    texts = write_texts(tmp_path / "t.jsonl", 9, 6)
    done = succeeded(run(
        tmp_path, "tools/bits_per_byte.py", output / "points" / "001" / "save", "--documents", f"x={texts}",
        "--json", tmp_path / "x.json",
    ))  # fmt: skip
    value = json.loads((tmp_path / "x.json").read_text())["sources"]["x"]["bits_per_byte"]
    result = json.loads((output / "points" / "001" / "result.json").read_text())
    assert result["value"] == value == values(whole[0])[1], done.err


def test_killed_it_goes_on_and_finished_points_are_kept(
    place: Place, whole: tuple[Path, Done], tmp_path: Path
) -> None:
    output = tmp_path / "study"
    process = start(tmp_path / "a", *typed(place, output))
    first, second = (output / "points" / name for name in ("000", "001"))
    deadline = time.monotonic() + 240
    while not (second / "save" / "global_step2").exists():
        assert process.poll() is None, (tmp_path / "a" / "err.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    finished = (first / "result.json").stat().st_mtime_ns
    done = succeeded(run(tmp_path / "b", *typed(place, output)))
    assert "finished before" in done.out
    assert (first / "result.json").stat().st_mtime_ns == finished
    assert values(output) == values(whole[0])
    assert "--output" in run(tmp_path / "c", *typed(place, output, levels=3)).err  # another study


def test_a_command_measures_and_failures_keep_their_words(place: Place, tmp_path: Path) -> None:
    script = tmp_path / "measure.py"
    repaired = (
        "import json, sys\nfrom pathlib import Path\n"
        "assert (Path(sys.argv[1]) / 'latest').read_text().strip() == 'global_step1'\n"
        "json.dump({'results': {'math': {'exact_match,none': 0.25}}}, open(sys.argv[2], 'w'))\n"
    )
    script.write_text(repaired)
    options = {
        "documents": None,
        "template": None,
        "metric": "results/math/exact_match,none",
        "set": "train_iters=1",
        "metric_command": f"{sys.executable} {script} {{checkpoint}} {{json}}",
    }
    output = tmp_path / "o"
    command = typed(place, output, "--maximise", "--point", 2, **options)
    done = succeeded(run(tmp_path / "a", *command))
    assert "results/math/exact_match,none 0.25" in done.out
    done = run(tmp_path / "b", *typed(place, output, "--maximise", "--fit", **options))
    assert (done.status, "do not decide" in done.err) == (2, True)
    script.write_text(
        'import sys\nopen(sys.argv[2], \'w\').write(\'{"results": {"math": {"exact_match,none": NaN}}}\')'
    )
    spoilt = typed(place, tmp_path / "n", "--maximise", "--point", 2, **options)
    done = run(tmp_path / "d", *spoilt)
    assert (done.status, "is nan for" in done.err) == (2, True)
    script.write_text(repaired)
    assert "results/math/exact_match,none 0.25" in succeeded(run(tmp_path / "e", *spoilt)).out
    script.write_text("import sys; sys.exit('the harness is not installed')")
    command = typed(place, tmp_path / "p", "--maximise", "--point", 0, **options)
    done = run(tmp_path / "c", *command)
    assert done.status == 2
    assert "the harness is not installed" in done.err


def test_the_plan_shows_points_and_cost_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    options = {"plan_options": "--nodes 1 --gpus-per-node 1 --gpu h100", "cpu_ranks": None, "repeats": 2}
    done = succeeded(run(tmp_path / "a", *typed(place, tmp_path / "o", "--plan", **options), is_cold=True))
    assert "6 runs; the quadratic surface has 3 coefficients" in done.out
    assert "4 steps, 1,024 tokens" in done.out
    assert "all: 6,144 tokens" in done.out
    assert not (tmp_path / "o").exists()


def test_unfinished_points_become_an_array_job(
    place: Place, whole: tuple[Path, Done], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    more = [
        "--set",
        "num_nodes=1",
        "--set",
        "num_gpus=4",
        "--set",
        "slurm_time=2:00:00",
        "--submit",
        "--dry-run",
    ]
    words = [str(word) for word in typed(place, tmp_path / "o", *more, cpu_ranks=None)[1:]]
    main([*words, "--at-once", "2"])
    script = capsys.readouterr().out
    assert "#SBATCH --array=0,1,2%2" in script
    assert "#SBATCH --time=2:00:00" in script
    assert "#SBATCH --gpus-per-node=4" in script
    line = next(line for line in script.splitlines() if line.startswith("exec "))
    assert "tools/mixture.py --point array " in line
    assert not {"--submit", "--dry-run", "--at-once"} & set(line.split())
    assert not (tmp_path / "o").exists()
    # A task of it, as SLURM starts it, finds its point; the finished ones are not asked for again.
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    main([str(word) for word in typed(place, whole[0], "--point", "array")[1:]])
    assert "point 1 (0.500, 0.500)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(word) for word in typed(place, whole[0], "--submit", "--dry-run")[1:]])
    assert "use --fit" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "options", "said"), [
    ((), {"documents": None}, "give one of the two"),
    (("--metric", "acc"), {}, "give both"),
    (("--maximise",), {}, "bits per byte"),
    (("--set", "save=/x"), {}, "--set=save=/x"),
    (("--fix", "web=0.1"), {}, "--fix=web=0.1"),
    (("--bounds", "code=2"), {}, "NAME=LOW:HIGH"),
    (("--bounds", "code=0.9:1", "arxiv=0.9:1"), {}, "no mixture keeps them"),
    (("--design", "dirichlet"), {}, "add --points"),
    (("--only-weights",), {}, "give --weights"),
    (("--point", "9"), {}, "from 0 to 2"),
    (("--point", "array"), {}, "SLURM_ARRAY_TASK_ID"),
    ((), {"template": "{answer}"}, "does not fill --template"),
])  # fmt: skip
def test_wrong_options_are_told(
    place: Place, tmp_path: Path, more: tuple[str, ...], options: dict[str, Any], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in typed(place, tmp_path / "o", *more, **options)[1:]])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_path_of_keys_says_what_is_there() -> None:
    assert value_at({"a": {"b,none": 3}}, "a/b,none") == 3.0
    for path in ("a", "a/c", "a/b,none/c", "d"):
        with pytest.raises(UserError, match=f"--metric={path}"):
            value_at({"a": {"b,none": 3}, "d": True}, path)
