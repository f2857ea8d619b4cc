# SPDX-License-Identifier: Apache-2.0
"""The agent that pdsh starts on each machine: starts the ranks there, and ends them when the connection ends.

python -m megatron.launcher.agent --node 1 --slots '0,1|0,1' --master n0:29500 --run ID -- PROGRAM ARGUMENT…
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from megatron.launcher.local import Share, launch
from megatron.launcher.pdsh import pid_file
from megatron.launcher.processes import Stop
from megatron.launcher.rank import read_slots
from megatron.neox_arguments.errors import UserError, exit_on_user_error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--node", type=int, required=True, help="number of this machine, from 0")
    parser.add_argument("--slots", required=True, help="slots of all machines, as 0,1|0,1")
    parser.add_argument("--master", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--run", required=True, help="names this attempt of the run")
    parser.add_argument(
        "--credentials", metavar="PATH", help="file of variables, without the machine's number; is removed"
    )
    parser.add_argument("--on-cpu", action="store_true", help="hide the GPUs")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _taken(path: Path) -> dict[str, str]:
    """The variables that wait in `path`, which is removed."""
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; deepy.py writes the credentials of one start there, on a disk that "
            "all machines must share"
        ) from error
    return found


@exit_on_user_error
def main() -> int:
    """Returns the exit status of the ranks here, as `launch` does."""
    options = _arguments()
    slots = [tuple(own) for own in read_slots(options.slots)]
    credentials = _taken(Path(f"{options.credentials}{options.node}")) if options.credentials else {}
    address, _, port = options.master.rpartition(":")
    first = sum(map(len, slots[: options.node]))
    stop = Stop()

    def kill(_signum: int, _frame: FrameType | None) -> None:
        stop.received += [signal.SIGTERM, signal.SIGTERM]  # the second of two kills

    signal.signal(signal.SIGUSR2, kill)
    mine = Path(pid_file(options.run, str(options.node)))
    mine.write_text(str(os.getpid()))
    try:
        with stop.listening():
            return launch(
                options.command,
                len(slots[options.node]),
                environment={**os.environ, **credentials},
                on_gpu=not options.on_cpu,
                master_addr=address,
                master_port=int(port),
                share=Share(first, sum(map(len, slots)), slots[options.node]),
                stop=stop,
                lifeline=sys.stdin.fileno(),
            )
    finally:
        with suppress(FileNotFoundError):
            mine.unlink()


if __name__ == "__main__":
    sys.exit(main())
