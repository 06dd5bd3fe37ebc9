"""In which form each family of ordinary checkpoints is given the frames that a clip begins with.

Pure tensors: the VAE is a callable. The keys are those of ComfyUI's own nodes (WanImageToVideo, WanVaceToVideo,
Wan22ImageToVideoLatent, HunyuanImageToVideo, HunyuanVideo15ImageToVideo), which the tests compare with; those of
SVI 2.0 Pro are its authors' (anchor latent, last latents, padding of normalised zeros, known only in slot 0).
Layouts: frames [n, H, W, 3] float 0..1; latents [1, C, N, h, w] un-normalised; masks 0 = given, 1 = to be made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..common.types import Geometry
from ..memory.latent_memory import latents_of, overlap_frames

VACE_STRIDE = 8


@dataclass(frozen=True)
class Given:
    """What a clip is made from.

    latents: N, of the whole sampled clip. frames: its first ones, or None. anchor_frame: [1, H, W, 3], the film's first
    one, or None. anchor_latent: [1, C, 1, h, w], its encoding, or None. motion: [1, C, m, h, w], the last latents of
    the clip before, or None. encode: frames -> latents. blank: the model's process_latent_out, which makes normalised
    zeros of zeros.
    """

    geometry: Geometry
    latents: int
    width: int
    height: int
    frames: torch.Tensor | None
    anchor_frame: torch.Tensor | None
    anchor_latent: torch.Tensor | None
    motion: torch.Tensor | None
    encode: Callable[[torch.Tensor], torch.Tensor]
    blank: Callable[[torch.Tensor], torch.Tensor]

    @property
    def known(self) -> int:
        return 0 if self.frames is None else latents_of(len(self.frames))

    def empty(self) -> torch.Tensor:
        return torch.zeros(1, self.geometry.channels, self.latents, self.geometry.height, self.geometry.width)

    def mask(self, known: int) -> torch.Tensor:
        mask = torch.ones(1, 1, self.latents, self.geometry.height, self.geometry.width)
        mask[:, :, :known] = 0.0
        return mask

    def padded(self) -> torch.Tensor:
        """The frames with gray behind them, as long as the clip."""
        gray = torch.full((overlap_frames(self.latents), self.height, self.width, 3), 0.5)
        if self.frames is not None:
            gray[: len(self.frames)] = self.frames
        return gray


@dataclass(frozen=True)
class Keys:
    """values, appended: keys of both conditionings (appended ones are lists). samples, noise_mask: as in a LATENT.
    lead: latents in front of the clip, to be cut off."""

    samples: torch.Tensor
    values: dict = field(default_factory=dict)
    appended: dict = field(default_factory=dict)
    noise_mask: torch.Tensor | None = None
    lead: int = 0


def _ti2v(given: Given) -> Keys:
    samples = given.empty()
    if given.frames is None:
        return Keys(samples)
    mask = given.mask(given.known)
    samples[:, :, : given.known] = given.encode(given.frames)
    return Keys(given.blank(samples) * mask + samples * (1.0 - mask), noise_mask=mask)


def _i2v(given: Given) -> Keys:
    return Keys(given.empty(), {"concat_latent_image": given.encode(given.padded()),
                                "concat_mask": given.mask(given.known)})


def _svi(given: Given) -> Keys:
    image = given.blank(given.empty())
    if given.motion is not None:
        known = torch.cat((given.anchor_latent, given.motion), 2)
    else:  # a scene begins: with its own picture, or with the film's first frame
        known = given.anchor_latent if given.frames is None else given.encode(given.frames[:1])
    image[:, :, : known.shape[2]] = known
    return Keys(given.empty(), {"concat_latent_image": image, "concat_mask": given.mask(1)})


def _frames(given: Given) -> Keys:
    return Keys(given.empty(), {"concat_latent_image": given.encode(given.frames),
                                "concat_mask": given.mask(given.known)})


def _hunyuan_v2(given: Given) -> Keys:
    samples = given.empty()
    samples[:, :, : given.known] = given.encode(given.frames)
    return Keys(samples, {"guiding_frame_index": 0}, noise_mask=given.mask(given.known))


def _hunyuan15(given: Given) -> Keys:
    image = given.empty()
    image[:, :, : given.known] = given.encode(given.frames)
    return Keys(given.empty(), {"concat_latent_image": image, "concat_mask": given.mask(given.known)})


def _vace(given: Given) -> Keys:
    video = given.padded() - 0.5
    frame_mask = torch.ones(len(video), given.height, given.width, 1)
    frame_mask[: 0 if given.frames is None else len(given.frames)] = 0.0
    control = torch.cat([given.encode(video * part + 0.5) for part in (1 - frame_mask, frame_mask)], 1)
    mask = _vace_mask(frame_mask, given)
    lead = 0
    if given.anchor_frame is not None:
        reference = given.encode(given.anchor_frame)
        lead = reference.shape[2]
        reference = torch.cat((reference, given.blank(torch.zeros_like(reference))), 1)
        control = torch.cat((reference, control), 2)
        mask = torch.cat((torch.zeros_like(mask[:, :, :lead]), mask), 2)
    samples = given.empty()
    samples = torch.cat((torch.zeros_like(samples[:, :, :lead]), samples), 2)
    return Keys(samples, appended={"vace_frames": [control], "vace_mask": [mask], "vace_strength": [1.0]}, lead=lead)


def _vace_mask(mask: torch.Tensor, given: Given) -> torch.Tensor:
    """Pixel masks [n, H, W, 1] -> [1, 64, N, h, w]: the 8x8 pixels of a latent pixel become channels."""
    rows, columns = given.height // VACE_STRIDE, given.width // VACE_STRIDE
    mask = mask.view(len(mask), rows, VACE_STRIDE, columns, VACE_STRIDE).permute(2, 4, 0, 1, 3)
    mask = mask.reshape(1, VACE_STRIDE * VACE_STRIDE, -1, rows, columns)
    return torch.nn.functional.interpolate(mask, size=(given.latents, rows, columns), mode="nearest-exact")


FAMILIES: dict[str, Callable[[Given], Keys]] = {
    "ti2v": _ti2v, "i2v": _i2v, "svi": _svi, "vace": _vace, "frames": _frames, "hunyuan_v2": _hunyuan_v2,
    "hunyuan15": _hunyuan15,
}
