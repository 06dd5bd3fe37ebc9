"""In-between frames against what was filmed: RIFE, linear blending and OpenCV's DIS flow on held-out middle frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from video_setup import read_media

Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""method(first [H, W, 3] uint8, second) -> the frame in the middle, [H, W, 3] float in 0..1."""

STILL_LEVELS = 1.0  # mean change of a triplet, in 8-bit levels, below which there is nothing to interpolate
GAPS = (1, 2)


def quality_rows(media: list[Path], triplets: int, rife46: Path | None) -> list[dict]:
    """One row per method, video and gap: means over the same triplets for all methods."""
    from pack.nodes.compare.quality import psnr_db, ssim

    methods, rows = methods_for(rife46), []
    for path in media:
        for gap in GAPS:
            held_out = triplets_of(path, gap, triplets)
            scores: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
            for first, middle, last in held_out:
                wanted = middle.double() / 255
                for name, method in methods.items():
                    made = method(first, last).double()
                    scores[name].append((psnr_db((made - wanted).square().mean().item()), ssim(made, wanted)))
            rows += [{"method": name, "media": path.name, "gap": gap, "triplets": len(found),
                      "psnr_db": sum(psnr for psnr, _ in found) / len(found),
                      "ssim": sum(similar for _, similar in found) / len(found)}
                     for name, found in scores.items() if found]
    return rows


def triplets_of(path: Path, gap: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The first `count` triplets at a fixed stride that move and hold no cut."""
    from pack.nodes.interpolation.seams import is_hard_cut

    frames = read_media(path, 400)
    stride, found = max(1, (len(frames) - 2 * gap) // (2 * count)), []
    for start in range(0, len(frames) - 2 * gap, stride):
        triplet = tuple(frames[start + gap * n] for n in range(3))
        moves = all((a.float() - b.float()).abs().mean() > STILL_LEVELS
                    for a, b in ((triplet[0], triplet[1]), (triplet[1], triplet[2])))
        if moves and not is_hard_cut(triplet[0], triplet[1]) and not is_hard_cut(triplet[1], triplet[2]):
            found.append(triplet)
        if len(found) == count:
            break
    return found


def methods_for(rife46: Path | None) -> dict[str, Method]:
    from pack.nodes.interpolation.weights import BUNDLED, DATA

    methods = {"linear blend": lambda first, second: (first.float() + second.float()) / 510}
    try:
        methods["OpenCV DIS medium"] = dis_method()
    except ImportError:
        print("cv2 cannot be imported: no optical flow in the table")
    if rife46:
        methods["RIFE 4.6"] = rife_method(rife46)
    methods["RIFE 4.26"] = rife_method(DATA / BUNDLED)
    return methods


def rife_method(path: Path) -> Method:
    from pack.nodes.interpolation.between import Between, FrameMaker
    from pack.nodes.interpolation.weights import load_rife

    device = "cuda" if torch.cuda.is_available() else "cpu"
    maker = FrameMaker(load_rife(path).to(device))
    return lambda first, second: maker.make([Between(first, second, 0.5)])[0].cpu()


def dis_method() -> Method:
    """Both frames pulled half the way along DIS flow, in both directions, and averaged."""
    import cv2
    from pack.nodes.interpolation.rife import warp

    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def make(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        grey = [cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        there, back = (torch.from_numpy(flow.calc(a, b, None)).permute(2, 0, 1)[None]
                       for a, b in (grey, reversed(grey)))
        images = [frame.permute(2, 0, 1)[None].float() / 255 for frame in (first, second)]
        halves = warp(images[0], -there / 2), warp(images[1], -back / 2)
        return ((halves[0] + halves[1]) / 2)[0].permute(1, 2, 0)

    return make
