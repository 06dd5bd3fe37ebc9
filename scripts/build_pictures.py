"""Writes thumbnails in workflows/, pictures in docs/images: python scripts/build_pictures.py --film film.mp4.

A thumbnail is a card that says what the workflow makes (workflows/cards.py); those of the toy world's films are frames
of the film that `python scripts/demo.py` has made, given with --film. Needs PIL and PyAV, which ComfyUI brings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(Path(__file__).parent))

from build_workflows import WORKFLOWS  # noqa: E402
from workflows.cards import BACK, CARDS, SIZE, draw_card  # noqa: E402

QUALITY = 88  # of thumbnails
FILMS = ("demo_toyworld", "resume_and_reroll")  # workflows that make films of the toy world


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
    for name, card in CARDS.items():
        draw_card(card, WORKFLOWS[name]()[0]).save(ROOT / "workflows" / f"{name}.jpg", quality=QUALITY)
    if chosen.film:
        frames = film_frames(chosen.film, 10)
        for name in FILMS:
            strip(frames[: 9 if name == "demo_toyworld" else 4], 3 if name == "demo_toyworld" else 2, SIZE).save(
                ROOT / "workflows" / f"{name}.jpg", quality=85)
        IMAGES.mkdir(parents=True, exist_ok=True)
        strip(frames, 5, (1000, 262)).save(IMAGES / "film_strip.jpg", quality=QUALITY)
        strip(frames, 5, (840, 360)).save(IMAGES / "banner.png")
        strip(frames[:4], 2, (400, 400)).save(IMAGES / "icon.png")
        frames[0].save(IMAGES / "film.webp", save_all=True, duration=250, loop=0, quality=60,
                       append_images=film_frames(chosen.film, 60)[1:])


if __name__ == "__main__":
    main()
