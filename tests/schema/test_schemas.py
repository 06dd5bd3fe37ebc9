"""What every node promises: schemas build under a real ComfyUI, everything is explained, published names stay.

`published.json` holds the names that live in users' workflows. After adding a node or an input, run
`python scripts/test.py tests/schema --update-published` and commit the file with it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Path(__file__).with_name("published.json")
PLAIN_VALUE = re.compile(r"[a-z0-9_]+")


@pytest.fixture(scope="module")
def schemas(node_classes) -> dict:
    """Validated schemas by node id; GET_SCHEMA is what ComfyUI itself calls."""
    return {cls.GET_SCHEMA().node_id: cls.GET_SCHEMA() for cls in node_classes}


def published_facts(schema) -> dict:
    """The part of a schema that is stored in workflow files."""
    inputs = [{"id": one.id, "type": str(one.get_io_type()), "optional": bool(one.optional),
               **({"values": one.options} if is_fixed_combo(one) else {})} for one in schema.inputs]
    return {"inputs": inputs, "outputs": [[one.id, str(one.get_io_type())] for one in schema.outputs]}


def is_fixed_combo(one) -> bool:
    """A combo of our own words, not of the files that happen to be there."""
    options = getattr(one, "options", None)
    return bool(options) and not any("." in str(value) for value in options)


def test_published_names_stay_when_nodes_change(schemas, request):
    current = {node_id: published_facts(schema) for node_id, schema in schemas.items()}
    if request.config.getoption("--update-published"):
        PUBLISHED.write_text(json.dumps(current, indent=1) + "\n", encoding="utf-8")
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert list(published) == list(current), "nodes were added, renamed or moved in the menu: --update-published"
    for node_id, before in published.items():
        assert before == current[node_id], (
            f"{node_id} differs from tests/schema/published.json. Names, types, order and combo values are for ever; "
            f"a new input goes last and is optional. If that is so: --update-published")


def test_every_node_is_listed_once_and_named_after_the_pack(node_classes, schemas):
    assert len(schemas) == len(node_classes)
    for node_id, schema in schemas.items():
        assert re.fullmatch(r"VideoMemory[A-Z][A-Za-z0-9]+", node_id)
        assert schema.display_name and schema.display_name != node_id
        assert re.fullmatch(r"VideoMemory/[a-z]+", schema.category)
        assert schema.description and schema.description.endswith(".")


def test_every_input_and_output_is_explained(schemas):
    for node_id, schema in schemas.items():
        for one in [*schema.inputs, *schema.outputs]:
            assert one.tooltip and len(one.tooltip) > 10, f"{node_id}: {one.id} has no tooltip"
        for output in schema.outputs:
            assert output.id and output.display_name, f"{node_id}: an output shows its bare type"


def test_no_id_is_used_by_an_input_and_an_output(schemas):
    for node_id, schema in schemas.items():
        ids = [one.id for one in [*schema.inputs, *schema.outputs]]
        assert len(ids) == len(set(ids)), node_id
        assert all(PLAIN_VALUE.fullmatch(id) for id in ids), node_id


def test_stored_combo_values_are_plain_words(schemas):
    for node_id, schema in schemas.items():
        for one in schema.inputs:
            if is_fixed_combo(one):
                assert all(PLAIN_VALUE.fullmatch(value) for value in one.options), f"{node_id}: {one.id}"


def test_every_node_has_a_help_page_that_names_its_inputs(schemas):
    missing = []
    for node_id, schema in schemas.items():
        page = ROOT / "js" / "docs" / f"{node_id}.md"
        text = page.read_text(encoding="utf-8").lower() if page.is_file() else ""
        for one in schema.inputs:
            names = (one.id, one.id.replace("_", " "), (one.display_name or one.id).lower())
            if not any(name in text for name in names):
                missing.append(f"{page.name}: {one.id}")
    assert not missing


def test_every_help_page_belongs_to_a_node(schemas):
    pages = {page.stem for page in (ROOT / "js" / "docs").glob("*.md")}
    assert pages <= set(schemas)


def test_every_help_page_warns_of_three_mistakes():
    for page in (ROOT / "js" / "docs").glob("*.md"):
        behind = page.read_text(encoding="utf-8").partition("## Three mistakes\n")[2]
        assert re.findall(r"^(\d)\. \*", behind, re.MULTILINE) == ["1", "2", "3"], page.name


def test_every_picture_of_a_help_page_is_there_and_every_picture_is_shown():
    """Pictures are made by scripts/build_node_pictures.py."""
    folder = ROOT / "js" / "docs"
    shown = {name for page in folder.glob("*.md")
             for name in re.findall(r"\]\(images/([^)]+)\)", page.read_text(encoding="utf-8"))}
    assert len(shown) > 20 and shown == {path.name for path in (folder / "images").glob("*.png")}
