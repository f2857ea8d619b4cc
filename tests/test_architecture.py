# SPDX-License-Identifier: Apache-2.0
"""The house: imports go down only, the engine stays behind its doors, and functions fit a screen.

Read from the source with `ast`, so that imports inside functions count as well.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: a room may import from itself and from the rooms before it.
ROOMS = [
    "megatron.neox_arguments",
    "megatron.launcher",
    "megatron.planning",
    "megatron.tokenizer",
    "megatron.backend",
    "megatron.data",
    "megatron.monitoring",
    "megatron.model",
    "megatron.checkpointing",
    "megatron.text_generation",
    "megatron.trainer",
    "eval_tasks",
    "tools",
    "entry points",
]
ENGINE_ROOMS = {"model", "text_generation", "trainer", "checkpointing", "backend"}
ENGINE_ADAPTER = "megatron/data/mcore_datasets.py"
# Names that wheels of megatron-core own, or have owned, beside `core`.
FORBIDDEN_NAMES = ("core", "training", "inference", "rl", "post_training", "elastification", "bridge")
LONGEST_FUNCTION_LINES = 100


def sources() -> list[Path]:
    """Every module of the product: the rooms, the tools, the entry points."""
    folders = [ROOT / name for name in ("megatron", "eval_tasks", "tools")]
    found = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import; `from a import b` counts as `a.b` too."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:  # importlib.import_module("a.b")
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def room_of(module: str) -> str | None:
    """The room a module lies in; None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "megatron":
        return None if len(parts) > 1 and parts[1] == "core" else ".".join(parts[:2])
    if parts[0] in ("tools", "eval_tasks"):
        return parts[0]
    return "entry points" if (ROOT / f"{parts[0]}.py").exists() else None


def violations(path: Path) -> Iterator[str]:
    """Imports of `path` that go up."""
    room = room_of(module_name(path))
    assert room in ROOMS, f"{path.relative_to(ROOT)} lies in no known room"
    for line, imported in imports(path):
        target = room_of(imported)
        if target is None or target == room:
            continue
        if target not in ROOMS or ROOMS.index(target) > ROOMS.index(room):
            yield f"{path.relative_to(ROOT)}:{line} imports {imported}"


def uses(path: Path, *packages: str) -> list[str]:
    """Imports in `path` of any of the packages, or of something in them."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for line, imported in imports(path)
        if any(imported == package or imported.startswith(f"{package}.") for package in packages)
    ]


def test_imports_go_down_only() -> None:
    assert [found for path in sources() for found in violations(path)] == []


def test_the_engine_is_imported_behind_its_doors_only() -> None:
    outside = [
        path
        for path in sources()
        if not (path.parts[len(ROOT.parts)] == "megatron" and path.parts[len(ROOT.parts) + 1] in ENGINE_ROOMS)
        and path.relative_to(ROOT).as_posix() != ENGINE_ADAPTER
    ]
    assert len(outside) > 10
    assert [found for path in outside for found in uses(path, "megatron.core")] == []


def test_configuration_launcher_and_planning_import_no_torch() -> None:
    light = [
        path
        for path in sources()
        if path.name == "deepy.py" or path.parts[-2:-1] in (("neox_arguments",), ("launcher",), ("planning",))
    ]
    assert len(light) > 10
    heavy = ("torch", "numpy", "transformers", "tokenizers", "sentencepiece", "matplotlib", "megatron.core")
    assert [found for path in light for found in uses(path, *heavy)] == []
    # And not through another package either.
    program = (
        "import sys, megatron.launcher.plan, megatron.planning.command, megatron.neox_arguments.loader\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_namespace_is_shared_with_megatron_core() -> None:
    assert not (ROOT / "megatron" / "__init__.py").exists(), "it would hide the installed megatron.core"
    for name in FORBIDDEN_NAMES:
        assert not (ROOT / "megatron" / name).exists()
        assert not (ROOT / "megatron" / f"{name}.py").exists()
    found = importlib.util.find_spec("megatron.core")  # not imported: the CPU backend must come before it
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).parts[-4] == "site-packages"


def test_every_room_is_a_package_and_known() -> None:
    rooms = {path.parent.name for path in (ROOT / "megatron").glob("*/__init__.py")}
    folders = {path.name for path in (ROOT / "megatron").iterdir() if any(path.glob("*.py"))}
    assert rooms == folders
    assert {f"megatron.{room}" for room in rooms} <= set(ROOMS)


def test_functions_fit_a_screen_and_files_say_what_they_are() -> None:
    for path in sources():
        tree, where = ast.parse(path.read_text()), path.relative_to(ROOT)
        assert ast.get_docstring(tree), f"{where} has no docstring"
        head = path.read_text().splitlines()[:2]
        assert "# SPDX-License-Identifier: Apache-2.0" in head, f"{where} has no licence line"
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= LONGEST_FUNCTION_LINES, f"{where}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize(("room", "source", "found"), [
    ("model", "from megatron.trainer.loop import run", True),
    ("model", "def f():\n    from ..trainer import loop", True),
    ("model", "import importlib\nimportlib.import_module('megatron.trainer.loop')", True),
    ("model", "import train", True),
    ("model", "from megatron import trainer", True),
    ("model", "from megatron.data import blend\nimport megatron.core.transformer\nimport torch", False),
    ("trainer", "from megatron.model import llama", False),
])  # fmt: skip
def test_these_rules_find_what_they_forbid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, source: str, found: bool
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "megatron" / room / "file.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (tmp_path / "train.py").touch()
    assert bool(list(violations(path))) == found
