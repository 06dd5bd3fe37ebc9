"""Writes thumbnails in workflows/, pictures in docs/images: python scripts/build_pictures.py --film film.mp4.

A thumbnail is a drawing of the workflow's graph; those of the toy world's films are frames of the film that
`python scripts/demo.py` has made, given with --film. Needs PIL and PyAV, which ComfyUI brings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
FILMS = ("demo_toyworld", "resume_and_reroll")  # workflows that make films of the toy world
SIZE = (600, 338)  # pixels of a thumbnail
BACK, GROUP, BOX, NOTE, LINK, TEXT = "#202226", "#2c333b", "#4a5a6a", "#6a5a3a", "#8fb4d8", "#e6e6e6"


def draw_graph(workflow: dict, size: tuple[int, int] = SIZE) -> Image.Image:
    """The graph of a workflow file, as wide as the picture: groups with titles, nodes as boxes, links as lines."""
    right = max(group["bounding"][0] + group["bounding"][2] for group in workflow["groups"])
    scale = (size[0] - 20) / right
    picture = Image.new("RGB", size, BACK)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    nodes = {node["id"]: node for node in workflow["nodes"]}

    def at(x: float, y: float) -> tuple[float, float]:
        return 10 + x * scale, 10 + y * scale

    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        draw.rounded_rectangle((*at(x, y), *at(x + width, y + height)), 4, GROUP)
        draw.text(at(x + 15, y + 8), group["title"], TEXT, font)
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        colour = NOTE if node["type"] == "MarkdownNote" else BOX
        draw.rounded_rectangle((*at(x, y), *at(x + width, y + height)), 3, colour)
    for _, source, _, target, slot, _ in workflow["links"]:
        (x, y), (width, _) = nodes[source]["pos"], nodes[source]["size"]
        left, top = nodes[target]["pos"]
        draw.line((*at(x + width, y + 20), *at(left, top + 20 + 20 * slot)), LINK, 1)
    return picture


def film_frames(film: Path, count: int) -> list[Image.Image]:
    """`count` frames from the middles of equal parts of the film."""
    import av

    with av.open(str(film)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    return [frames[int((i + 0.5) * len(frames) / count)] for i in range(count)]


def strip(frames: list[Image.Image], columns: int, size: tuple[int, int]) -> Image.Image:
    """Frames side by side in rows, on a ground of `size`."""
    rows, gap = -(-len(frames) // columns), 4
    width = (size[0] - gap * (columns + 1)) // columns
    height = min(width * frames[0].height // frames[0].width, (size[1] - gap * (rows + 1)) // rows)
    width = height * frames[0].width // frames[0].height
    left, top = (size[0] - columns * (width + gap) + gap) // 2, (size[1] - rows * (height + gap) + gap) // 2
    picture = Image.new("RGB", size, BACK)
    for i, frame in enumerate(frames):
        place = (left + i % columns * (width + gap), top + i // columns * (height + gap))
        picture.paste(frame.resize((width, height), Image.Resampling.LANCZOS), place)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, help="film.mp4 of scripts/demo.py; without it films keep their pictures")
    chosen = parser.parse_args()
    for path in sorted((ROOT / "workflows").glob("*.json")):
        if path.stem not in FILMS:
            picture = draw_graph(json.loads(path.read_text(encoding="utf-8")))
            picture.save(path.with_suffix(".jpg"), quality=85)
    if chosen.film:
        frames = film_frames(chosen.film, 10)
        for name in FILMS:
            strip(frames[: 9 if name == "demo_toyworld" else 4], 3 if name == "demo_toyworld" else 2, SIZE).save(
                ROOT / "workflows" / f"{name}.jpg", quality=85)
        IMAGES.mkdir(parents=True, exist_ok=True)
        strip(frames, 5, (1000, 262)).save(IMAGES / "film_strip.jpg", quality=88)
        strip(frames, 5, (840, 360)).save(IMAGES / "banner.png")
        strip(frames[:4], 2, (400, 400)).save(IMAGES / "icon.png")
        frames[0].save(IMAGES / "film.webp", save_all=True, duration=250, loop=0, quality=60,
                       append_images=film_frames(chosen.film, 60)[1:])


if __name__ == "__main__":
    main()
