"""Prints the plan of a workflow file without running it: python scripts/plan.py --workflow X.json [--vram 12].

For every VRAM Budget Gate in the file: what each phase needs, what would be given up, and whether it fits. Reads the
headers of the model files alone; Wan's files that are not here yet are planned with their published sizes. X.json is a
workflow of the graph editor or a prompt in the API's format. Ends with 0 where everything fits, 1 where something does
not, 2 where it cannot be said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # ComfyUI's portable Python does not do so

from harness.errors import CannotContinue, sentence_for_os_error
from harness.workflow_api import prompt_from_workflow

ROOT = Path(__file__).resolve().parents[1]
TOY_WORLD = ROOT / "demo" / "toyworld"  # the checkpoint that comes with the pack
NOTHING = {"input": {"required": {}}}  # the definition of a node that this ComfyUI does not have: links alone
FITS, TOO_LARGE, UNKNOWN = 0, 1, 2


def main() -> int:
    options = parse_arguments()
    try:
        content = json.loads(options.workflow.read_text(encoding="utf-8"))
        find_comfyui(options.comfyui)
        return print_plans(prompt_of(content), options)
    except CannotContinue as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(sentence_for_os_error(error), file=sys.stderr)
    except ValueError as error:
        print(f"{options.workflow} is no workflow: {error}", file=sys.stderr)
    return UNKNOWN


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflow", type=Path, required=True, metavar="X.json")
    parser.add_argument("--vram", type=float, metavar="GB",
                        help="plan for a card of that size with a desktop on it (default: as the gate says)")
    parser.add_argument("--ram", type=float, metavar="GB", help="free system memory (default: what is free here)")
    parser.add_argument("--models", type=Path, metavar="DIR",
                        help="look for model files here too, in its sub-folders or in itself")
    parser.add_argument("--comfyui", type=Path, metavar="PATH",
                        help="ComfyUI's folder (default: COMFYUI_PATH, or the one that this pack lies in)")
    return parser.parse_args()


def find_comfyui(chosen: Path | None) -> None:
    """Make ComfyUI and this pack importable, without starting a server."""
    named = chosen or os.environ.get("COMFYUI_PATH") or ROOT.parents[1]
    folder = Path(named).expanduser().resolve()
    if not (folder / "comfy").is_dir():
        raise CannotContinue(f"The plan needs ComfyUI, and {folder} is none: say where it is with --comfyui PATH.")
    sys.path.insert(0, str(folder))
    import torch

    sys.argv = [sys.argv[0]] + ([] if torch.cuda.is_available() else ["--cpu"])
    logging.disable(logging.WARNING)  # ComfyUI tells about the device when it is imported
    import comfy.options

    comfy.options.enable_args_parsing()
    for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]


def prompt_of(content: dict) -> dict:
    """The graph in the API's format."""
    if not isinstance(content, dict):
        raise ValueError("it holds no graph")
    if "nodes" not in content:
        return content
    graphs = [content, *((content.get("definitions") or {}).get("subgraphs") or [])]
    kinds = {node["type"] for graph in graphs for node in graph["nodes"]}
    return prompt_from_workflow(content, {kind: NOTHING for kind in kinds} | definitions(kinds))


def definitions(kinds: set[str]) -> dict[str, dict]:
    """What /object_info would say of these nodes; those that nobody here has are left out."""
    from pack.nodes.budget import nodes as gates
    from pack.nodes.loading import nodes as loaders
    from pack.nodes.loading import nodes_checkpoint, nodes_save
    from pack.nodes.memory import nodes as memories
    from pack.nodes.memory import nodes_files

    import nodes

    ours = {cls.GET_SCHEMA().node_id: cls for room in (gates, loaders, nodes_checkpoint, nodes_save, memories,
                                                       nodes_files) for cls in room.NODES}
    if not kinds <= {*ours, *nodes.NODE_CLASS_MAPPINGS}:
        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    classes = {**nodes.NODE_CLASS_MAPPINGS, **ours}
    return {kind: classes[kind].GET_NODE_INFO_V1() if hasattr(classes[kind], "GET_NODE_INFO_V1")
            else {"input": classes[kind].INPUT_TYPES()} for kind in kinds & set(classes)}


def print_plans(graph: dict, options: argparse.Namespace) -> int:
    """Print one report per gate; the worst of their exit codes."""
    from dataclasses import replace

    import comfy.model_management as mm
    from pack.nodes.budget.answer import answer_graph, answer_text
    from pack.nodes.budget.bridge import compute_bytes, is_fused, look_around, records
    from pack.nodes.budget.bridge_route import find_file
    from pack.nodes.budget.graph import gates_of

    def find(folder: str, name: str) -> str | None:
        places = [TOY_WORLD / name] if options.models is None else [options.models / folder / name,
                                                                    options.models / name, TOY_WORLD / name]
        return next((str(path) for path in places if path.is_file()), None) or find_file(folder, name)

    gates, device = gates_of(graph), mm.get_torch_device()
    if not gates:
        raise CannotContinue("The workflow has no VRAM Budget Gate: there is nothing to plan.")
    machine, worst = look_around(device), FITS
    if options.ram is not None:
        machine = replace(machine, ram_available_bytes=int(options.ram * 2**30))
    for gate in gates:
        answer = answer_graph(graph, gate, find, compute_bytes(device), machine, options.vram,
                              is_fused(), records())
        print(f"Gate {gate}:" if len(gates) > 1 else "", answer_text(answer, machine), sep="\n" if gates[1:] else "")
        worst = max(worst, {True: FITS, False: TOO_LARGE, None: UNKNOWN}[answer.fits])
    return worst


if __name__ == "__main__":
    sys.exit(main())
