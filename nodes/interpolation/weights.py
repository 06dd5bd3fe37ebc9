"""Where RIFE weights lie, and whether a file holds them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..common.errors import message
from ..loading.files import open_tensors
from .architecture import architecture_of, our_name, unlisted
from .rife import Rife

BUNDLED = "rife_v4.26_fp16.safetensors"
DATA = Path(__file__).parent / "data"
ENDINGS = (".safetensors", ".pkl", ".pth", ".pt")


def list_weights(folders: Iterable[str | Path]) -> list[str]:
    """The bundled file first, then the weights files in `folders` and below, by path relative to the folder, sorted."""
    found = {path.relative_to(folder).as_posix() for folder in map(Path, folders) for path in folder.rglob("*")
             if path.suffix.lower() in ENDINGS}
    return [BUNDLED, *sorted(found - {BUNDLED})]


def find_weights(name: str, folders: Iterable[str | Path]) -> Path:
    """The path of weights file `name`; the bundled one wins, then the first folder. ValueError when there is none."""
    folders = list(folders)
    if name in list_weights(folders):
        for folder in (DATA, *folders):
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    raise ValueError(message(
        "Load Frame Interpolation Model (RIFE) needs a weights file", name, ", ".join(list_weights(folders)),
        "Choose one from the list, or put the file into models/frame_interpolation and press R."))


def load_rife(path: str | Path, dtype: torch.dtype = torch.float32) -> Rife:
    """Build the network with the weights in `path`, in `dtype`, on the CPU, for inference.

    The tensors decide which version it is; names and shapes must then be exactly that version's. Weights are kept in
    channels_last: the same numbers, and 15 % less time on a CPU (1280x720, oneDNN). ValueError for anything else.
    """
    weights = _read(path)
    architecture = architecture_of({name: tuple(value.shape) for name, value in weights.items()})
    if architecture is None:
        raise _refused(path, "tensors of something else")
    with torch.device("meta"):  # nothing is allocated for shapes that only a file claims
        model = Rife(architecture)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    problems = [f"no {name}" for name in wanted if name not in weights]
    problems += [f"an unknown {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} of shape {list(weights[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items() if name in weights and weights[name].shape != shape]
    if problems:
        raise _refused(path, f"a file with {problems[0]} ({len(problems)} such differences)")
    model.load_state_dict({name: value.to(dtype, copy=True) for name, value in weights.items()}, assign=True)
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _read(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of the file under our names, without those that only training needs."""
    with open_tensors(path) as file:
        weights = {name: file.get(key) for key in file.headers if (name := our_name(key)) is not None}
    renamed = unlisted(list(weights))
    return {renamed.get(name, name): value for name, value in weights.items()}


def _refused(path: str | Path, got: str) -> ValueError:
    return ValueError(message(
        f"The weights file {Path(path).name!r} must be RIFE 4.5 to 4.26", got,
        "the tensors of one of Practical-RIFE's networks, such as flownet.pkl, rife46.pth or rife_v4.26.safetensors",
        f"Choose another file, or {BUNDLED!r}, which comes with the pack."))
