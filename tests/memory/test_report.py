"""Memory Report's content and its picture, without ComfyUI: roles, sizes, drift, and what is drawn where."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pack.nodes.common.progress import Progress
from pack.nodes.common.types import Geometry, VideoMemory
from pack.nodes.memory.contents import in_words, remembered, require_memory, sizes
from pack.nodes.memory.files import load_memory, save_memory
from pack.nodes.memory.kv_cache import BlockKV, pack_layer
from pack.nodes.memory.latent_memory import make_anchor, remember
from pack.nodes.memory.report import memory_report
from pack.nodes.memory.sheet import COLOURS, MARGIN, MAX_TILES, PAPER, TRACK, WIDTH, draw_sheet, evenly, thumbnail
from pack.nodes.memory.state import begin_clip, commit, empty_memory, end_clip
from pack.nodes.memory.strip import strip_of
from pack.nodes.memory.words import size
from pack.nodes.sampling.presets import memory_spec

GRID = Geometry(4, 2, 3)
HERO, SEA = torch.eye(2)[:, None]  # prompts of one token


def cache(precision: str = "model") -> BlockKV:
    draw = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 1, 6, 2, 64, generator=draw)
    return BlockKV((pack_layer(k, v, precision),))


def film(*clips: tuple[torch.Tensor, int, float], precision: str = "model", **spec: object) -> VideoMemory:
    """A toy world film of clips (prompt, chunks, brightness of the latents); every clip has a prompt of its own."""
    memory = empty_memory(memory_spec("toyworld", precision=precision, **spec))
    for prompt, chunks, level in clips:
        before = memory
        memory = begin_clip(memory, GRID, "model", torch.cat((prompt[0], torch.tensor([float(memory.latents_done)]))))
        for _ in range(chunks):
            latents = torch.linspace(-1, 1, 72).reshape(4, 3, 2, 3) + level
            memory = commit(memory, latents, cache(precision), None, prompt)
        memory = end_clip(memory, before)
    return memory


def frame_of(latents: torch.Tensor) -> torch.Tensor:
    return torch.full((10, 16, 3), float(latents.mean()) * 0.1 + 0.5)


def latent_film() -> VideoMemory:
    latents, ramp = torch.randn(4, 6, 2, 2), torch.linspace(0, 1, 21)[:, None, None, None].expand(21, 32, 48, 3)
    memory = replace(empty_memory(memory_spec("wan22_ti2v_5b", overlap_latents=2)), geometry=GRID)
    return remember(memory, latents, ramp, make_anchor(latents, ramp[0]))


def test_every_chunk_has_its_role():
    memory = film((HERO, 3, 0), (SEA, 3, 0), (HERO, 2, 0), prompt_change="pin", pinned_s=1.5, retrieved_s=1.5)
    assert [one.block.start // 3 for one in remembered(memory)] == list(range(8))
    assert [one.role for one in remembered(memory)] == [
        "sink", "archive", "retrieved", "archive", "archive", "archive", "pinned", "window"]
    assert [one.role for one in remembered(film((HERO, 4, 0)))] == ["sink", "window", "window"]
    assert remembered(empty_memory(memory_spec("toyworld"))) == ()


def test_what_is_kept_to_recache_alone_is_not_called_remembered():
    memory = film((HERO, 5, 0), prompt_change="recache")
    spare = replace(memory.blocks[1], start=3, kv=None)
    assert len(remembered(replace(memory, archive=(spare,)))) == 3
    assert "of all 3 chunks" in in_words(replace(memory, archive=(spare,)))[-1]


def test_distance_is_from_the_sink_or_from_the_oldest_chunk():
    memory = film((HERO, 2, 0), (SEA, 2, 0.5))
    assert [round(one.distance, 5) for one in remembered(memory)] == [0, 0.5, 0.5]
    assert [round(one.distance, 5) for one in remembered(film((HERO, 1, 0), (SEA, 2, 0.5), sink_s=0.0))] == [0, 0]
    assert "the oldest chunk remembered" in memory_report(film((HERO, 2, 0), sink_s=0.0), frame_of, True)[1]


@pytest.mark.parametrize(("precision", "name"), [("model", "float32"), ("int8", "int8"), ("4bit", "4bit")])
def test_bytes_are_those_of_the_tensors(tmp_path, precision, name):
    memory = film((HERO, 3, 0), precision=precision)
    found = sizes(memory)
    assert found["latents"] == 3 * 72 * 4 + 8 * 24 * 4 and found["prompts"] == 2 * 4
    assert found[f"K/V {name} in RAM"] == 3 * cache(precision).nbytes and len(found) == 3
    again = sizes(load_memory(save_memory(memory, tmp_path / "m.safetensors")))
    assert again[f"K/V {name} in file"] == found[f"K/V {name} in RAM"] and f"K/V {name} in RAM" not in again
    bare = load_memory(save_memory(memory, tmp_path / "bare.safetensors", with_kv=False))
    assert sizes(bare).keys() == {"latents", "prompts"} and sizes(bare)["latents"] == found["latents"]
    assert sizes(latent_film())["pictures"] == 6 * 32 * 48 * 3


def test_words_say_whether_keys_and_values_are_there(tmp_path):
    memory = film((HERO, 3, 0))
    assert "of all 3 chunks are in it" in in_words(memory)[-1]
    bare = load_memory(save_memory(memory, tmp_path / "bare.safetensors", with_kv=False))
    assert "of 3 of 3 chunks are not in it: the next Clip Sampler makes them again" in in_words(bare)[-1]
    assert in_words(memory)[0] == "1 clip, 4.50 s of film (9 latents)."
    assert "3x2 latent pixels of 4 channels; model model" in in_words(memory)[1]
    assert in_words(empty_memory(memory_spec("svd")))[-1] == "Remembered: nothing yet."
    assert "first frame (48x32), its colours, and the last 5 frames" in in_words(latent_film())[-1]


def test_colour_drift_needs_decoded_frames():
    memory = film((HERO, 2, 0), (SEA, 2, 2.0))
    sheet, text = memory_report(memory, frame_of, True, ("A note.",))
    assert sheet.tiles[0].colour == 0 and sheet.tiles[-1].colour > 15 and "(lighter)" in text and "A note." in text
    assert "Who is in the picture is not measured" in text
    sheet, text = memory_report(memory, frame_of, False)
    assert {tile.colour for tile in sheet.tiles} == {None} and "connect the VAE" in text
    assert [tile.distance for tile in sheet.tiles] == pytest.approx([0, 2, 2], abs=1e-5)


def test_frames_of_a_latent_memory_are_shown_as_they_are():
    sheet, text = memory_report(latent_film(), frame_of, False)
    assert [tile.role for tile in sheet.tiles] == ["anchor", *["overlap"] * 5]
    assert int(sheet.tiles[0].picture.max()) == 0 and int(sheet.tiles[-1].picture.min()) == 255
    assert sheet.tiles[-1].colour == pytest.approx(100) and sheet.tiles[-1].distance is not None
    assert sheet.tiles[-1].end_s == pytest.approx(1.0) and "lighter" in text and "connect the VAE" not in text


def test_the_strip_tells_of_every_chunk_what_it_is_and_what_it_takes(tmp_path):
    memory = film((HERO, 3, 0), (SEA, 1, 0), precision="int8")
    memory = replace(memory, blocks=(*memory.blocks[:-1], replace(memory.blocks[-1], kv=None, text="by the sea")))
    sheet = memory_report(memory, frame_of, False)[0]
    files = [{"filename": f"{i}.png"} for i in range(3)]
    strip = strip_of(sheet, files)
    assert json.loads(json.dumps(strip)) == strip and strip["title"] == sheet.title
    assert strip["sizes"] == [f"{name}: {words}" for name, _, words in sheet.sizes] and len(strip["sizes"]) == 3
    chunks = strip["chunks"]
    assert [(one["role"], one["start_s"], one["end_s"]) for one in chunks] == [
        ("sink", 0.0, 1.5), ("window", 3.0, 4.5), ("window", 4.5, 6.0)]
    kept = f"K/V int8 in RAM, {size(cache('int8').nbytes)}"
    assert [one["stored"] for one in chunks] == [kept, kept, "no K/V: made again from the latents"]
    assert [one["prompt"] for one in chunks] == ["", "", "by the sea"]
    assert [one["picture"] for one in chunks] == files and chunks[0]["means"] == "kept for ever"
    saved = load_memory(save_memory(memory, tmp_path / "m.safetensors"))
    strip = strip_of(memory_report(saved, frame_of, False)[0], files)
    assert strip["chunks"][0]["stored"].startswith("K/V int8 in file")


def test_the_strip_of_a_latent_memory_has_pictures_in_place_of_keys_and_values():
    sheet = memory_report(replace(latent_film(), text="a road"), frame_of, False)[0]
    chunks = strip_of(sheet, [{}] * 6)["chunks"]
    assert chunks[0]["stored"] == f"picture and latents, {size(32 * 48 * 3 + 4 * 2 * 2 * 4)}"
    assert chunks[1]["stored"] == f"picture, {size(32 * 48 * 3)}" and chunks[1]["prompt"] == "a road"


def test_pictures_are_made_one_chunk_at_a_time_and_can_be_stopped():
    asked = []

    def stop() -> None:
        if len(asked) == 2:
            raise InterruptedError

    def seen(latents: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(latents.shape))
        return frame_of(latents)

    with pytest.raises(InterruptedError):
        memory_report(film((HERO, 3, 0)), seen, True, (), Progress(check_cancel=stop))
    assert asked == [(4, 3, 2, 3)] * 2


def test_a_long_memory_is_shown_in_part_from_first_to_last():
    memory = film((HERO, 80, 0), window_s=200.0)
    sheet, text = memory_report(memory, frame_of, False)
    assert len(sheet.tiles) == MAX_TILES and (sheet.tiles[0].start_s, sheet.tiles[-1].end_s) == (0, 120)
    assert f"{MAX_TILES} of 80 chunks are shown" in text
    assert evenly(tuple(range(5)), 5) == (0, 1, 2, 3, 4) and evenly(tuple(range(9)), 3) == (0, 4, 8)


def at(image: torch.Tensor, x: float, y: float) -> tuple[int, ...]:
    return tuple((image[0, int(y), int(x)] * 255).round().int().tolist())


def test_the_bar_shows_what_is_remembered_where_it_lies_in_the_film():
    image = draw_sheet(memory_report(film((HERO, 8, 0)), frame_of, True)[0])
    second = (WIDTH - 2 * MARGIN) / 12
    assert [at(image, MARGIN + second * s, 110) for s in (0.7, 5, 10)] == [COLOURS["sink"], TRACK, COLOURS["window"]]


def test_the_thumbnail_is_the_frame_in_a_border_of_its_role():
    memory = film((HERO, 2, 0), (SEA, 2, 2.0))
    image = draw_sheet(memory_report(memory, frame_of, True)[0])
    pixels = {tuple(p) for p in (image[0, :, ::3] * 255).round().int().reshape(-1, 3).tolist()}
    assert {(128,) * 3, (178,) * 3, COLOURS["sink"], COLOURS["window"], PAPER} <= pixels
    assert COLOURS["pinned"] not in pixels


def test_thumbnails_keep_the_proportions_and_take_bytes_and_floats():
    picture = thumbnail(torch.ones(704, 1280, 3))
    assert picture.dtype == torch.uint8 and picture.shape[1] / picture.shape[0] == pytest.approx(1280 / 704, rel=0.01)
    assert torch.equal(thumbnail(torch.full((4, 8, 3), 255, dtype=torch.uint8)), thumbnail(torch.ones(4, 8, 3)))


def test_an_empty_memory_has_a_picture_too():
    sheet, text = memory_report(empty_memory(memory_spec("toyworld")), frame_of, True)
    image = draw_sheet(sheet)
    assert image.shape[2] == WIDTH and image.min() < 0.3 and "Remembered: nothing." in text


def test_no_memory_is_refused_by_name():
    with pytest.raises(ValueError, match="Save Memory needs a memory, but got a clip that was saved or loaded without"):
        require_memory(None, "Save Memory")
