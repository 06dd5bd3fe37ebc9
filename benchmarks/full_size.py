"""Full-size Wan models of random weights and full memories of random K/V, where only memory and speed matter."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import dataclass

import torch
from random_wan import wan_shapes

# what ComfyUI imports at its start and sampling does not use: package -> the parts of it that are imported too
UNUSED = {"av": ("container", "subtitles", "subtitles.stream"), "torchsde": ()}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of its films; the recipe that it is sampled with."""

    dim: int
    ffn: int
    layers: int
    channels: int
    stride: int
    width: int
    height: int
    preset: str

    def geometry(self) -> object:
        from pack.nodes.common.types import Geometry

        return Geometry(self.channels, self.height // self.stride, self.width // self.stride)


SHAPES = {
    "ti2v_5b": Shape(3072, 14336, 30, 48, 16, 1280, 704, "longlive_2"),
    "14b": Shape(5120, 13824, 40, 16, 8, 1280, 720, "self_forcing"),
    "1.3b": Shape(1536, 8960, 30, 16, 8, 1280, 720, "self_forcing"),
    "tiny": Shape(256, 512, 2, 48, 16, 192, 128, "longlive_2"),
}


def stand_in_for_missing() -> None:
    """Empty modules for what ComfyUI imports at its start and nothing here uses, where a bare machine lacks it."""
    for package, parts in UNUSED.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed; nothing here uses it")
            for name in (package, *(f"{package}.{part}" for part in parts)):
                sys.modules[name] = module = types.ModuleType(name)
                module.__path__, module.__getattr__ = [], anything


def anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return object


def build_model(shape: Shape, weights: str) -> object:
    """A MODEL of random weights in bfloat16, its blocks' matrices packed by our codec where asked for (nf4, int8)."""
    import comfy.model_management
    import comfy.sd
    from pack.nodes.loading.bridge_linear import QuantOperations, show_shapes
    from pack.nodes.loading.bridge_patcher import QuantPatcher
    from pack.nodes.loading.codecs import CODECS

    device, state, packed = comfy.model_management.get_torch_device(), {}, {}
    for name, size in wan_shapes(shape.dim, shape.ffn, shape.layers, shape.channels).items():
        tensor = torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
        if weights in CODECS and name.startswith("blocks.") and len(size) == 2:
            packed[name], codec = size, CODECS[weights]
            state |= {key: part.cpu() for key, part in codec.to_state_dict(codec.quantize(tensor), name).items()}
        else:
            state[name] = tensor.cpu()
    if weights == "bf16":
        return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.bfloat16})
    loaded = comfy.sd.load_diffusion_model_state_dict(
        show_shapes(state, packed), model_options={"custom_operations": QuantOperations, "dtype": torch.bfloat16})
    return QuantPatcher(loaded.model, loaded.load_device, loaded.offload_device)


@torch.inference_mode()
def full_memory(model: object, shape: Shape, spec: object) -> object:
    """A memory as after a long film: every place of the spec taken."""
    import comfy.model_management
    from pack.nodes.common.compat import compute_dtype
    from pack.nodes.common.digest import patcher_key
    from pack.nodes.memory.kv_cache import BlockKV, pack_layer
    from pack.nodes.memory.state import begin_clip, commit, empty_memory

    chunk, heads = spec.chunk_latents, shape.dim // 128
    tokens = chunk * (shape.height // shape.stride // 2) * (shape.width // shape.stride // 2)
    memory = begin_clip(empty_memory(spec), shape.geometry(), patcher_key(model), text()[0][0])
    for i in range(spec.capacity_latents // chunk):
        k, v = (torch.randn(1, tokens, heads, 128, dtype=compute_dtype(model),
                            device=comfy.model_management.get_torch_device()) for _ in range(2))
        kept = "int8" if spec.precision == "4bit" and i * chunk < spec.sink_latents else spec.precision
        layer = pack_layer(k, v, kept).to("cpu")
        grid = shape.geometry()
        memory = commit(memory, torch.randn(grid.channels, chunk, grid.height, grid.width),
                        BlockKV((layer,) * shape.layers))
    return memory


def text() -> list:
    return [[torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(1)), {}]]
