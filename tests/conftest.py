"""Registers the pack as package `pack` without running its root __init__ (which needs ComfyUI), and finds ComfyUI.

`from pack.nodes.memory import state` works with no ComfyUI. Tests marked `comfy` also get ComfyUI's root (from
COMFYUI_PATH, set by scripts/test.py) on sys.path, started on the CPU; without it they are skipped. The pack's own root
must never be on sys.path: ComfyUI owns a top-level module called `nodes`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = os.environ.get("COMFYUI_PATH")


def _register_pack() -> None:
    package = types.ModuleType("pack")
    package.__path__ = [str(ROOT)]
    sys.modules["pack"] = package
    nodes = types.ModuleType("pack.nodes")
    nodes.__path__ = [str(ROOT / "nodes")]
    sys.modules["pack.nodes"] = nodes
    package.nodes = nodes


def _start_comfyui() -> None:
    sys.path.insert(0, COMFYUI)
    argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = argv


_register_pack()
if COMFYUI:
    _start_comfyui()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-published", action="store_true",
                     help="write the ids of all nodes, inputs and outputs anew to tests/schema/published.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if COMFYUI:
        return
    skip = pytest.mark.skip(reason="needs ComfyUI: run python scripts/test.py, or set COMFYUI_PATH")
    for item in items:
        if any(item.get_closest_marker(name) for name in ("comfy", "server", "browser")):
            item.add_marker(skip)


def load_all_nodes() -> list:
    """The pack's node classes, with the real nodes/__init__.py executed (needs ComfyUI)."""
    path = ROOT / "nodes" / "__init__.py"
    spec = importlib.util.spec_from_file_location("pack.nodes", path, submodule_search_locations=[str(ROOT / "nodes")])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack.nodes"] = module
    spec.loader.exec_module(module)
    return module.NODE_CLASSES


@pytest.fixture(scope="session")
def node_classes() -> list:
    """All node classes of the pack, in menu order (needs ComfyUI)."""
    return load_all_nodes()


@pytest.fixture(scope="session")
def toyworld() -> Path:
    """Folder of the bundled demo checkpoint."""
    return ROOT / "demo" / "toyworld"


@pytest.fixture(scope="session")
def server(toyworld: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """One real ComfyUI for the whole session, with the pack linked in and the demo checkpoint on offer.

    `server.client` talks to it (get, post, run, ...), `server.output` is its output folder, `server.log` its
    log file. FRONTEND_PATH names the static folder of another frontend package, to try its version.
    """
    from pack.scripts.harness.comfyui_source import check_version
    from pack.scripts.harness.environment import Environment
    from pack.scripts.harness.server import ComfyUIServer

    comfyui = Path(COMFYUI)
    environment = Environment(Path(sys.executable), comfyui, check_version(comfyui), ours=False)
    folder = tmp_path_factory.mktemp("server")
    frontend = os.environ.get("FRONTEND_PATH")
    arguments = ("--front-end-root", frontend) if frontend else ()
    with ComfyUIServer(environment, folder / "output", folder / "comfyui.log", (toyworld,),
                       extra_arguments=arguments) as running:
        yield running
