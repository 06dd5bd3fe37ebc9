"""Who may import what: ComfyUI only at the border, rooms only each other's logic."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfy_config", "folder_paths", "server", "nodes",
        "execution", "latent_preview", "node_helpers", "app", "utils"}
OPTIONAL = {"bitsandbytes", "pynvml"}
BORDER = ("nodes", "bridge")  # and nodes_<what>.py, bridge_<what>.py where one file would grow too long
MODULES = sorted((ROOT / "nodes").rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(relative level, module with the imported names, whether it runs when the file is imported) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {inner for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(function)}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield 0, alias.name, statement not in lazy
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                yield statement.level, ".".join(filter(None, (statement.module, alias.name))), statement not in lazy


def is_border(path: Path) -> bool:
    return is_border_name(path.stem) or path.relative_to(ROOT / "nodes").as_posix() == "common/compat.py"


def is_border_name(module: str) -> bool:
    return module.split("_")[0] in BORDER


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_logic_runs_without_comfyui(path):
    used = {module.split(".")[0] for level, module, _ in imports(path) if level == 0} & HOST
    assert is_border(path) or not used, f"{path.name} imports {used}: only {BORDER} and common/compat.py may"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_pack_loads_without_its_optional_packages(path):
    used = {module.split(".")[0] for level, module, at_once in imports(path) if level == 0 and at_once} & OPTIONAL
    assert not used, f"{path.name} imports {used} at the top: import them where they are used"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_rooms_know_only_each_others_logic(path):
    for level, module, _ in imports(path):
        if level == 2 and path.parent.parent.name == "nodes":
            room_and_file = module.split(".")[:2]
            assert not any(map(is_border_name, room_and_file[1:])), f"{path.name} imports {'.'.join(room_and_file)}"


def test_logic_does_not_import_its_own_border():
    for path in MODULES:
        if not is_border(path) and path.name != "__init__.py":
            border = [module for level, module, _ in imports(path)
                      if level == 1 and is_border_name(module.split(".")[0])]
            assert not border, f"{path.relative_to(ROOT)} imports {border}"
