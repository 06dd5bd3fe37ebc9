"""Where RIFE weights lie, and whether a file holds them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..common.errors import message
from .rife import Rife

BUNDLED = "rife_v4.26_fp16.safetensors"
DATA = Path(__file__).parent / "data"


def list_weights(folders: Iterable[str | Path]) -> list[str]:
    """The bundled file first, then the other .safetensors names in `folders`, sorted."""
    found = {path.name for folder in folders for path in Path(folder).glob("*.safetensors")}
    return [BUNDLED, *sorted(found - {BUNDLED})]


def find_weights(name: str, folders: Iterable[str | Path]) -> Path:
    """The path of weights file `name`; the bundled one wins. ValueError when there is none."""
    folders = list(folders)
    if name in list_weights(folders):
        for folder in (DATA, *folders):
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    raise ValueError(message(
        "Load Frame Interpolation Model (RIFE) needs a weights file", name, ", ".join(list_weights(folders)),
        "Choose one from the list, or put the file into models/frame_interpolation and press R."))


def load_rife(path: str | Path, dtype: torch.dtype = torch.float32) -> Rife:
    """Build the network with the weights in `path` (.safetensors), in `dtype`, on the CPU, for inference.

    Every name and shape must be that of RIFE v4.26; a prefix "module." or "flownet." is accepted. ValueError otherwise.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"a file that cannot be read ({error})") from error
    weights = {name.removeprefix("module.").removeprefix("flownet."): value for name, value in weights.items()}
    model = Rife()
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    problems = [f"no {name}" for name in wanted if name not in weights]
    problems += [f"an unknown {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} of shape {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items() if name in weights and weights[name].shape != shape]
    if problems:
        raise _refused(path, f"one with {problems[0]} ({len(problems)} such differences)")
    model.load_state_dict(weights)
    return model.to(dtype).eval().requires_grad_(False)


def _refused(path: str | Path, got: str) -> ValueError:
    return ValueError(message(
        f"The RIFE weights file {Path(path).name!r} must be RIFE v4.26", got,
        "the tensors of Practical-RIFE v4.26 as safetensors", f"Choose {BUNDLED!r}, which comes with the pack."))
