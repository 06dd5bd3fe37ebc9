"""Lets CUDA-linked torchvision and torchaudio wheels work beside a CPU build of torch, where no CPU wheels exist.

Only `nms` and `qnms` are registered by torchvision without a guard, so defining their schemas makes all of its Python
side work; torchaudio goes on without its libraries when it finds none.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from .errors import CannotContinue

MARK = "# videomemory: schemas for a CPU torch"
SHIM = f"""

{MARK}
if not _has_ops():
    _cpu_library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _cpu_library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
PROBE = "import torch, torchvision, torchaudio"
IS_CPU_BUILD = "import torch, sys; sys.exit(0 if torch.version.cuda is None and torch.version.hip is None else 3)"
WHERE = "import importlib.util as u; print(u.find_spec('torchvision').origin); print(u.find_spec('torchaudio').origin)"


def apply_where_needed(python: Path) -> bool:
    """Shim the packages of `python` when torch is a CPU build and they do not import; True when the shim is in use."""
    if _runs(python, PROBE):
        return False
    if not _runs(python, IS_CPU_BUILD):
        raise CannotContinue("The installed torch does not import together with torchvision and torchaudio: delete the "
                             ".venv folder and run again, or use your own ComfyUI with --comfyui PATH.")
    listing = subprocess.run([str(python), "-c", WHERE], capture_output=True, text=True, check=True)
    torchvision, torchaudio = (Path(line).parent for line in listing.stdout.split())
    shim_packages(torchvision, torchaudio)
    if not _runs(python, PROBE):
        raise CannotContinue("torchvision and torchaudio do not work with the CPU build of torch that pip chose: "
                             "delete the .venv folder and run again, or use your own ComfyUI with --comfyui PATH.")
    return True


def shim_packages(torchvision: Path, torchaudio: Path) -> None:
    """Change the two package folders in place; a second call changes nothing."""
    extension = torchvision / "extension.py"
    text = extension.read_text(encoding="utf-8")
    if MARK not in text:
        extension.write_text(text + SHIM, encoding="utf-8")
    for library in (torchaudio / "lib").glob("*.so"):
        library.unlink()


def _runs(python: Path, code: str) -> bool:
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0
