"""Save Clip, Load Clip and Assemble Short in process, with the demo checkpoint's VAE and real files."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack.nodes.common.types import MemorySpec, RenderPlan

pytestmark = pytest.mark.comfy

SPEC = MemorySpec("toyworld", 8.0, 3, 3, 6)


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    pytest.importorskip("comfy.ops")
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def nodes(output):
    from pack.nodes.video import nodes

    return nodes


@pytest.fixture
def nodes_film(output):
    from pack.nodes.video import nodes_film

    return nodes_film


@pytest.fixture(scope="module")
def film(toyworld) -> torch.Tensor:
    pytest.importorskip("comfy.ops")
    from comfy.latent_formats import Wan21
    from safetensors.torch import load_file

    return Wan21().process_out(load_file(toyworld / "reference_rollout.safetensors")["latents_euler8"][None])


def clip_latent(film: torch.Tensor, start: int, stop: int) -> dict:
    latent = {"samples": film[:, :, start:stop], "first_latent": start}
    return {**latent, "context_samples": film[:, :, max(0, start - 8) : start]} if start else latent


def a_plan(tile_px: int = 0) -> RenderPlan:
    return RenderPlan(128, 80, 2, SPEC, tile_px, 1, 0, (), ())


def a_memory():
    from pack.nodes.memory.state import empty_memory

    return empty_memory(SPEC)


def save(nodes, latent, vae, run_name, memory=None, plan=None, clips=None, fingerprint=""):
    return nodes.SaveClip.execute(vae, run_name, latent, memory, plan, clips, fingerprint)


def test_clips_become_a_film(nodes, nodes_film, output, comfy_vae, film):
    from pack.nodes.interpolation.nodes import LoadRife
    from pack.nodes.interpolation.weights import BUNDLED
    from pack.nodes.video.encode import read_frames

    clips = None
    for start in (4, 6):
        latent = clip_latent(film, start, start + 2)
        clips, _, report = save(nodes, latent, comfy_vae, "film", None, a_plan(), clips).args
    assert [(record.index, record.frames, record.fps) for record in clips.records] == [(0, 8, 8.0), (1, 8, 8.0)]
    assert report.startswith("Clip 1: 8 frames, 128x80 at 8 fps")

    rife = LoadRife.execute(BUNDLED).args[0]
    result = nodes_film.AssembleShort.execute(clips, 24.0, 2, 18, "video/short", rife)
    video, path, report = result.args
    assert Path(path) == output / "video" / "short_00001_.mp4" and video.get_frame_count() == 48
    assert (video.get_dimensions(), video.get_duration(), video.get_frame_rate()) == ((256, 160), 2.0, 24)
    assert "2 clips, 16 frames at 8 fps -> 48 frames at 24 fps, 256x160, 2.0 s" in report
    assert result.ui.as_dict()["images"][0] == {"filename": "short_00001_.mp4", "subfolder": "video", "type": "output"}
    assert len(list(read_frames(path))) == 48
    assert nodes_film.AssembleShort.execute(clips, 0.0, 1, 18, "video/short").args[1].endswith("short_00002_.mp4")


def test_saved_frames_are_those_of_the_film_in_one_go(nodes, output, comfy_vae, film):
    from pack.nodes.video.encode import read_frames, to_uint8

    save(nodes, clip_latent(film, 6, 8), comfy_vae, "film")
    saved = torch.stack(list(read_frames(output / "videomemory" / "film" / "clip_000.mkv")))
    wanted = to_uint8(comfy_vae.decode(film[:, :, :8])[0])[-8:]
    assert saved.shape == wanted.shape
    difference = (saved.int() - wanted.int()).abs()
    assert difference.float().mean() < 0.2 and difference.max() < 16


def test_first_clip_without_context_has_three_frames_less(nodes, comfy_vae, film):
    clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film").args[0]
    assert (clips.records[0].frames, clips.records[0].fps) == (5, 16.0)


def test_nothing_is_decoded_twice(nodes, output, comfy_vae, film, monkeypatch):
    from pack.nodes.video import bridge

    first = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film").args
    video = output / "videomemory" / "film" / "clip_000.mkv"
    made = video.stat().st_mtime_ns
    monkeypatch.setattr(bridge, "decode_frames", None)
    again = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film").args
    assert again[0] == first[0] and "nothing was decoded" in again[2] and video.stat().st_mtime_ns == made


def test_cancel_while_decoding_costs_only_the_decode(nodes, output, comfy_vae, film, monkeypatch):
    import comfy.model_management as mm

    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory())
    run = output / "videomemory" / "film"
    assert not list(run.glob("*.tmp")) and not list(run.glob("*.mkv"))
    assert json.loads((run / "manifest.json").read_text())["clips"][0]["status"] == "memory"
    latents = (run / "clip_000.latents.safetensors").stat().st_mtime_ns
    clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory()).args[0]
    assert clips.records[0].frames == 5
    assert (run / "clip_000.latents.safetensors").stat().st_mtime_ns == latents


def test_other_latents_replace_the_clip_and_other_tiles_do_not(nodes, output, comfy_vae, film):
    """Tiles equal the whole frame: a card with less room left today need not decode again."""
    save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", None, a_plan())
    save(nodes, clip_latent(film, 2, 4), comfy_vae, "film", None, a_plan())
    assert (output / "videomemory" / "film" / "clip_000.take2.mkv").is_file()
    clips, _, report = save(nodes, clip_latent(film, 2, 4), comfy_vae, "film", None, a_plan(64)).args
    assert clips.records[0].video_file == "clip_000.take2.mkv" and "nothing was decoded" in report
    assert len(list((output / "videomemory" / "film").glob("*.mkv"))) == 1


@pytest.mark.parametrize(("tile", "parked", "tried", "said"), [
    (0, False, 1, "decoded in tiles of 384 px"), (0, False, 2, "decoded in tiles of 256 px"),
    (512, True, 1, "decoded in tiles of 384 px"), (256, False, 0, "5 frames")])
def test_tiles_rescue_a_decode_that_does_not_fit(nodes, comfy_vae, film, monkeypatch, tile, parked, tried, said):
    import comfy.model_management as mm
    from pack.nodes.video import bridge_decode

    ways, real = [], bridge_decode.stream_decode_tiled

    def full(way):
        ways.append(way)
        raise mm.OOM_EXCEPTION("full")
        yield

    def whole(*arguments):
        yield from full((0, arguments[-1]))

    def tiled(module, latents, context, side, cancel, parked):
        if len(ways) < tried:
            yield from full((side * 8, parked))
        else:
            ways.append((side * 8, parked))
            yield from real(module, latents, context, side, cancel, parked)

    monkeypatch.setattr(bridge_decode, "stream_decode", whole)
    monkeypatch.setattr(bridge_decode, "stream_decode_tiled", tiled)
    plan = replace(a_plan(tile), decode_caches_in_ram=parked)
    clips, _, report = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", plan=plan).args
    assert clips.records[0].frames == 5 and said in report
    assert ways == [(tile, parked), (384, True), (256, True)][:tried + 1]


def test_a_decode_that_fits_in_no_way_loses_nothing(nodes, output, comfy_vae, film, monkeypatch):
    import comfy.model_management as mm
    from pack.nodes.video import bridge

    def full(*_args):
        raise mm.OOM_EXCEPTION("full")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(bridge, "decode_frames", full)
        with pytest.raises(RuntimeError, match="too little memory even for tiles of 256 px.* nothing is sampled again"):
            save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory(), fingerprint="word")
    assert nodes.SaveClip.check_lazy_status("film", None, "word", samples=None, memory=None) == []
    assert "5 frames" in save(nodes, None, comfy_vae, "film", fingerprint="word").args[2]


def test_loaded_clip_is_the_saved_one(nodes, comfy_vae, film):
    latent, memory = clip_latent(film, 6, 8), a_memory()
    save(nodes, latent, comfy_vae, "film", memory, fingerprint="print")
    loaded, remembered = nodes.LoadClip.execute("film", 0, True).args
    assert (loaded["first_latent"], loaded["fps"]) == (6, 8.0) and remembered == memory
    assert all(torch.equal(loaded[name], latent[name]) for name in ("samples", "context_samples"))
    assert nodes.LoadClip.execute("film", 0, False).args[1] is None
    again = save(nodes, loaded, comfy_vae, "film", remembered, fingerprint="print").args
    assert "nothing was decoded" in again[2]
    assert nodes.LoadClip.fingerprint_inputs("film", 0) != nodes.LoadClip.fingerprint_inputs("film", 1)


def test_a_safe_clip_asks_for_no_sampler(nodes, output, comfy_vae, film):
    """What lies in the folder under the same fingerprint is read from there; anything else asks for its inputs."""
    def wanted(fingerprint, **connected):
        return nodes.SaveClip.check_lazy_status(run_name="film", vae=comfy_vae, fingerprint=fingerprint, **connected)

    latent, memory = clip_latent(film, 0, 2), a_memory()
    first = save(nodes, latent, comfy_vae, "film", memory, fingerprint="print").args
    assert wanted("print", samples=None, memory=None) == []
    assert wanted("another", samples=None, memory=None) == ["samples", "memory"]
    assert wanted("another", samples=latent, memory=memory) == []
    assert wanted("", samples=None) == ["samples"]
    assert nodes.SaveClip.check_lazy_status(run_name="film", clips=first[0], fingerprint="print", samples=None)
    again = nodes.SaveClip.execute(comfy_vae, "film", fingerprint="print").args
    assert (again[0], again[1]) == (first[0], memory) and "nothing was decoded" in again[2]
    (output / "videomemory" / "film" / "clip_000.memory.safetensors").unlink()
    assert wanted("print", samples=None, memory=None) == ["samples", "memory"]


def test_another_memory_of_the_same_latents_is_saved_anew(nodes, output, comfy_vae, film):
    """The memory's precision shows only in later clips; a film resumed from here must go on in the one it has."""
    latent, memory = clip_latent(film, 0, 2), a_memory()
    save(nodes, latent, comfy_vae, "film", memory, fingerprint="a")
    packed = replace(memory, spec=replace(memory.spec, precision="int8"))
    save(nodes, latent, comfy_vae, "film", packed, fingerprint="b")
    assert nodes.LoadClip.execute("film", 0, True).args[1] == packed


def test_resumed_memory_rests_where_the_new_plan_says(nodes, output, comfy_vae, film):
    """Another card's plan may move the memory to RAM: nothing is made again, but the next clip obeys."""
    made = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory(), a_plan(), fingerprint="a").args
    small_card = replace(a_plan(), spec=replace(SPEC, placement="ram"))
    resumed = nodes.SaveClip.execute(comfy_vae, "film", plan=small_card, fingerprint="a").args
    assert resumed[0] == made[0] and "nothing was decoded" in resumed[2]
    assert resumed[1].spec.placement == "ram"


def test_missing_clips_and_memories_are_named(nodes, comfy_vae, film):
    save(nodes, clip_latent(film, 0, 1), comfy_vae, "film")
    with pytest.raises(ValueError, match="the run 'film' needs a saved clip 3, but got 'none'; allowed: clip 0"):
        nodes.LoadClip.execute("film", 3, False)
    with pytest.raises(ValueError, match="allowed: a run in which Save Clip has saved clips"):
        nodes.LoadClip.execute("empty", 0, False)
    with pytest.raises(ValueError, match="asked for its memory"):
        nodes.LoadClip.execute("film", 0, True)


def test_image_vae_is_decoded_by_comfyui(nodes, comfy_vae, film, monkeypatch):
    from pack.nodes.video import bridge_decode

    monkeypatch.setattr(bridge_decode, "wan_decoder_traits", lambda module: None)
    clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film").args[0]
    assert clips.records[0].frames == 5
    tiled = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", None, a_plan(64)).args[0]
    assert tiled.records[0].frames == 5


@pytest.mark.parametrize("shape", [(2, 16, 1, 4, 4), (1, 16, 4, 4)])
def test_other_shapes_are_refused(nodes, comfy_vae, shape):
    with pytest.raises(ValueError, match=r"Save Clip needs the latents of one video, \[1, C, T, h, w\], but got"):
        save(nodes, {"samples": torch.zeros(shape)}, comfy_vae, "film")


@pytest.mark.parametrize("channels", [12, 48])
def test_latents_of_another_vae_are_refused_before_anything_is_written(nodes, comfy_vae, output, channels):
    with pytest.raises(ValueError, match=f"latents with {channels} channels; allowed: 16 channels"):
        save(nodes, {"samples": torch.zeros(1, channels, 1, 4, 4)}, comfy_vae, "film")
    assert not (output / "videomemory").exists()


def test_a_resized_clip_behind_its_old_context_is_refused(nodes, comfy_vae, output):
    latent = {"samples": torch.zeros(1, 16, 1, 8, 8), "context_samples": torch.zeros(1, 16, 4, 4, 4)}
    with pytest.raises(ValueError, match="the same channels, height and width. Connect Clip Sampler directly"):
        save(nodes, latent, comfy_vae, "film")
    assert not (output / "videomemory").exists()


def lazily(nodes, fingerprint="word"):
    return nodes.SaveClip.check_lazy_status("film", None, fingerprint, samples=None, memory=None)


def test_damaged_frames_are_decoded_again_from_the_latents(nodes, comfy_vae, film, output):
    from pack.nodes.video.encode import read_frames

    clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory(), fingerprint="word").args[0]
    path = output / "videomemory" / "film" / "clip_000.mkv"
    frames = torch.stack(list(read_frames(path)))
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    assert nodes.SaveClip.fingerprint_inputs("film") == 1 and lazily(nodes) == []
    again = save(nodes, None, comfy_vae, "film", fingerprint="word").args
    assert "clip_000.mkv had changed on the disk, so the frames were decoded again from the latents." in again[2]
    assert again[0] == clips and torch.equal(torch.stack(list(read_frames(path))), frames)


@pytest.mark.parametrize("kind", ["latents", "memory"])
def test_damaged_latents_or_memory_are_rendered_again_and_the_rest_is_kept(nodes, comfy_vae, film, output, kind):
    latent, memory = clip_latent(film, 0, 2), a_memory()
    clips = save(nodes, latent, comfy_vae, "film", memory, fingerprint="word").args[0]
    path, video = (output / "videomemory" / "film" / f"clip_000.{name}" for name in (f"{kind}.safetensors", "mkv"))
    made = video.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-2] + b"xy")
    assert lazily(nodes) == ["samples", "memory"]
    again = save(nodes, latent, comfy_vae, "film", memory, fingerprint="word").args
    assert f"clip_000.{kind}.safetensors had changed on the disk, so the clip was rendered again." in again[2]
    assert again[0] == clips and video.stat().st_mtime_ns == made
    loaded = nodes.LoadClip.execute("film", 0, True).args[0]
    assert lazily(nodes) == [] and torch.equal(loaded["samples"], latent["samples"])


def test_damaged_files_are_never_loaded(nodes, comfy_vae, film, output):
    save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory())
    path = output / "videomemory" / "film" / "clip_000.latents.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RuntimeError, match="clip_000.latents.safetensors with other bytes.*queue the workflow"):
        nodes.LoadClip.execute("film", 0, True)


def test_a_clip_is_kept_under_its_new_word(nodes, comfy_vae, film):
    made = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory(), fingerprint="old").args[0]
    assert nodes.SaveClip.check_lazy_status("film", None, "new", "old", samples=None, memory=None) == []
    kept = nodes.SaveClip.execute(comfy_vae, "film", fingerprint="new", keeps="old").args
    assert kept[0] == made and "nothing was decoded" in kept[2]
    assert lazily(nodes, "new") == [] and lazily(nodes, "old") == ["samples", "memory"]


def test_lost_manifest_is_made_anew_and_the_report_says_so(nodes, comfy_vae, film, output):
    clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film", a_memory(), fingerprint="word").args[0]
    (output / "videomemory" / "film" / "manifest.json").unlink()
    assert lazily(nodes) == []
    again = save(nodes, None, comfy_vae, "film", fingerprint="word").args
    assert again[0] == clips and "was lost; it was made anew from the cards of 1 clip." in again[2]


def test_a_folder_that_cannot_be_made_is_refused_before_sampling(nodes, output):
    assert nodes.SaveClip.check_lazy_status("film", samples=None) == ["samples"]
    (output / "videomemory" / "taken").write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match="needs a folder to write to, .* another --output-directory"):
        nodes.SaveClip.check_lazy_status("taken", samples=None)


def test_run_folders_may_lie_on_another_drive(nodes, comfy_vae, film, output, tmp_path_factory):
    import folder_paths

    drive = tmp_path_factory.mktemp("drive")
    try:
        folder_paths.add_model_folder_path("videomemory", str(drive))
        clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film").args[0]
        assert Path(clips.records[0].folder) == drive / "film" and (drive / "film" / "manifest.json").is_file()
        assert not (output / "videomemory").exists()
    finally:
        del folder_paths.folder_names_and_paths["videomemory"]


def test_a_full_disk_is_said_in_one_sentence(nodes, nodes_film, comfy_vae, film, output, monkeypatch):
    from pack.nodes.video import bridge

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    clips = save(nodes, clip_latent(film, 0, 2), comfy_vae, "film").args[0]
    monkeypatch.setattr(bridge, "save_latent", full)
    with pytest.raises(RuntimeError, match=r"Save Clip has to write into .*No space left.* finished clips are kept"):
        save(nodes, clip_latent(film, 2, 4), comfy_vae, "film", clips=clips)
    monkeypatch.setattr(nodes_film, "write_mp4", full)
    with pytest.raises(RuntimeError, match=r"Assemble Short has to write into .*No space left"):
        nodes_film.AssembleShort.execute(clips, 8.0, 1, 18, "video/short")


@pytest.mark.parametrize("prefix", ["../short", "video/../../short", "/short", "x" * 201, "video/16:9", "what?",
                                    "%date:yyyy%/short", "aux/short"])
def test_film_name_is_checked_before_anything_runs(nodes_film, output, prefix):
    assert "inside ComfyUI's output folder" in nodes_film.AssembleShort.validate_inputs(prefix)
    for good in ("video/short", "a/../short", "", "%year%-%month%/short", None):
        assert nodes_film.AssembleShort.validate_inputs(good) is True


def test_run_name_is_checked_before_anything_runs(nodes):
    for node in (nodes.SaveClip, nodes.LoadClip):
        assert node.validate_inputs("film") is True
        assert "A run needs a name" in node.validate_inputs("../film")


def test_schemas_are_complete(nodes, nodes_film):
    for node in (*nodes.NODES, *nodes_film.NODES):
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("VideoMemory") and schema.category == "VideoMemory/video"
        assert all(socket.tooltip for socket in (*schema.inputs, *schema.outputs))
