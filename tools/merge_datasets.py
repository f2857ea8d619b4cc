#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several token files as one: `merge_datasets.py --input data/a_text_document data/b_text_document
--output-prefix data/all_text_document`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.data.merge import merge_token_files
from megatron.neox_arguments.errors import UserError, exit_on_user_error


def prefixes_of(inputs: list[Path]) -> list[Path]:
    """Token files, each by its prefix or, of a folder, all that are in it, sorted by name."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(index.with_suffix("") for index in path.glob("*.idx"))
            if not inside:
                raise UserError(f"--input {path}: the folder holds no token file (.idx)")
            found += inside
        else:
            found.append(path)
    return found


@exit_on_user_error
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Merge token files of one tokenizer, in the order given. See docs/data.md."
    )
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, metavar="PREFIX",
        help="token files (paths without .bin and .idx), or folders of them",
    )  # fmt: skip
    parser.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing output, when all is done"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    inputs = prefixes_of(args.input)
    try:
        sidecar = merge_token_files(inputs, args.output_prefix, args.overwrite)
    except KeyboardInterrupt:
        print(
            "\nstopped: what was there has not changed; the same command goes on from here", file=sys.stderr
        )
        sys.exit(130)
    print(
        f"{args.output_prefix}: {sidecar.documents:,} documents, {sidecar.tokens:,} tokens of {len(inputs)} "
        f"files in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
