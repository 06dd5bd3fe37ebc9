"""Writes locales/<language>/nodeDefs.json: python scripts/build_locales.py --comfyui PATH.

English comes from the schemas. Other languages come from scripts/translations/<language>.json, which maps an English
text to its translation: one that changed has none until somebody translates it, and ComfyUI shows the English one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRANSLATIONS = Path(__file__).parent / "translations"
LANGUAGES = ("zh", "ja", "de")


def english(node_classes: list) -> dict:
    """nodeDefs of all nodes, from their schemas."""
    defs = {}
    for cls in node_classes:
        schema = cls.GET_SCHEMA()
        defs[schema.node_id] = {
            "display_name": schema.display_name, "description": schema.description,
            "inputs": {one.id: {"name": one.display_name or one.id.replace("_", " "), "tooltip": one.tooltip}
                       for one in schema.inputs},
            "outputs": {str(i): {"name": one.display_name, "tooltip": one.tooltip}
                        for i, one in enumerate(schema.outputs)}}
    return defs


def translated(value: dict | str, catalogue: dict[str, str]) -> dict | str | None:
    """The same tree in another language; a text without a translation is left out."""
    if isinstance(value, str):
        return catalogue.get(value)
    found = {key: translated(one, catalogue) for key, one in value.items()}
    return {key: one for key, one in found.items() if one not in (None, {})}


def catalogue_of(language: str) -> dict[str, str]:
    """English text -> text in that language."""
    return json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))


def file_text(defs: dict) -> str:
    return json.dumps(defs, indent=1, ensure_ascii=False) + "\n"


def pages(node_classes: list) -> dict[Path, str]:
    """Every file of locales/ with its text."""
    source = english(node_classes)
    made = {"en": source, **{one: translated(source, catalogue_of(one)) for one in LANGUAGES}}
    return {ROOT / "locales" / language / "nodeDefs.json": file_text(defs) for language, defs in made.items()}


def load_nodes(comfyui: Path) -> list:
    """The pack's node classes, imported beside ComfyUI without starting a server."""
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.modules["pack"] = package = types.ModuleType("pack")
    package.__path__ = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("pack.nodes", ROOT / "nodes" / "__init__.py",
                                                  submodule_search_locations=[str(ROOT / "nodes")])
    sys.modules["pack.nodes"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    comfyui = parser.parse_args().comfyui.resolve()
    for path, text in pages(load_nodes(comfyui)).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
