"""In which form a checkpoint is given the place: Wan VACE through its own mask, Wan 2.2 TI2V through given latents.

Pure tensors. Layouts: latents [1, C, T, h, w] un-normalised; holes [T, h, w] bool; masks 0 = given, 1 = to be made.
The keys are those of ComfyUI's WanVaceToVideo and Wan22ImageToVideoLatent. VACE was trained on encoded pixels, not on
projected latents; no trained weights were run here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

VACE_MASK_CHANNELS = 64  # the 8x8 pixels of a latent pixel


@dataclass(frozen=True)
class Shown:
    """What a clip is shown of the place.

    latents: what is known, zeros in holes. holes: where nothing is known. gray: the encoding of a gray clip, or of
    nothing where the family needs none. start: [1, C, k, h, w], the clip's encoded first frames, or None. trust: 0..1,
    how much what is known holds. reference: [1, 2 C, 1, h, w], a hero's latent and that of nothing, or None; for VACE
    alone.
    """

    latents: torch.Tensor
    holes: torch.Tensor
    gray: torch.Tensor
    start: torch.Tensor | None
    trust: float
    reference: torch.Tensor | None = None

    def with_start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents, holes) with the first frames in their place, of which all is known."""
        latents, holes = self.latents.clone(), self.holes.clone()
        if self.start is not None:
            latents[:, :, : self.given], holes[: self.given] = self.start, False
        return latents, holes

    @property
    def given(self) -> int:
        """Latents at the beginning that are given whole."""
        return 0 if self.start is None else self.start.shape[2]


@dataclass(frozen=True)
class Keys:
    """appended: keys of both conditionings, lists. samples, noise_mask: as in a LATENT. lead: latents in front of the
    clip, to be cut off."""

    samples: torch.Tensor
    noise_mask: torch.Tensor | None = None
    appended: dict = field(default_factory=dict)
    lead: int = 0


def vace_keys(shown: Shown) -> Keys:
    """What is known is the inactive part, gray is to be made; trust is the strength of the branch."""
    latents, holes = shown.with_start()
    control = torch.cat((torch.where(holes, shown.gray, latents), shown.gray), 1)
    mask = holes.float()[None, None].repeat(1, VACE_MASK_CHANNELS, 1, 1, 1)
    lead = 0 if shown.reference is None else 1
    if lead:
        control = torch.cat((shown.reference, control), 2)
        mask = torch.cat((torch.zeros_like(mask[:, :, :lead]), mask), 2)
        latents = torch.cat((latents[:, :, :lead], latents), 2)
    return Keys(torch.zeros_like(latents), lead=lead,
                appended={"vace_frames": [control], "vace_mask": [mask], "vace_strength": [shown.trust]})


def ti2v_keys(shown: Shown) -> Keys:
    """What is known is given as the start of a film is; trust below 1 lets noise on it. First frames are given whole.

    The model sees one noise level per latent frame, the mean of its mask: a frame with holes is not quite given.
    """
    latents, holes = shown.with_start()
    mask = torch.where(holes, 1.0, 1.0 - shown.trust)[None, None]
    mask[:, :, : shown.given] = 0.0
    return Keys(torch.where(holes, shown.gray, latents), mask)


FAMILIES = {"vace": vace_keys, "ti2v": ti2v_keys}
