"""The six still backgrounds, in muted colours: only the hero is saturated, which is how the classifier finds it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from shapes import box_distance, coverage, paint, pixel_grid, rgb, triangle_distance
from torch import Tensor
from world import HEIGHT, SCENES, WIDTH

Uniform = Callable[[int], Tensor]  # number -> that random number of every image, [n, 1, 1]
TURN = 6.28


def horizon(uniform: Tensor) -> Tensor:
    """The height of the horizon in pixels from the first random number of a clip."""
    return 46 + 6 * uniform


def backgrounds(scene: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one background per clip: scene [n] long, uniforms [n, numbers] -> [n, 3, HEIGHT, WIDTH] in 0..1."""
    image = torch.zeros(scene.shape[0], 3, HEIGHT, WIDTH, device=scene.device)
    for index in scene.unique().tolist():
        chosen = scene == index
        image[chosen] = _draw(SCENES[index], uniforms[chosen])
    return image


def _draw(name: str, uniforms: Tensor) -> Tensor:
    count = uniforms.shape[0]
    x, y = (axis.expand(count, HEIGHT, WIDTH) for axis in pixel_grid(WIDTH, HEIGHT, uniforms.device))
    sky, draw = _SCENES[name]

    def uniform(number: int) -> Tensor:
        return uniforms[:, number].view(-1, 1, 1)

    image = rgb(*sky).to(uniforms.device).view(1, 3, 1, 1).expand(count, 3, HEIGHT, WIDTH).clone()
    image = image * (0.90 + 0.10 * (y / HEIGHT)).unsqueeze(1)
    return draw(image, x, y, horizon(uniform(0)), uniform)


def _forest(image: Tensor, x: Tensor, y: Tensor, ground: Tensor, uniform: Uniform) -> Tensor:
    for tree in range(4):
        left = 16 + 32 * tree + 16 * (uniform(1 + tree) - 0.5)
        radius = 11 + 5 * uniform(5 + tree)
        image = paint(image, rgb(92, 80, 70), coverage(box_distance(x - left, y - (ground - 6), 2.5, 12.0)))
        image = paint(image, rgb(88, 112, 92), coverage(torch.hypot(x - left, y - (ground - 20)) - radius))
    return paint(image, rgb(112, 124, 104), coverage(ground - y))


def _desert(image: Tensor, x: Tensor, y: Tensor, ground: Tensor, uniform: Uniform) -> Tensor:
    image = paint(image, rgb(240, 232, 210), coverage(torch.hypot(x - 20 - 88 * uniform(1), y - 16) - 8))
    dunes = ground - 8 - 6 * torch.sin(x / 22 + TURN * uniform(2))
    image = paint(image, rgb(206, 188, 158), coverage(dunes - y))
    image = paint(image, rgb(190, 168, 136), coverage(ground - y))
    for cactus in range(2):
        left = 20 + 64 * cactus + 24 * uniform(3 + cactus)
        # trunk, arm, forearm: pixels left of the trunk, pixels above the ground, half width, half height
        for across, above, half_width, half_height in ((0, 8, 1.5, 10.0), (5, 10, 5.0, 0.5), (10, 13, 0.5, 3.0)):
            distance = box_distance(x - left - across, y - (ground - above), half_width, half_height)
            image = paint(image, rgb(112, 128, 108), coverage(distance - 1))
    return image


def _sea(image: Tensor, x: Tensor, y: Tensor, ground: Tensor, uniform: Uniform) -> Tensor:
    image = paint(image, rgb(110, 134, 150), coverage(ground - 14 - y))
    boat = 20 + 88 * uniform(1)
    image = paint(image, rgb(226, 226, 224), coverage(triangle_distance(x - boat, y - (ground - 24), 7.0)))
    image = paint(image, rgb(96, 86, 84), coverage(box_distance(x - boat, y - (ground - 16), 9.0, 2.0)))
    beach = ground + 2 + 2 * torch.sin(x / 14 + TURN * uniform(2))
    return paint(image, rgb(198, 186, 162), coverage(beach - y))


def _city(image: Tensor, x: Tensor, y: Tensor, ground: Tensor, uniform: Uniform) -> Tensor:
    image = paint(image, rgb(216, 216, 206), coverage(torch.hypot(x - 14 - 100 * uniform(1), y - 10) - 5))
    for building in range(5):
        left = 12.8 + 25.6 * building
        height = 20 + 22 * uniform(2 + building)
        top = ground - height
        wall = box_distance(x - left, y - (ground - height / 2), 11.0, height / 2)
        image = paint(image, rgb(70, 72, 84), coverage(wall))
        window_x = ((x - left + 8) % 8 - 4).abs() - 1.6
        window_y = ((y - top) % 9 - 5).abs() - 2.0
        window = coverage(torch.maximum(window_x, window_y)) * coverage((x - left).abs() - 8.5)
        image = paint(image, rgb(190, 182, 150), window * (y > top + 2) * (y < ground - 1))
    return paint(image, rgb(52, 52, 60), coverage(ground - y))


def _snow(image: Tensor, x: Tensor, y: Tensor, ground: Tensor, uniform: Uniform) -> Tensor:
    hills = ground - 12 - 8 * torch.sin(x / 26 + TURN * uniform(1))
    image = paint(image, rgb(214, 220, 228), coverage(hills - y))
    for pine in range(3):
        left = 18 + 44 * pine + 18 * (uniform(2 + pine) - 0.5)
        for above, half_side in ((10, 11.0), (20, 8.0)):
            branches = triangle_distance(x - left, y - (ground - above), half_side)
            image = paint(image, rgb(104, 116, 118), coverage(branches))
    return paint(image, rgb(236, 238, 242), coverage(ground - y))


def _cave(image: Tensor, x: Tensor, y: Tensor, ground: Tensor, uniform: Uniform) -> Tensor:
    for stalactite in range(6):
        left = 10 + 21.6 * stalactite + 10 * (uniform(1 + stalactite) - 0.5)
        length = 10 + 16 * uniform(7 + stalactite)
        cone = ((x - left).abs() - 7 * (1 - y / (length + 8))) * 0.8
        image = paint(image, rgb(104, 98, 94), coverage(cone))
    image = paint(image, rgb(104, 98, 94), coverage(y - 7))
    floor = ground + 2 * torch.sin(x / 9 + TURN * uniform(13))
    return paint(image, rgb(128, 118, 108), coverage(floor - y))


_SCENES = {  # name -> colour of the sky, what is drawn over it
    "forest": ((168, 180, 172), _forest),
    "desert": ((214, 202, 182), _desert),
    "sea": ((184, 198, 208), _sea),
    "city": ((34, 36, 50), _city),
    "snow": ((196, 204, 216), _snow),
    "cave": ((70, 64, 62), _cave),
}
