"""Specs to frames: where the hero is in every frame, and the picture of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scenes import backgrounds, horizon
from shapes import body_distance, box_distance, coverage, paint, pixel_grid, rgb
from torch import Tensor
from world import (
    EMPTY,
    HEIGHT,
    JUMP,
    PALETTE,
    RUN_AWAY,
    SCENES,
    SPIN,
    WALK_LEFT,
    WALK_RIGHT,
    WAVE,
    WIDTH,
    Specs,
    chunk_of_frame,
)

OUTLINE = rgb(28, 28, 34)
EYE_WHITE = rgb(250, 250, 250)
WAVE_CREST = rgb(150, 168, 180)
HAT_HEIGHT = torch.tensor([-13.5, -12.5, -12.5, -13.5])  # of the brim above the body's centre, per shape
NO_ARM = -9.0  # arm angle of a hero that does not wave


@dataclass(frozen=True)
class HeroState:
    """The hero in every frame of n videos; every field is [n, frames] on one device."""

    x: Tensor  # pixels from the left
    y: Tensor  # the feet, pixels from the top
    angle: Tensor  # radians
    arm: Tensor  # radians, NO_ARM when not waving
    leg: Tensor  # -1..1, swing
    direction: Tensor  # -1 left, 1 right, 0 standing
    visible: Tensor  # bool: the clip is not EMPTY
    clip: Tensor  # long: clip index
    age: Tensor  # frames since the clip began
    scene: Tensor  # long: index into SCENES

    def parts(self) -> dict[str, Tensor]:
        """The fields that move the hero's drawing, by name."""
        return {name: getattr(self, name) for name in ("x", "y", "angle", "arm", "leg", "direction")}


def hero_state(specs: Specs, device: torch.device | str = "cpu") -> HeroState:
    """Where the hero is and what it does in every frame."""
    chunks = specs.clip.shape[1]
    clip = specs.clip[:, chunk_of_frame(chunks)]  # [n, frames]
    age = np.arange(clip.shape[1])[None] - _first_frame_of_clip(clip, chunks)
    action = np.take_along_axis(specs.action, clip, 1)
    uniforms = np.take_along_axis(specs.uniforms, clip[:, :, None], 1)  # [n, frames, numbers]
    fleeing = np.where(uniforms[..., 20] < 0.5, -1.0, 1.0)
    direction = np.where(action == WALK_LEFT, -1.0, np.where(action == WALK_RIGHT, 1.0, fleeing))
    walks = (action == WALK_LEFT) | (action == WALK_RIGHT)
    speed = np.where(walks, 2.2 + 0.5 * uniforms[..., 21], np.where(action == RUN_AWAY, 6.0, 0.0))  # pixels per frame
    walk_start = 64 - direction * (26 + 10 * uniforms[..., 22])  # walks cross the middle of the picture
    x = np.where(walks, walk_start, 40 + 48 * uniforms[..., 22]) + direction * speed * age
    jump = np.where(action == JUMP, 18 * np.abs(np.sin(np.pi * age / 8.0)), 0.0)
    bob = np.where(speed > 0, 1.5 * np.abs(np.sin(np.pi * age / 4.0)), 0.0)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32, device=device)

    return HeroState(
        x=tensor(x),
        y=tensor(66 + 4 * uniforms[..., 23] - jump - bob),
        angle=tensor(np.where(action == SPIN, 2 * np.pi * age / 24.0, 0.0)),
        arm=tensor(np.where(action == WAVE, 0.55 * np.sin(2 * np.pi * age / 8.0), NO_ARM)),
        leg=tensor(np.where(speed > 0, np.sin(2 * np.pi * age / 8.0), 0.0)),
        direction=tensor(np.where(speed > 0, direction, 0.0)),
        visible=torch.as_tensor(action != EMPTY, device=device),
        clip=torch.as_tensor(clip, device=device),
        age=tensor(age),
        scene=torch.as_tensor(np.take_along_axis(specs.scene, clip, 1), device=device),
    )


def _first_frame_of_clip(clip: np.ndarray, clips: int) -> np.ndarray:
    start = np.stack([(clip == index).argmax(1) for index in range(clips)], 1)
    return np.take_along_axis(start, clip, 1)


def render(specs: Specs, device: torch.device | str = "cpu", hero: bool = True) -> Tensor:
    """Draw n videos -> [n, frames, 3, HEIGHT, WIDTH] float32 in 0..1; `hero=False` draws the scenes alone."""
    videos, chunks = specs.clip.shape
    state = hero_state(specs, device)
    scene = torch.as_tensor(specs.scene, device=device).flatten()
    uniforms = torch.as_tensor(specs.uniforms, device=device).flatten(0, 1)
    still = backgrounds(scene, uniforms).view(videos, chunks, 3, HEIGHT, WIDTH)
    image = still[torch.arange(videos, device=device)[:, None], state.clip].flatten(0, 1)  # [n*frames, 3, H, W]
    _move_water(image, specs, state)
    if hero:
        _draw_hero(image, specs, state)
    return image.view(videos, -1, 3, HEIGHT, WIDTH).clamp(0, 1)


def hero_on_screen(specs: Specs) -> np.ndarray:
    """In which frames the whole hero can be seen, [n, frames] bool."""
    state = hero_state(specs)
    return (state.visible & (state.x > 14) & (state.x < WIDTH - 14)).numpy()


def to_uint8(video: Tensor) -> Tensor:
    """Frames in 0..1 -> uint8, same layout."""
    return (video.clamp(0, 1) * 255).round().to(torch.uint8)


def _move_water(image: Tensor, specs: Specs, state: HeroState) -> None:
    """Draw two pale crests drifting over the sea, in place; image [n*frames, 3, H, W]."""
    chosen = state.scene.flatten() == SCENES.index("sea")
    if not chosen.any():
        return
    x, y = pixel_grid(WIDTH, HEIGHT, image.device)
    age = state.age.flatten()[chosen].view(-1, 1, 1)
    uniform = np.take_along_axis(specs.uniforms[..., 0], state.clip.cpu().numpy(), 1)
    ground = horizon(torch.as_tensor(uniform, device=image.device)).flatten()[chosen].view(-1, 1, 1)
    water = image[chosen]
    for crest in range(2):
        height = ground - 8 + 6 * crest + 1.5 * torch.sin(x / 10 + age * 0.4 + 2 * crest)
        water = paint(water, WAVE_CREST, coverage((y - height).abs() - 0.8) * (y < ground - 1))
    image[chosen] = water


def _draw_hero(image: Tensor, specs: Specs, state: HeroState) -> None:
    """Draw the hero into every frame that shows some of it, in place; image [n*frames, 3, H, W]."""
    device, frames = image.device, state.x.shape[1]
    near = (state.x.flatten() > -30) & (state.x.flatten() < WIDTH + 30)
    index = torch.nonzero(state.visible.flatten() & near)[:, 0]
    video = index // frames
    part = {name: values.flatten()[index].view(-1, 1, 1) for name, values in state.parts().items()}
    shape, body, hat = (torch.as_tensor(value, device=device)[video] for value in (specs.shape, specs.body, specs.hat))
    palette = PALETTE.to(device)

    x, y = pixel_grid(WIDTH, HEIGHT, device)
    x, y = x - part["x"], y - (part["y"] - 18.0)
    cos, sin = torch.cos(part["angle"]), torch.sin(part["angle"])
    x, y = cos * x + sin * y, -sin * x + cos * y  # the hero's own axes

    drawn = image[index]
    for side in (-1, 1):
        leg = box_distance(x - 5 * side - 3 * side * part["leg"], y - 15, 1.2, 3.5)
        drawn = paint(drawn, OUTLINE, coverage(leg - 0.5))
    drawn = _draw_arm(drawn, x, y, part["arm"])
    distance = body_distance(shape, x, y)
    drawn = paint(drawn, OUTLINE, coverage(distance - 1.6))
    drawn = paint(drawn, palette[body], coverage(distance))
    drawn = _draw_eyes(drawn, x, y, part["direction"])
    image[index] = _draw_hat(drawn, x, y, HAT_HEIGHT.to(device)[shape].view(-1, 1, 1), palette[hat])


def _draw_arm(image: Tensor, x: Tensor, y: Tensor, arm: Tensor) -> Tensor:
    raised = (arm > -5).float()
    x, y = x - 12, y - 1
    cos, sin = torch.cos(arm - 0.9), torch.sin(arm - 0.9)
    along = (x * cos + y * sin).clamp(0, 12)
    image = paint(image, OUTLINE, coverage(torch.hypot(x - along * cos, y - along * sin) - 1.6) * raised)
    return paint(image, OUTLINE, coverage(torch.hypot(x - 13 * cos, y - 13 * sin) - 3.0) * raised)


def _draw_eyes(image: Tensor, x: Tensor, y: Tensor, direction: Tensor) -> Tensor:
    look = 1.5 * direction
    for side in (-1, 1):
        image = paint(image, EYE_WHITE, coverage(torch.hypot(x - 4.2 * side - look, y - 0.5) - 3.0))
        image = paint(image, OUTLINE, coverage(torch.hypot(x - 4.2 * side - 1.8 * look, y - 0.5) - 1.5))
    return image


def _draw_hat(image: Tensor, x: Tensor, y: Tensor, height: Tensor, color: Tensor) -> Tensor:
    brim, crown = box_distance(x, y - height, 10.0, 1.6), box_distance(x, y - height + 6.0, 6.5, 5.0)
    distance = torch.minimum(brim, crown)
    image = paint(image, OUTLINE, coverage(distance - 1.4))
    return paint(image, color, coverage(distance))
