#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""AlgebraicStack's rules on real files: how many of each language are kept, which rule drops the others.

Takes folders of source files and downloads nothing. With Debian's packages:

    mkdir debs && cd debs
    apt-get download agda-stdlib gap-libs libcoq-stdlib libcoq-corn libcoq-mathcomp-algebra \\
        libcoq-mathcomp-ssreflect octave-common libeigen3-dev libboost1.74-dev python-statsmodels-doc
    for file in *.deb; do dpkg -x $file ${file%%_*}; done
    python ../benchmarks/algebraic_stack.py --files agda agda-stdlib --files gap gap-libs \\
        --files coq libcoq-stdlib --files coq libcoq-corn --files coq libcoq-mathcomp-algebra \\
        --files coq libcoq-mathcomp-ssreflect --files matlab octave-common --files cpp libeigen3-dev \\
        --files cpp libboost1.74-dev/usr/include/boost/math --files jupyter python-statsmodels-doc \\
        --output ../benchmarks/algebraic_stack.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import exit_on_user_error
from tools.proof_pile_2.algebraic_stack.recipe import Recipe, Sources, make
from tools.proof_pile_2.reports import Count, Report


def cpu_seconds() -> float:
    """Of this process and those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(language: str, folders: list[Path]) -> dict[str, Any]:
    """Counts and speed of one language."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(Path(folder), {language: Sources(files=tuple(folders))}, deduplicate="all")
        started = cpu_seconds()
        report = make(recipe, workers=1, overwrite=False, log_interval_seconds=60)
        seconds = cpu_seconds() - started
    return {"language": language, "packages": [path.as_posix() for path in folders], **counts(report),
            "cpu_seconds": round(seconds, 2)}  # fmt: skip


def counts(report: Report) -> dict[str, Any]:
    """What the table shows of a report."""
    read, written = report.total("read"), report.total("written")
    dropped = {
        rule: sum(count.documents for count in languages.values())
        for rule, languages in report.dropped.items()
    }
    return {"read": vars(read), "written": vars(written), "dropped": dropped, "broken": report.broken}


def table(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as Markdown."""
    yield "| Language | Packages | Files in | MB | Kept | MB | Dropped by | Not read | MB per CPU second |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        read, written = Count(**row["read"]), Count(**row["written"])
        reasons = ("; ".join(f"{name} {number:,}" for name, number in sorted(row[key].items())) or "none"
                   for key in ("dropped", "broken"))  # fmt: skip
        yield (
            f"| {row['language']} | {', '.join(row['packages'])} | {read.documents:,} | "
            f"{read.text_bytes / 1e6:.2f} | "
            f"{written.documents:,} | {written.text_bytes / 1e6:.2f} | {' | '.join(reasons)} | "
            f"{read.text_bytes / 1e6 / row['cpu_seconds']:.1f} |"
        )


@exit_on_user_error
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="AlgebraicStack's rules on folders of source files.")
    parser.add_argument("--files", nargs=2, action="append", required=True, metavar=("LANGUAGE", "FOLDER"))
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE.json", help="the table goes beside it"
    )
    arguments = parser.parse_args()
    folders: dict[str, list[Path]] = {}
    for language, folder in arguments.files:
        folders.setdefault(language, []).append(Path(folder))
    rows = [measure(language, of_language) for language, of_language in folders.items()]
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    arguments.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    command = (__doc__ or "").split("packages:\n\n")[1].rstrip()
    text = (
        "# AlgebraicStack's rules on Debian's packages\n\nOne process; CPU seconds are those of all stages, "
        "deduplication "
        f"and splits included. Made with\n\n{command}\n\n" + "\n".join(table(rows)) + "\n"
    )
    arguments.output.with_suffix(".md").write_text(text)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
