"""Films whose frames can be counted: a MODEL that goes on counting from the frames it was given.

Frame i of such a film is one gray of 10 + 2i (of 255). The MODEL is one of ComfyUI's own with an APPLY_MODEL wrapper:
it reads the frames out of what the model is given beside the noise (concatenated latents, masks, VACE frames, or clean
latents in the noise), and denoises to the same latents followed by the numbers that come next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .latent_models import FILMS, HEIGHT, PAIRS, WIDTH, blocks_vae, clip_vision, model, text

FIRST_GRAY, GRAY_STEP = 10, 2


def gray(numbers: torch.Tensor) -> torch.Tensor:
    return (FIRST_GRAY + GRAY_STEP * numbers.float()) / 255


def numbers_of(frames: torch.Tensor) -> list[int]:
    """The numbers of frames [n, H, W, 3] 0..1; an error where a frame is none."""
    flat = frames.float().flatten(1)
    exact = (flat.mean(1) * 255 - FIRST_GRAY) / GRAY_STEP
    assert (flat.amax(1) - flat.amin(1)).max() < 0.5 / 255, "a frame is not of one gray"
    assert (exact - exact.round()).abs().max() < 0.3, "a frame lies between two numbers"
    return exact.round().int().tolist()


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> torch.Tensor:
    return gray(torch.tensor([number]))[:, None, None, None].expand(1, height, width, 3).clone()


def given_latents(preset: str, x: torch.Tensor, c_concat: torch.Tensor | None, kwargs: dict, inner) -> tuple:
    """(the normalised latents that the model is given from slot 0 on, [B, C, k, h, w]; how many are a reference)."""
    kind = FILMS[preset][0]
    if kind == "vace":  # shown, to be made, mask (which marks a latent by one of its four frames: not exact)
        context = kwargs["vace_context"][:, 0]
        lead = int(context[0, 16:32, 0].abs().max() < 1e-4)
        shown = inner.process_latent_out(context[:, :16])  # gray is 0
        return context[:, :16, : int((shown[0].abs().amax((0, 2, 3)) > 1e-3).sum())], lead
    if preset == "wan22_svi_pro":  # the mask says slot 0 alone; behind the known ones are normalised zeros
        known = int((c_concat[0, 4:].abs().amax((0, 2, 3)) > 1e-4).sum())
        return c_concat[:, 4:, :known], 0
    if kind in ("i2v", "i2v22"):
        return c_concat[:, 4:, : int(c_concat[0, 0, :, 0, 0].sum())], 0
    if kind in ("hunyuan_v1", "hunyuan15"):
        return c_concat[:, :-1, : int(c_concat[0, -1, :, 0, 0].sum())], 0
    if kind == "hunyuan_v2":
        return x[:, :, : int("guiding_frame_index" in kwargs)], 0
    mask = kwargs.get("denoise_mask")
    return x[:, :, : 0 if mask is None else int((mask[0, 0, :, 0, 0] == 0).sum())], 0


class Counter:
    """The APPLY_MODEL wrapper. seen: the numbers that the model was given in each call, a reference's first."""

    def __init__(self, preset: str, vae, inner) -> None:
        self.preset, self.vae, self.inner = preset, vae.first_stage_model, inner
        self.seen: list[list[int]] = []

    def __call__(self, executor: Callable, x: torch.Tensor, t: torch.Tensor, c_concat=None, *args, **kwargs):
        if self.preset == "svd":
            given, shown = None, [[], numbers_of((self.vae.decode(c_concat[:1]).movedim(1, -1) + 1) / 2)]
        else:
            given, lead = given_latents(self.preset, x, c_concat, kwargs, self.inner)
            shown = [self._numbers(part) for part in (given[:, :, :lead], given[:, :, lead:])]
        if not self.seen or shown[0] + shown[1] != self.seen[-1]:
            executor(x, t, c_concat, *args, **kwargs)  # once a clip: the real model takes all of it
        self.seen.append(shown[0] + shown[1])
        if self.preset == "svd":
            return self._latents(shown[1][0], len(x))
        count = x.shape[2] - given.shape[2]
        # slot 0 of what is made holds the last given frame, and is cut off; where nothing is given it is the film's
        made = self._latents(shown[1][-1], 4 * count + 1)[:, :, 1:] if shown[1] else self._latents(0, 4 * count - 3)
        return torch.cat((given, made.expand(len(x), *made.shape[1:])), 2)

    def _numbers(self, latents: torch.Tensor) -> list[int]:
        if not latents.shape[2]:
            return []
        return numbers_of((self.vae.decode(self.inner.process_latent_out(latents))[0].movedim(0, -1) + 1) / 2)

    def _latents(self, first: int, count: int) -> torch.Tensor:
        """Normalised, of frames that count on from first."""
        pixels = (gray(torch.arange(first, first + count)) * 2 - 1)[:, None, None, None].expand(-1, 3, HEIGHT, WIDTH)
        pixels = pixels if self.preset == "svd" else pixels.movedim(1, 0)[None]
        return self.inner.process_latent_in(self.vae.encode(pixels))


class Studio:
    """Everything that a counted film of this preset is made with."""

    def __init__(self, preset: str) -> None:
        from comfy.patcher_extension import WrappersMP

        self.preset, self.vae = preset, blocks_vae(preset)
        self.model = model(FILMS[preset][0]).clone()
        self.counter = Counter(preset, self.vae, self.model.model)
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "counter", self.counter)

    def clip(self, memory, latents: int = 4, start_image=None, **options):
        """(LATENT, memory after, report) of a clip of so many latents."""
        import comfy.samplers

        return sample(self.preset, memory, latents, start_image=start_image, model=self.model, **{
            "sampler": comfy.samplers.sampler_object("euler"), "cfg": 1.0, "vae": self.vae} | options)

    def film(self, memory, clips: int = 3, **first) -> tuple[list[list[int]], object]:
        """(the numbers of every clip's frames, the memory after them)."""
        shown = []
        for i in range(clips):
            latent, memory, _ = self.clip(memory, **({} if i else {"start_image": numbered(0), **first}))
            shown.append(numbers_of(self.frames(latent)))
        return shown, memory

    def frames(self, latent: dict) -> torch.Tensor:
        """The frames that Save Clip decodes."""
        from pack.nodes.common.progress import SILENT
        from pack.nodes.video.bridge import decode_frames

        with torch.inference_mode():
            return torch.cat(list(decode_frames(self.vae, latent["samples"], latent.get("context_samples"), 0, SILENT)))


def memory_of(preset: str, **options):
    from pack.nodes.memory.state import empty_memory
    from pack.nodes.sampling.presets import memory_spec

    return empty_memory(memory_spec(preset, **{"colour_hold": 0.0, **options}))


def sample(preset: str, memory, latents: int = 4, **options):
    """What Clip Sampler returns; whatever the preset needs, but for a start image and the VAE, is there by itself."""
    from pack.nodes.sampling.nodes import ClipSampler

    kind = FILMS[preset][0]
    options = {"sigmas": torch.tensor([1.0, 0.95, 0.7, 0.4, 0.0]), "model": model(kind), "negative": text(2),
               "seed": 3, "positive": text(1), "width": WIDTH, "height": HEIGHT,
               "clip_vision": clip_vision({"svd": 1024, "hunyuan15": 1152}.get(kind, 1280))} | options
    if preset in PAIRS:
        options.setdefault("model_low_noise", options["model"])
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(memory=memory, clip_seconds=latents * 4 / memory.spec.fps, **options).args
