"""The pack inside a real ComfyUI: it loads, lists its nodes and serves its help pages."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.server


def test_the_pack_loads_without_a_failed_import(server):
    log = server.log.read_text(encoding="utf-8", errors="replace").partition("Starting server")[0]
    assert "IMPORT FAILED" not in log
    assert "Traceback" not in log
    assert "ComfyUI-VideoMemory" in log


def test_every_node_is_in_the_servers_list(server, node_classes):
    listed = server.client.get("/object_info")
    for cls in node_classes:
        node_id = cls.GET_SCHEMA().node_id
        assert listed[node_id]["python_module"] == "custom_nodes.ComfyUI-VideoMemory"
        assert listed[node_id]["display_name"] == cls.GET_SCHEMA().display_name


def test_every_help_page_is_served(server, node_classes):
    for cls in node_classes:
        node_id = cls.GET_SCHEMA().node_id
        page = server.client.get_bytes(f"/extensions/ComfyUI-VideoMemory/docs/{node_id}.md")
        assert len(page) > 100, node_id


def test_the_demo_checkpoint_is_offered(server):
    vaes = server.client.get("/object_info/VAELoader")["VAELoader"]["input"]["required"]["vae_name"][0]
    assert "toyworld_vae_fp16.safetensors" in vaes
