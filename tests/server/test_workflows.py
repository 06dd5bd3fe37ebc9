"""The bundled workflows against the real server: built from its own definitions, accepted by its validation, run."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .films import ROOT, forget, render_inputs, run_and_read, stage

pytestmark = pytest.mark.server

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
RED = ("1x1 red PNG", "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0"
       "000003010100c9fe92ef0000000049454e44ae426082")


@pytest.fixture(scope="module")
def builder():
    """scripts/build_workflows.py as a module."""
    spec = importlib.util.spec_from_file_location("build_workflows", ROOT / "scripts" / "build_workflows.py")
    module, before = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def files(server) -> Iterator[list[Path]]:
    """A tiny file under the name of every model and picture that a workflow wants, where the server has none."""
    from safetensors.torch import save_file
    from torch import zeros

    made = [server.base / "input" / "example.png"]
    made[0].write_bytes(bytes.fromhex(RED[1]))
    for path in WORKFLOWS:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for model in node["properties"].get("models", []):
                made.append(server.base / "models" / model["directory"] / model["name"])
                made[-1].parent.mkdir(exist_ok=True)
                save_file({"nothing": zeros(1)}, made[-1])
    yield made
    for one in made:
        one.unlink(missing_ok=True)


def prompt_of(server, name: str) -> dict:
    from pack.scripts.harness.workflow_api import prompt_from_workflow

    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return prompt_from_workflow(workflow, server.client.get("/object_info"))


def test_the_files_are_what_the_script_builds(server, builder, files):
    object_info = server.client.get("/object_info")
    for path in WORKFLOWS:
        assert path.read_text(encoding="utf-8") == builder.file_text(path.stem, object_info), (
            f"{path.name} is not what scripts/build_workflows.py makes: run it")
    assert {path.stem for path in WORKFLOWS} == set(builder.WORKFLOWS)


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_the_server_accepts_the_workflow(server, files, name):
    """Taken into the queue and off it at once; a wrong input, value or file name is refused by name."""
    prompt = prompt_of(server, name)
    assert server.client.queue(prompt)
    server.client.post("/queue", {"clear": True})
    server.client.interrupt()


@pytest.mark.slow
def test_resume_and_reroll_does_what_its_note_says(server):
    prompt = prompt_of(server, "resume_and_reroll")
    executed, _ = run_and_read(server, prompt)
    assert stage(executed, "sample") == [0, 1, 2, 3, 4]
    forget(server)
    assert stage(run_and_read(server, prompt)[0], "sample") == []
    again = copy.deepcopy(prompt)
    render_inputs(again)["regenerate"] = "only"
    assert stage(run_and_read(server, again)[0], "sample") == [2]
    forget(server)
    assert stage(run_and_read(server, prompt)[0], "sample") == []


@pytest.mark.slow
def test_compare_quantization_runs_on_the_bundled_checkpoint(server):
    assert server.client.run(prompt_of(server, "compare_quantization"), None, server.check_alive)["outputs"]
