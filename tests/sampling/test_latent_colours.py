"""Colours held to the first clip: off is off, what was given keeps its bits, drift falls and no join shows a step.

The drift is made by an APPLY_MODEL wrapper around one of ComfyUI's models: a clip goes on from the last frame that it
is given, and every frame is tinted a little more. Distances are those of mean CIE Lab colours (1976, D65).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from .counting_films import memory_of, sample
from .latent_models import HEIGHT, WIDTH, blocks_vae, model, picture, vae

pytestmark = pytest.mark.comfy

PRESET = "wan21_i2v_14b"
CLIPS = 8
TINT = torch.tensor([0.002, 0.0, -0.0015])  # of sRGB, per frame
TO_XYZ = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]], dtype=torch.float64)  # sRGB primaries, IEC 61966-2-1
WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)


def mean_lab(frames: torch.Tensor) -> torch.Tensor:
    """[n, 3] of frames [n, H, W, 3] sRGB 0..1."""
    rgb = frames.double().clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    f = torch.where(xyz > 216 / 24389, xyz ** (1 / 3), (24389 / 27 * xyz + 16) / 116)
    lab = torch.stack((116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])), -1)
    return lab.mean((1, 2))


class Drift:
    def __init__(self, coder, inner, tint: torch.Tensor) -> None:
        self.vae, self.inner, self.tint = coder.first_stage_model, inner, tint

    def __call__(self, executor, x, t, c_concat=None, *args, **kwargs):
        given = c_concat[:1, 4:, : int(c_concat[0, 0, :, 0, 0].sum())]
        last = self.vae.decode(self.inner.process_latent_out(given))[0, :, -1:]  # [3, 1, H, W] in -1..1
        count = 4 * (x.shape[2] - given.shape[2])
        tinted = last + 2 * self.tint[:, None, None, None] * torch.arange(count + 1)[None, :, None, None]
        made = self.inner.process_latent_in(self.vae.encode(tinted.clamp(-1, 1)[None]))
        return torch.cat((given, made[:, :, 1:]), 2).expand(len(x), -1, -1, -1, -1)


def film(coder, start: torch.Tensor, hold: float, latents: int, tint: torch.Tensor) -> list[torch.Tensor]:
    """The mean Lab colours [n, 3] of the frames of every clip, as Save Clip decodes them."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.common.progress import SILENT
    from pack.nodes.video.bridge import decode_frames

    drifting = model("i2v").clone()
    drifting.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "drift", Drift(coder, drifting.model, tint))
    memory, clips = memory_of(PRESET, colour_hold=hold), []
    for i in range(CLIPS):
        latent, memory, _ = sample(PRESET, memory, latents, model=drifting, vae=coder, cfg=1.0, clip_vision=None,
                                   width=start.shape[2], height=start.shape[1], start_image=None if i else start,
                                   sampler=comfy.samplers.sampler_object("euler"), sigmas=torch.tensor([1.0, 0.0]))
        with torch.inference_mode():
            clips.append(mean_lab(torch.cat(list(decode_frames(coder, latent["samples"], latent.get("context_samples"),
                                                               0, SILENT)))))
    return clips


def drifts(clips: list[torch.Tensor]) -> list[float]:
    """How far the mean colour of every clip is from the film's first frame."""
    return [float((clip.mean(0) - clips[0][0]).norm()) for clip in clips]


def steps(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(from the last frame of a clip to the first of the next, [7]; from frame to frame inside clips)"""
    joins = torch.stack([later[0] - earlier[-1] for earlier, later in pairwise(clips)])
    return joins.norm(dim=1), torch.cat([(clip[1:] - clip[:-1]).norm(dim=1) for clip in clips])


def test_the_drift_of_eight_clips_is_held_without_a_step():
    """Exact VAE, clips of 9 latents: per frame the tint moves 0.3 of Lab, free it is 84 away in the end."""
    blocks = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.3
    start = torch.nn.functional.interpolate(blocks, scale_factor=8).movedim(1, -1)
    films = {hold: film(blocks_vae(PRESET), start, hold, 9, TINT) for hold in (0.0, 0.3, 1.0)}
    end = {hold: drifts(clips)[-1] for hold, clips in films.items()}
    assert end[0.3] < 0.6 * end[0.0] and end[1.0] < 0.25 * end[0.0] and end[0.0] > 50
    natural = steps(films[0.0])[1].max()
    for hold, clips in films.items():  # what the tint moves from frame to frame, and the rounding of frames to 8 bits
        assert steps(clips)[0].max() < 2 * natural, hold
    assert steps(films[0.3])[1].max() < 4 * natural  # spread over the clip's latents
    assert torch.equal(films[0.0][0], films[0.3][0])  # the first clip is what later ones are held to


def test_gentle_takes_drift_back_through_the_demos_vae(toyworld):
    """A trained VAE, whose channels are no colours: less comes back, and joins are no worse than without."""
    import comfy.sd
    from comfy.latent_formats import Wan21
    from safetensors.torch import load_file

    toy = comfy.sd.VAE(sd=load_file(toyworld / "toyworld_vae_fp16.safetensors"))
    latents = Wan21().process_out(load_file(toyworld / "reference_rollout.safetensors")["latents_euler8"][None, :, :1])
    with torch.inference_mode():
        start = toy.decode(latents)[0][:1, :32, :48].clone()
    free, held = (film(toy, start, hold, 3, 3 * TINT) for hold in (0.0, 0.3))
    assert drifts(held)[-1] < 0.93 * drifts(free)[-1]
    assert steps(held)[0].max() <= steps(free)[0].max()


@pytest.mark.parametrize("options", [{}, {"reanchor_clips": 1}, {"overlap_latents": 3}, {"cut": True}])
def test_what_was_given_keeps_its_bits_and_off_is_off(options):
    cut = {"scene_cut": True} if options.pop("cut", False) else {}
    _, memory, report = sample(PRESET, memory_of(PRESET, **options), start_image=picture(), vae=vae(""))
    free, after_free, free_report = sample(PRESET, memory, vae=vae(""), **cut)
    gentle = replace(memory, spec=replace(memory.spec, colour_hold=0.3))
    held, after_held, held_report = sample(PRESET, gentle, vae=vae(""), **cut)
    assert torch.equal(free["context_samples"], held["context_samples"])
    assert torch.equal(free["samples"][:, :, 0], held["samples"][:, :, 0])
    assert torch.equal(after_free.tail[:, :5], after_held.tail[:, :5])  # the first clip's 4, and the join's
    change = (free["samples"] - held["samples"]).abs().amax((0, 1, 3, 4))
    assert (change[1:] > 0).all() and change[1] < change[-1]
    assert not torch.equal(after_free.overlap, after_held.overlap)
    assert "Colours free." in free_report and "by 0.3" in held_report and "Colours" not in report


def test_off_gives_what_the_sampler_gave(monkeypatch):
    """The very tensor, not one that went to the model's scale and back."""
    from pack.nodes.sampling import bridge_latent

    given = []

    def kept(*args):
        given.append(sample_parts(*args))
        return given[-1]

    sample_parts = bridge_latent.sample_parts
    monkeypatch.setattr(bridge_latent, "sample_parts", kept)
    _, memory, _ = sample(PRESET, memory_of(PRESET), start_image=picture(), vae=vae(""))
    clip, _, _ = sample(PRESET, memory, vae=vae(""))
    assert torch.equal(clip["samples"], given[1][:, :, 1:]) and torch.equal(clip["context_samples"], given[1][:, :, :1])
