# SPDX-License-Identifier: Apache-2.0
"""What runs inside the sandbox: limits itself, runs the program, and tells the value of one of its variables.

It is started by sandbox.py as a file of its own, in a Python that has nothing else of this repository, so it
imports the standard library only. All it says is only as good as the program that ran in it: the reader
believes nothing.

usage: inside.py FOLDER, where FOLDER has program.py and settings.json:
{"limits": {"RLIMIT_…": [soft, hard]}, "packages": [folders], "variable": name or null, "descriptor": int}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from typing import Any

# A value is told in so many characters at most.
_LONGEST_VALUE_CHARACTERS = 10_000


def described(value: Any) -> dict[str, str]:
    """What a value is, as text: {"kind": "number" | "sympy" | "none" | "other", "text": …}."""
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        value = value.item()  # an array of one element, or a scalar, becomes Python's own number
    if value is None:
        return {"kind": "none", "text": ""}
    if isinstance(value, (bool, int, float)):
        return {"kind": "number", "text": repr(int(value) if isinstance(value, bool) else value)}
    module = type(value).__module__.partition(".")[0]
    if module in ("fractions", "decimal"):
        return {"kind": "number", "text": str(value)}
    kind = "sympy" if module == "sympy" else "other"
    return {"kind": kind, "text": str(value)[:_LONGEST_VALUE_CHARACTERS]}


def _run(program: str, namespace: dict[str, Any]) -> bool:
    """Runs the text; a traceback goes to standard error without the frames of this file."""
    try:
        exec(compile(program, "program.py", "exec"), namespace)
    except SystemExit as ending:
        return ending.code in (None, 0)
    except BaseException as error:
        frames = error.__traceback__
        traceback.print_exception(type(error), error, frames.tb_next if frames else None)
        return False
    return True


def main() -> int:
    folder = sys.argv[1]
    with open(os.path.join(folder, "settings.json"), encoding="utf-8") as file:
        settings = json.load(file)
    with open(os.path.join(folder, "program.py"), encoding="utf-8", errors="surrogatepass") as file:
        program = file.read()
    sys.path.extend(settings["packages"])
    descriptor: int = settings["descriptor"]
    for name, (soft, hard) in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    os.write(descriptor, b"started\n")

    namespace: dict[str, Any] = {
        "__name__": "__main__",
        "__builtins__": __builtins__,
        "__file__": os.path.join(folder, "program.py"),
    }
    sys.argv = ["program.py"]
    fine = _run(program, namespace)
    if settings["variable"] is not None:
        # Also after an exception: what the variable held then is the answer, as in the released scorer.
        try:
            value = json.dumps(described(namespace.get(settings["variable"])))
            os.write(descriptor, value.encode("ascii", "backslashreplace"))
        except BaseException:
            traceback.print_exc()
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
