"""Both memories at once: a hero's VIDEO_MEMORY in a place's SPATIAL_MEMORY, on tiny random Wan models."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")

from pack.nodes.memory.choices import Choices, spec_of  # noqa: E402
from pack.nodes.memory.state import commit, empty_memory  # noqa: E402
from pack.nodes.spatial.cameras import path_from_text  # noqa: E402
from pack.nodes.spatial.cloud import Look, read, write  # noqa: E402
from pack.tests.sampling.latent_models import HEIGHT, WIDTH, model, picture, text  # noqa: E402
from pack.tests.spatial.test_spatial_clip import SIZES, decoder, watched  # noqa: E402
from pack.tests.spatial.test_spatial_clip import place as lifted_place  # noqa: E402

LATENTS = 5
PRESETS = {"vace": "wan21_vace", "ti2v": "wan22_ti2v_5b"}
OVERLAP = {"vace": 3, "ti2v": 2}  # latents that the film has already: VACE's three, TI2V's first frame and the last 4
KINDS = ["ti2v", "vace"]


def route(kind):
    return path_from_text("truck 1.2 in 2\nback", WIDTH, HEIGHT, spec(kind).fps, 60.0)


def spec(kind, **options):
    return spec_of(Choices(PRESETS[kind], **{"reanchor_clips": 1 if kind == "ti2v" else 0, **options}))


def place(kind):
    """Seen by the first camera of the route."""
    return lifted_place(kind, route(kind))


def sample(kind, memory, **options):
    from pack.nodes.spatial.nodes_clip import SpatialClipSampler

    given = {"model": model(kind), "vae": decoder(kind), "positive": text(1), "spatial_memory": place(kind),
             "camera_path": route(kind), "seed": 3, "first_frame": 0, "latents": LATENTS, "trust": 1.0, "steps": 2,
             "cfg": 1.0, "video_memory": memory}
    with torch.inference_mode():
        return SpatialClipSampler.EXECUTE_NORMALIZED(**{**given, **options}).args


def begun(kind, seed=0):
    """The memory after a first clip that began with a picture."""
    return sample(kind, empty_memory(spec(kind)), start_image=picture(seed))[3]


def second(kind, memory, **options):
    return sample(kind, memory, first_frame=4 * (LATENTS - 1), seed=4, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_clip_begins_the_heros_memory(kind):
    latent, _, report, memory, frame = sample(kind, empty_memory(spec(kind)), start_image=picture())
    assert latent["samples"].shape[2] == LATENTS == memory.latents_done and memory.clips_done == 1
    assert latent["first_latent"] == 0 and "context_samples" not in latent and frame == 0
    assert latent["fps"] == memory.spec.fps
    assert (memory.anchor.frame.float() / 255 - picture()[0]).abs().max() < 0.003
    assert torch.allclose(memory.tail, model(kind).model.process_latent_in(latent["samples"])[0], atol=1e-6)
    assert "Clip 1, the hero" in report


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_clip_is_shown_the_hero_and_the_place(kind):
    clone, taken = watched(kind)
    memory, start = begun(kind), 4 * (LATENTS - 1)
    latent, _, report, after, frame = second(kind, memory, model=clone)
    reading = read(place(kind), route(kind), tuple(start + 4 * i for i in range(LATENTS)))
    cond, image, mask = taken[0]
    with torch.inference_mode():
        hero = decoder(kind).encode(memory.anchor.frame[None].float() / 255)
        last = memory.overlap.float() / 255
    shared = OVERLAP[kind] - 1  # latents before the first camera
    known = ~reading.holes
    known[0] = False  # of the film
    if kind == "vace":
        control = cond["vace_frames"][0][0]
        assert torch.equal(control[:16, :1], hero[0]) and not cond["vace_mask"][0][0, :, 0].any()
        with torch.inference_mode():
            assert torch.equal(control[:16, 1 : 2 + shared], decoder(kind).encode(last[-9:])[0])
        shown = control[:16, 1 + shared :]
    else:
        with torch.inference_mode():
            both = decoder(kind).encode(torch.cat((memory.anchor.frame[None].float() / 255, last[-4:])))
        assert torch.equal(image[:, :, :2], both) and not mask[:, :, :2].any()
        assert torch.allclose(both[:, :, :1], hero, atol=1e-5)
        shown = image[0, :, shared:]
    assert known.any() and torch.equal(shown[:, known], reading.latents[:, known])
    assert latent["samples"].shape[2] == LATENTS - 1 and latent["context_samples"].shape[2] == OVERLAP[kind]
    assert frame == start + 4 and latent["first_latent"] == LATENTS and after.latents_done == 2 * LATENTS - 1
    assert torch.equal(after.anchor.frame, memory.anchor.frame) and after.clips_done == 2
    assert "first frame" in report and not torch.equal(after.overlap, memory.overlap)


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_the_hero_or_the_place_out_changes_the_clip(kind):
    memory = begun(kind)
    both = second(kind, memory)[0]["samples"]
    assert torch.equal(both, second(kind, memory)[0]["samples"])
    away = replace(place(kind), points=place(kind).points - torch.tensor([0.0, 0.0, 50.0]))
    no_place = second(kind, memory, spatial_memory=away)
    assert no_place[1] == 0.0
    no_hero = second(kind, None)[0]["samples"]
    other_hero = second(kind, begun(kind, 7))[0]["samples"]
    for other in (no_place[0]["samples"], no_hero[:, :, -both.shape[2]:], other_hero):
        assert not torch.allclose(both, other, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_video_memory_nothing_changes(kind):
    latent, _, report, memory, frame = sample(kind, None, first_frame=4)
    assert set(latent) == {"samples"} and latent["samples"].shape[2] == LATENTS
    assert memory is None and frame == 4 and "hero" not in report


def rolling(kind, chunks=3):
    """A causal film of the same VAE, of random latents."""
    preset = "longlive_2" if kind == "ti2v" else "self_forcing"
    made = empty_memory(spec_of(Choices(preset)))
    channels, stride = SIZES[kind]
    generator = torch.Generator().manual_seed(2)
    for _ in range(chunks):
        shape = channels, made.spec.chunk_latents, HEIGHT // stride, WIDTH // stride
        made = commit(made, torch.randn(shape, generator=generator), None)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_rolling_memory_goes_on_as_a_latent_one(kind):
    memory = rolling(kind)
    path = path_from_text("truck 1.2 in 2\nback", WIDTH, HEIGHT, memory.spec.fps, 60.0)
    clone, taken = watched(kind)
    latent, _, _, after, _ = second(kind, memory, model=clone, camera_path=path)
    inner = model(kind).model
    with torch.inference_mode():
        oldest = decoder(kind).decode(inner.process_latent_out(memory.blocks[0].latents[None, :, :1]))
        hero = decoder(kind).encode(oldest.reshape(1, HEIGHT, WIDTH, 3).mul(255).round() / 255)
    cond, image, _ = taken[0]
    if kind == "vace":
        assert torch.allclose(cond["vace_frames"][0][:, :16, :1], hero, atol=1e-4)
    else:  # one frame of overlap, no anchor in the recipe's own spec: the film's last frame
        with torch.inference_mode():
            film = decoder(kind).decode(inner.process_latent_out(memory.tail[None]))
            last = decoder(kind).encode(film.reshape(-1, HEIGHT, WIDTH, 3)[-1:].mul(255).round() / 255)
        assert torch.allclose(image[:, :, :1], last, atol=1e-4)
    assert after.spec.preset == PRESETS[kind] and after.anchor is not None and not after.blocks
    assert after.latents_done == memory.latents_done + LATENTS - 1
    assert torch.isfinite(latent["samples"]).all()
    assert second(kind, after, camera_path=path)[3].clips_done == after.clips_done + 1


@pytest.mark.parametrize(("kind", "latents"), [("ti2v", 1), ("vace", 3)])
def test_a_rolling_memory_refuses_a_clip_that_adds_nothing(kind, latents):
    memory = rolling(kind)
    path = path_from_text("truck 1.2 in 2\nback", WIDTH, HEIGHT, memory.spec.fps, 60.0)
    clone, taken = watched(kind)
    with pytest.raises(ValueError, match=f"got {latents} latents; allowed: {latents + 1} or more"):
        second(kind, memory, model=clone, camera_path=path, latents=latents)
    assert not taken
    assert second(kind, memory, camera_path=path, latents=latents + 1)[0]["samples"].shape[2] == latents


@pytest.mark.parametrize(("words", "change"), [
    ("video_memory, but got 'int'", lambda kind: {"memory": 3}),
    ("video_memory for this MODEL", lambda kind: {"memory": empty_memory(spec_of(Choices("wan21_i2v_14b")))}),
    ("8 fps.*16 fps|8 fps.*24 fps", lambda kind: {
        "camera_path": path_from_text("truck 1.2 in 4\nback", WIDTH, HEIGHT, 8.0, 60.0)}),
    ("start_image beside the video_memory", lambda kind: {"memory": begun(kind), "start_image": picture()}),
    ("shorter than what the next one is given", lambda kind: {"latents": 2}),
    ("another size", lambda kind: {"memory": replace(begun(kind), geometry=replace(
        begun(kind).geometry, height=99))}),
])
@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_that_does_not_fit_is_refused(kind, words, change):
    clone, taken = watched(kind)
    with pytest.raises(ValueError, match=words):
        sample(kind, **{"memory": empty_memory(spec(kind)), "model": clone, **change(kind)})
    assert not taken


def test_what_a_place_shows_is_written_back_where_the_clip_saw_it():
    """clip_frame is where Update Spatial Memory must begin: the new latents land on their own cameras."""
    memory = begun("ti2v")
    latent, _, _, _, frame = second("ti2v", memory)
    samples = latent["samples"][0]
    frames = tuple(frame + 4 * i for i in range(samples.shape[1]))
    depth = torch.full((len(frames), HEIGHT, WIDTH), 2.0)
    empty = replace(place("ti2v"), points=torch.zeros(0, 3), features=torch.zeros(0, 48, dtype=torch.float16),
                    frames=torch.zeros(0, dtype=torch.int32), confidence=torch.zeros(0, dtype=torch.float16))
    after = write(empty, Look(samples, depth, frames), route("ti2v"))
    assert after.frames.unique().tolist() == list(frames)
    assert max(frames) == 4 * (LATENTS - 1) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_clips_of_a_walk_are_saved_as_a_film(kind, tmp_path, monkeypatch):
    """Save Clip takes them: the second is decoded behind the latents that the film has already."""
    folder_paths = pytest.importorskip("folder_paths")
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video.bridge import load_clip, save_clip
    from pack.nodes.video.run_folder import RunFolder

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    run = RunFolder(tmp_path / "walk")
    first = sample(kind, empty_memory(spec(kind)), start_image=picture())
    made, _ = save_clip(run, 0, first[0], decoder(kind), first[3], None, "", SILENT)
    then = second(kind, first[3])
    again, _ = save_clip(run, 1, then[0], decoder(kind), then[3], None, "", SILENT)
    assert (made.frames, again.frames) == (4 * (LATENTS - 1) + 1, 4 * (LATENTS - 1)) and again.fps == then[3].spec.fps
    latent, memory = load_clip(run, 1, True)
    assert torch.equal(latent["samples"], then[0]["samples"]) and latent["first_latent"] == LATENTS
    assert memory.latents_done == then[3].latents_done and torch.equal(memory.overlap, then[3].overlap)
