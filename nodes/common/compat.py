"""The only file that asks what this ComfyUI can do: schema fields, input options, progress, facts about a MODEL.

Differences between versions are found by feature (a dataclass field, a signature), never by version number.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import ComfyExtension, io, ui  # noqa: F401  (re-exported for the rooms' nodes.py)

from .errors import message
from .progress import SILENT, Progress
from .types import ModelFacts

VideoMemoryIO = io.Custom("VIDEO_MEMORY")
MemoryRecipeIO = io.Custom("VIDEO_MEMORY_RECIPE")
PromptTimelineIO = io.Custom("PROMPT_TIMELINE")
RenderPlanIO = io.Custom("RENDER_PLAN")
VideoClipsIO = io.Custom("VIDEO_CLIPS")
RifeModelIO = io.Custom("VIDEOMEMORY_RIFE")
SpatialMemoryIO = io.Custom("SPATIAL_MEMORY")
CameraPathIO = io.Custom("CAMERA_PATH")


def schema(room: str, **fields: Any) -> io.Schema:
    """A V3 schema in the category VideoMemory/<room>, without the fields that this ComfyUI does not know yet.

    Source: 0.3.75's Schema has 14 fields, newer ones add search_aliases and more; an unknown one is a TypeError that
    takes the whole pack down.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    fields["category"] = f"VideoMemory/{room}"
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def field(kind: Any, id: str, *, raw_link: bool = False, **options: Any) -> io.Input:
    """An input of type `kind` (io.Int, VideoMemoryIO, ...), without the options that this ComfyUI does not know yet.

    raw_link: the node receives the link ([node id, slot]) instead of the value, for nodes that expand.
    """
    known = inspect.signature(kind.Input.__init__).parameters
    kept = {name: value for name, value in options.items() if name in known}
    if raw_link:
        kept.update({"raw_link": True} if "raw_link" in known else {"extra_dict": {"rawLink": True}})
    return kind.Input(id, **kept)


def node_id(node: type) -> str | None:
    """The running node's id in the graph, where its schema asks for io.Hidden.unique_id; None outside a server."""
    return node.hidden.unique_id if node.hidden is not None else None


def node_progress(total: int, node_id: str | None = None) -> Progress:
    """A Progress bound to the running node's bar, its text line and the Cancel button.

    total 0 leaves the bar alone, for nodes whose sampler callback drives it.
    """
    bar = comfy.utils.ProgressBar(total, node_id=node_id) if total else None

    def say(text: str) -> None:
        if node_id is not None:
            from server import PromptServer  # not importable outside a running server

            PromptServer.instance.send_progress_text(text, node_id)

    return Progress(
        update=bar.update_absolute if bar else SILENT.update,
        say=say,
        check_cancel=comfy.model_management.throw_exception_if_processing_interrupted,
    )


def user_folder() -> Path:
    """Where the pack keeps what belongs to this machine: videomemory in ComfyUI's user folder. It need not exist."""
    return Path(folder_paths.get_user_directory()) / "videomemory"


def output_places(key: str) -> tuple[str, list[str]]:
    """ComfyUI's output folder, and the folders that the user has named under `key` in extra_model_paths.yaml."""
    return folder_paths.get_output_directory(), folder_paths.folder_names_and_paths.get(key, ([],))[0]


def models_bytes(device: Any) -> int:
    """Bytes that ComfyUI's models hold on a device."""
    return int(sum(loaded.model_loaded_memory() for loaded in comfy.model_management.current_loaded_models
                   if loaded.device == device and loaded.model is not None))


def other_models_bytes(device: Any, own: Any) -> int:
    """Bytes that models other than the one of this patcher hold on a device."""
    return sum(int(loaded.model_loaded_memory()) for loaded in comfy.model_management.current_loaded_models
               if loaded.device == device and loaded.model is not None and loaded.model.model is not own.model)


def available_bytes(device: Any) -> int:
    """Bytes of a device that are free, or held by models that ComfyUI can move off it."""
    return int(comfy.model_management.get_free_memory(device)) + models_bytes(device)


def model_facts(model: Any) -> ModelFacts:
    """Read the facts of a MODEL from its modules; raises ValueError for anything that is not a Wan-family DiT, a
    HunyuanVideo, an LTX-Video or a Stable Video Diffusion."""
    inner = model.model.diffusion_model
    if not (hasattr(inner, "blocks") and hasattr(inner, "patch_embedding") and hasattr(inner, "rope_embedder")):
        return _other_facts(model)
    return ModelFacts(
        family="wan",
        layers=len(inner.blocks),
        heads=int(inner.num_heads),
        head_dim=int(inner.dim // inner.num_heads),
        ffn_dim=int(inner.ffn_dim),
        patch=tuple(inner.patch_size),
        latent_channels=int(inner.out_dim),
        spatial_stride=16 if inner.out_dim == 48 else 8,
        weight_bytes=int(model.model_size()),
        dtype_bytes=compute_dtype(model).itemsize,
        kind=_wan_kind(inner),
    )


def _wan_kind(inner: Any) -> str:
    if hasattr(inner, "vace_blocks"):
        return "vace"
    if inner.out_dim == 48:
        return "ti2v"
    return "i2v" if inner.in_dim > inner.out_dim else "t2v"


# ComfyUI's model class -> (family, kind, pixels per latent pixel)
_OTHERS = {"HunyuanVideo": ("hunyuan", "t2v", 8), "HunyuanVideoI2V": ("hunyuan", "i2v", 8),
           "HunyuanVideo15": ("hunyuan15", "i2v", 16), "SVD_img2vid": ("svd", "i2v", 8), "LTXV": ("ltx", "i2v", 32)}


def _other_facts(model: Any) -> ModelFacts:
    """The facts of a video model that is not Wan: what the sampler needs; its layers are not counted."""
    name = type(model.model).__name__
    if name not in _OTHERS:
        raise _not_wan(type(model.model.diffusion_model).__name__)
    family, kind, stride = _OTHERS[name]
    patch = tuple(getattr(model.model.diffusion_model, "patch_size", None) or (1, 1, 1))
    return ModelFacts(family, 0, 0, 0, 0, patch, int(model.model.latent_format.latent_channels), stride,
                      int(model.model_size()), compute_dtype(model).itemsize, kind)


def _not_wan(name: str) -> ValueError:
    return ValueError(message(
        "The VideoMemory nodes need a Wan-family diffusion model", name,
        "Wan 2.1 / 2.2 checkpoints and their causal fine-tunes",
        "Load one with Load Diffusion Model (NF4) or any Wan loader."))


def compute_dtype(model: Any) -> Any:
    """The dtype that activations, K and V have inside the MODEL."""
    manual = model.model.manual_cast_dtype
    return manual if manual is not None else model.model.get_dtype()
