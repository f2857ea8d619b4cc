# SPDX-License-Identifier: Apache-2.0
"""Checks whole proofs that evaluate.py had a model write, and says pass@k.

Each proof is replayed below the statement in a fresh prover with allowed axioms only. Proofs that were
refused can be written out with the prover's message for a round of repair.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_tasks.measures.intervals import mean
from eval_tasks.measures.sampling import pass_at_k, powers_up_to
from eval_tasks.results.json_lines import encoded_line
from eval_tasks.results.published import FIGURES
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from tools.argument_types import at_least
from tools.prove_parts import prover_options
from tools.prove_parts.attempts import REFUSED, TIMED_OUT, Attempt, AttemptRun, judged, read_attempts
from tools.prove_parts.records import PROOFS
from tools.prove_parts.report import as_markdown, summary, write_report
from tools.prove_parts.scratch import sweep
from tools.prove_parts.workers import records_of

SUMMARY = "check whole proofs that evaluate.py had written"
EPILOG = """\
The same command goes on where it was stopped. See docs/informal_to_formal.md.

examples:
  python evaluate.py llemma_7b --tasks llemma_minif2f_isabelle --output proofs/written
  isabelle server -n prove > server.txt &
  python tools/prove.py whole proofs/written --prover isabelle --isabelle-server server.txt \\
      --output proofs/checked --failures failures.jsonl
  python evaluate.py llemma_7b --tasks llemma_minif2f_isabelle_repair \\
      --data llemma_minif2f_isabelle_repair=failures.jsonl --output proofs/repaired
  python tools/prove.py whole proofs/written proofs/repaired --prover isabelle \\
      --isabelle-server server.txt --output proofs/checked_twice
"""
_DIFFERENCES = (
    "backslashes of the prompts are whole here, theirs were damaged; each call of sledgehammer is tried on "
    "its own by Isabelle's server, theirs in order by Portal-to-ISAbelle"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS",
        help="a folder of evaluate.py or a file of samples; each further one is a round of repair",
    )  # fmt: skip
    prover_options.add_prover_options(parser, prover_options.CHECKING)
    parser.add_argument(
        "--header", type=Path, metavar="FILE", help="imports and the like, for theorems that bring none"
    )
    parser.add_argument(
        "--workers", type=at_least(1), default=1, metavar="N",
        help="proofs at a time, each with a prover of its own (default: 1)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER",
        help="gets attempts.jsonl, proofs.jsonl, results.json, results.md",
    )  # fmt: skip
    output.add_argument(
        "--failures", type=Path, metavar="FILE",
        help="gets a line a theorem that was not proved, with a proof that was refused and why, for the task "
        "llemma_minif2f_isabelle_repair",
    )  # fmt: skip
    output.add_argument("--overwrite", action="store_true", help="begin anew, whatever the folder holds")
    prover_options.add_try_again(output, "proofs")


def run(args: argparse.Namespace) -> None:
    """The subcommand.

    Raises:
        UserError: something of the user's is wrong.
    """
    header = _header(args)
    attempts = read_attempts(args.results, args.prover, header)
    if not attempts:
        raise UserError(f"{args.results[0]}: holds no sample; finish the run with the command that began it")
    make_checker = prover_options.make_checker(args)
    settings = _settings(args, header)
    sweep()
    attempt_run = AttemptRun(args.output, settings, args.overwrite, args.try_again)
    try:
        lines = {attempt.key: attempt_run.done.get(attempt.key) for attempt in attempts}
        for line in records_of(attempt_run.left(attempts), make_checker, judged, args.workers):
            attempt_run.append(line)
            lines[f"{line['theorem']} {line['round']} {line['sample']}"] = line
            _tell(line, lines)
        verdicts = {key: line for key, line in lines.items() if line is not None}
        proofs = proof_lines(attempts, verdicts)
        write_whole(args.output / PROOFS, b"".join(map(encoded_line, proofs)))
        content = report(args.results[0].stem, attempts, verdicts, proofs, settings)
        write_report(args.output, content)
        if args.failures is not None:
            write_whole(args.failures, b"".join(map(encoded_line, failures(attempts, verdicts, proofs))))
    finally:
        attempt_run.close()
    print(as_markdown(content))
    print(_pass_line(content))


def proof_lines(
    attempts: Sequence[Attempt], verdicts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One line a theorem, in the order of the attempts, as `prove.py search` has them."""
    found: dict[str, dict[str, Any]] = {}
    for attempt in attempts:
        verdict = verdicts[attempt.key]
        line = found.setdefault(
            attempt.theorem.name,
            {
                "theorem": attempt.theorem.name, "statement": attempt.theorem.statement, "proved": False,
                "proof": None, "seconds": 0.0, "expansions": 0, "status": verdict["status"],
                "message": verdict["message"], "tree": None, "round": None, "right": 0,
            },
        )  # fmt: skip
        line["seconds"] = round(line["seconds"] + verdict["seconds"], 3)
        line["expansions"] += 1
        line["right"] += verdict["ok"]
        if verdict["ok"] and not line["proved"]:
            line |= {"proved": True, "proof": attempt.proof, "status": "proved", "message": ""}
            line["round"] = attempt.round
    return list(found.values())


def report(
    task: str,
    attempts: Sequence[Attempt],
    verdicts: Mapping[str, Mapping[str, Any]],
    proofs: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `results.json`: theorems proved in any round, and pass@k of the first round."""
    content = summary(task, proofs, settings)
    found = content["tasks"][task]
    statuses = Counter(verdicts[attempt.key]["status"] for attempt in attempts)
    found["attempts"] = dict(statuses.most_common())
    first: dict[str, list[bool]] = {}
    for attempt in attempts:
        if attempt.round == 0:
            first.setdefault(attempt.theorem.name, []).append(bool(verdicts[attempt.key]["ok"]))
    fewest = min(len(each) for each in first.values())
    found["samples_per_item"] = fewest
    for k in powers_up_to(fewest):
        shares = [pass_at_k(sum(each), len(each), k) for each in first.values()]
        found["metrics"][f"pass@{k}"] = mean(shares).as_fields()
    rounds = max(attempt.round for attempt in attempts) + 1
    found["proved_in_round"] = [sum(line["round"] == number for line in proofs) for number in range(rounds)]
    if settings["prover"] == "isabelle":
        split = "_validation" if attempts[0].source.task.endswith("_validation") else ""
        found["published"] = FIGURES[f"minif2f_isabelle{split}"].as_fields()
        found["comparable"] = _DIFFERENCES
    return content


def failures(
    attempts: Sequence[Attempt],
    verdicts: Mapping[str, Mapping[str, Any]],
    proofs: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A row for each theorem without a proof: the first refused attempt of its last round, and why."""
    open_theorems = {line["theorem"] for line in proofs if not line["proved"]}
    rows: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
    for attempt in attempts:
        verdict = verdicts[attempt.key]
        if attempt.theorem.name not in open_theorems or verdict["status"] not in (REFUSED, TIMED_OUT):
            continue
        order = (-attempt.round, attempt.sample)
        row = {
            "problem": attempt.source.problem, "reference": attempt.source.reference,
            "name": attempt.theorem.name, "informal_proof": attempt.source.more.get("informal_proof", ""),
            "header": attempt.source.more.get("header", ""), "failed_proof": attempt.proof,
            "message": verdict["message"],
        }  # fmt: skip
        known = rows.get(attempt.theorem.name)
        if known is None or order < known[0]:
            rows[attempt.theorem.name] = (order, row)
    return [row for _, row in rows.values()]


def _header(args: argparse.Namespace) -> str:
    if args.header is not None:
        try:
            return str(args.header.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--header={args.header}: cannot be read ({error})") from None
    if args.prover == "lean":
        from tools.prove_parts.lean import HEADER

        return HEADER
    return ""


def _settings(args: argparse.Namespace, header: str) -> dict[str, Any]:
    """What decides the verdicts. Workers, memory and where programs lie do not."""
    settings = {
        **prover_options.deciding_settings(args),
        "header_sha256": hashlib.sha256(header.encode()).hexdigest(),
        "proposer": "written whole",
    }
    if args.prover == "isabelle":
        settings |= {"hammer_seconds": args.hammer_timeout, "session": args.isabelle_session}
    return settings


def _tell(line: Mapping[str, Any], lines: Mapping[str, Mapping[str, Any] | None]) -> None:
    """One line of progress."""
    done = [each for each in lines.values() if each is not None]
    proved = len({each["theorem"] for each in done if each["ok"]})
    what = line["proof"].replace("\n", " ") if line["ok"] else f"{line['status']} {line['message']}".strip()
    print(
        f"{len(done)}/{len(lines)} ({proved} proved)  {line['theorem']} {line['round']}.{line['sample']}  "
        f"{line['seconds']:.1f} s  {what[:100]}",
        flush=True,
    )


def _pass_line(content: Mapping[str, Any]) -> str:
    (found,) = content["tasks"].values()
    values = [
        f"{name} {100 * value['value']:.1f}% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
        for name, value in found["metrics"].items()
        if name.startswith("pass@")
    ]
    return f"First round: {', '.join(values)}; proved in each round: {found['proved_in_round']}"
