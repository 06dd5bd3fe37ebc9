"""A film dropped on the real editor brings its workflow back, whatever its codec."""

from __future__ import annotations

import base64
import json

import pytest
import torch
from pack.nodes.video.codecs import CODECS
from pack.nodes.video.encode import write_mp4

from .editor import WORKFLOWS

pytestmark = [pytest.mark.browser, pytest.mark.server]

DROP = """async (content) => {
  app.graph.clear();
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  await app.handleFile(new File([bytes], 'short_00001_.mp4', {type: 'video/mp4'}));
  return {types: app.graph.nodes.map(n => n.type), links: app.graph.links.size ?? Object.keys(app.graph.links).length};
}"""


@pytest.mark.parametrize("codec", CODECS)
def test_the_workflow_comes_back_from_a_film(page, codec, tmp_path):
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    workflow = json.loads(text)
    write_mp4(tmp_path / "film.mp4", [torch.zeros(9, 64, 64, 3)], 8, metadata={"workflow": text}, codec=codec)
    dropped = page.evaluate(DROP, base64.b64encode((tmp_path / "film.mp4").read_bytes()).decode())
    assert sorted(dropped["types"]) == sorted(node["type"] for node in workflow["nodes"])
    assert dropped["links"] == len(workflow["links"])
