# SPDX-License-Identifier: Apache-2.0
"""`python -m megatron.neox_arguments a.yml b.yml`: check a configuration and print it, merged."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import exit_on_user_error, load_config


@exit_on_user_error
def main() -> None:
    """Print the notices on stderr and the merged configuration on stdout; exit status 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m megatron.neox_arguments", description=__doc__)
    parser.add_argument("config", nargs="+", type=Path, help="YAML files, merged left to right")
    parser.add_argument("-d", "--directory", type=Path, help="folder of the files")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--no-files", action="store_true", help="do not look for the files that the run needs"
    )
    given = parser.parse_args()
    cfg, notices = load_config(given.config, given.overrides, given.directory, not given.no_files)
    for notice in notices:
        print(f"notice: {notice}", file=sys.stderr)
    print(cfg.to_yaml(), end="")


if __name__ == "__main__":
    main()
