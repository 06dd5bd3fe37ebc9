"""Clips of ordinary checkpoints on real VAEs: they join, and a memory is a value, in the graph as in a file."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from .counting_films import Counter, memory_of, sample
from .latent_models import FILMS, blocks_vae, model, picture, text, vae

pytestmark = pytest.mark.comfy

WANS = [preset for preset, (kind, _, _) in FILMS.items() if kind in ("ti2v", "i2v", "i2v22", "vace")]


def coder(preset: str):
    kind = FILMS[preset][0]
    return vae("ti2v" if kind == "ti2v" else "") if preset in WANS else blocks_vae(preset)


@pytest.mark.parametrize("preset", WANS)
def test_clips_join_as_the_decoder_sees_them(preset):
    """Save Clip's streaming decode of a clip is the end of what one decode behind its context gives."""
    from pack.nodes.video.decode import frame_count, stream_decode

    first, after, report = sample(preset, memory_of(preset), 3, start_image=picture(), vae=coder(preset))
    assert report.startswith("Latent memory") and (after.latents_done, after.clips_done) == (3, 1)
    second, last, _ = sample(preset, after, 3, vae=coder(preset))
    k = after.spec.overlap_latents
    assert first["samples"].shape[2] == second["samples"].shape[2] == 3 and "context_samples" not in first
    assert second["context_samples"].shape[2] == k and (second["first_latent"], last.latents_done) == (3, 6)
    with torch.inference_mode():
        frames = torch.cat(list(stream_decode(coder(preset).first_stage_model, second["samples"],
                                              second["context_samples"])))
        whole = coder(preset).decode(torch.cat((second["context_samples"], second["samples"]), 2))[0]
    assert len(frames) == 12 == frame_count(3, k)
    assert torch.allclose(frames, whole[-12:], atol=1e-4)
    assert (last.overlap.float() / 255 - whole[-len(last.overlap):]).abs().max() < 0.01


def test_a_vae_that_core_decodes_gives_the_same_new_frames(monkeypatch):
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video import bridge_decode

    _, after, _ = sample("wan21_i2v_14b", memory_of("wan21_i2v_14b", overlap_latents=2), 3, start_image=picture(),
                         vae=vae(""))
    clip, _, _ = sample("wan21_i2v_14b", after, 3, vae=vae(""))
    found = []
    for traits in (bridge_decode.wan_decoder_traits, lambda _module: None):
        monkeypatch.setattr(bridge_decode, "wan_decoder_traits", traits)
        with torch.inference_mode():
            found.append(torch.cat(list(bridge_decode.decode_frames(vae(""), clip["samples"],
                                                                    clip["context_samples"], 0, SILENT))))
    assert len(found[0]) == 12 and torch.allclose(*found, atol=1e-4)


BAR_X, BAR_STEP, BAR_WIDTH, BAR_SCREEN = 4, 3, 12, (96, 32)


class Bars(Counter):
    """Frame i has a bright bar at pixel 4 + 3i, through the demo's trained VAE: what is read back was decoded."""

    def __call__(self, executor, x, t, c_concat=None, *args, **kwargs):
        given = c_concat[:, 4:, : int(c_concat[0, 0, :, 0, 0].sum())]
        shown = self.vae.decode(self.inner.process_latent_out(given[:1]))[0].movedim(0, -1)
        last = round(bar_numbers((shown + 1) / 2)[-1])
        first = last - 4 * (given.shape[2] - 1)
        pixels = bars(torch.arange(first, first + 4 * x.shape[2] - 3)).movedim(-1, 0)[None] * 2 - 1
        made = self.inner.process_latent_in(self.vae.encode(pixels))
        return torch.cat((given, made[:, :, given.shape[2]:].expand(len(x), -1, -1, -1, -1)), 2)


def bars(numbers: torch.Tensor) -> torch.Tensor:
    x = torch.arange(BAR_SCREEN[0]) - BAR_X - BAR_STEP * numbers[:, None]
    lit = ((x >= 0) & (x < BAR_WIDTH)).float() * 0.7 + 0.15
    return lit[:, None, :, None].expand(-1, BAR_SCREEN[1], -1, 3)


def bar_numbers(frames: torch.Tensor) -> list[float]:
    """Where the bars of [n, H, W, 3] stand, as numbers with a fraction."""
    light = (frames.float().mean((1, 3)) - 0.4).clamp(min=0)
    centre = (light * (torch.arange(BAR_SCREEN[0]) + 0.5)).sum(1) / light.sum(1)
    return ((centre - BAR_WIDTH / 2 - BAR_X) / BAR_STEP).tolist()


@pytest.mark.parametrize(("overlap", "reanchor"), [(1, 0), (2, 0), (1, 1)])
def test_a_moving_bar_moves_on_over_the_joins_of_the_demos_vae(toyworld, overlap, reanchor):
    import comfy.samplers
    import comfy.sd
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video.bridge import decode_frames
    from safetensors.torch import load_file

    preset = "wan21_i2v_14b"
    toy = comfy.sd.VAE(sd=load_file(toyworld / "toyworld_vae_fp16.safetensors"))
    moving = model("i2v").clone()
    moving.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bars", Bars(preset, toy, moving.model))
    memory, places = memory_of(preset, overlap_latents=overlap, reanchor_clips=reanchor), []
    for i in range(3):
        latent, memory, _ = sample(preset, memory, 2, model=moving, vae=toy, cfg=1.0, width=96, height=32,
                                   start_image=None if i else bars(torch.tensor([0])), clip_vision=None,
                                   sampler=comfy.samplers.sampler_object("euler"), sigmas=torch.tensor([1.0, 0.0]))
        with torch.inference_mode():
            frames = torch.cat(list(decode_frames(toy, latent["samples"], latent.get("context_samples"), 0, SILENT)))
        places += bar_numbers(frames)
    assert len(places) == 21
    assert max(abs(place - i) for i, place in enumerate(places)) < 0.5  # a lost or double frame is off by 1


@pytest.mark.parametrize("preset", FILMS)
def test_a_memory_is_a_value_in_the_graph_and_in_a_file(preset, tmp_path):
    """The same again, branches, a resumed film and one clip made again: all to the bit."""
    from pack.nodes.memory.files import load_memory, save_memory

    options = {"latents": 4, "vae": coder(preset)}
    memories, clips = [memory_of(preset, colour_hold=0.3)], []
    for i in range(3):
        latent, after, _ = sample(preset, memories[-1], start_image=None if i else picture(), **options)
        memories.append(after)
        clips.append(latent)
    again, after, _ = sample(preset, memories[1], **options)
    other, _, _ = sample(preset, memories[1], seed=4, **options)
    assert torch.equal(again["samples"], clips[1]["samples"]) and not torch.equal(other["samples"], again["samples"])
    assert torch.equal(again["context_samples"], clips[1]["context_samples"])
    for memory in (after, load_memory(save_memory(memories[2], tmp_path / "film.safetensors"))):
        resumed, last, _ = sample(preset, memory, **options)
        assert torch.equal(resumed["samples"], clips[2]["samples"])
        assert torch.equal(last.tail, memories[3].tail) and torch.equal(last.overlap, memories[3].overlap)
    first, _, _ = sample(preset, memories[0], start_image=picture(), **options)
    assert torch.equal(first["samples"], clips[0]["samples"]) and memories[0].anchor is None


@pytest.mark.parametrize(("preset", "dim"), [("wan22_ti2v_5b", 2), ("wan21_vace", 2), ("svd", 0)])
def test_noise_belongs_to_a_place_in_the_film(preset, dim):
    """What is sampled again draws what was drawn there before; what is new draws anew. SVD counts frames."""
    from comfy.patcher_extension import WrappersMP

    drawn, watched = [], model(FILMS[preset][0]).clone()

    def keep(executor, noise, *args, **kwargs):
        drawn.append(noise.clone())
        return executor(noise, *args, **kwargs)

    watched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "keep", keep)
    memory = memory_of(preset)
    for start in (picture(), None, None):
        _, memory, _ = sample(preset, memory, model=watched, start_image=start, vae=coder(preset))
    lead = int(preset == "wan21_vace")  # the reference draws its own
    clips = [noise.unbind(dim)[lead:] for noise in drawn]
    k = memory.spec.overlap_latents
    assert [len(clip) for clip in clips] == ([13, 17, 17] if preset == "svd" else [4, 4 + k, 4 + k])
    for earlier, later in pairwise(clips):
        assert all(torch.equal(a, b) for a, b in zip(earlier[-k:], later[:k], strict=True))
    new = [*clips[0], *clips[1][k:], *clips[2][k:]]
    assert len({float(each.sum()) for each in new}) == len(new)


def test_the_memory_that_goes_in_is_not_changed():
    preset = "wan22_svi_pro"
    _, memory, _ = sample(preset, memory_of(preset, colour_hold=0.5), start_image=picture(), vae=vae(""))
    held = {name: getattr(memory, name).clone() for name in ("tail", "overlap")}
    held |= {f"anchor.{name}": getattr(memory.anchor, name).clone() for name in ("latents", "frame", "mean", "std")}
    before = replace(memory)
    sample(preset, memory, vae=vae(""))
    assert all(getattr(memory, name) is getattr(before, name) for name in ("tail", "overlap", "anchor"))
    for name, value in held.items():
        owner, _, field = name.rpartition(".")
        assert torch.equal(getattr(memory.anchor if owner else memory, field), value), name


@pytest.mark.parametrize("preset", FILMS)
def test_it_lies_in_ram_and_is_small(preset):
    """Frames in bytes, latents in float32, no keys and values: 11.5 MB for TI2V-5B at 1280x704."""
    from pack.nodes.memory.files import file_bytes
    from pack.nodes.memory.state import caches

    memory = memory_of(preset)
    for start in (picture(), None):
        _, memory, _ = sample(preset, memory, start_image=start, vae=coder(preset))
    anchor = memory.anchor
    tensors = [memory.tail, memory.overlap, anchor.latents, anchor.frame, anchor.mean, anchor.std]
    assert {str(tensor.device) for tensor in tensors} == {"cpu"} and not caches(memory) and not memory.blocks
    frames, latents = 1 + len(memory.overlap), 1 + memory.tail.shape[1]
    assert memory.tail.shape[1] == 8
    grid = memory.geometry
    pixels = anchor.frame.shape[0] * anchor.frame.shape[1]
    assert pixels == grid.height * grid.width * FILMS[preset][2] ** 2
    assert file_bytes(memory) == 3 * frames * pixels + 4 * grid.channels * (latents * grid.height * grid.width + 2)


def test_another_prompt_another_lora_another_size():
    """Latent memory needs no cache of the model: other weights go on from the same frames; another size is refused."""
    preset = "wan21_i2v_14b"
    _, memory, _ = sample(preset, memory_of(preset), start_image=picture(), vae=vae(""))
    other = model("i2v").clone()
    other.add_patches({"diffusion_model.head.head.weight": ("diff", (torch.full((64, 128), 0.3),))}, 1.0)
    clip, after, _ = sample(preset, memory, model=other, vae=vae(""), positive=text(7))
    assert clip["samples"].shape[2] == 4 and after.shot == memory.shot + 1 and after.model_key != memory.model_key
    with pytest.raises(ValueError, match="belongs to a film of another size or model"):
        sample(preset, memory, vae=vae(""), height=64)
