"""The same film with a MODEL from any loader: core's own, ours, and ComfyUI-GGUF's where COMFYUI_GGUF_PATH names it.

Whatever a loader packs its weights into, a film on its MODEL is the film on core's plain model with the weights that
its layers apply.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
GGUF = os.environ.get("COMFYUI_GGUF_PATH")
NAME = "tiny_wan_fp16.safetensors"
NORMS = ("norm_q.weight", "norm_k.weight", "norm3.weight")
LIMIT = 2e-6  # largest difference, in standard deviations of the latents


def module_from(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of models that ComfyUI knows, with a tiny Wan in it."""
    folder_paths = pytest.importorskip("folder_paths")
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models")
    write_wan = module_from("random_wan", ROOT / "benchmarks" / "random_wan.py").write_wan
    path = write_wan(folder / NAME, dim=256, ffn=512, layers=2, dtype=torch.float32)
    weights = {name: (3 * tensor + name.endswith(NORMS)).half() for name, tensor in load_file(path).items()}
    save_file(weights, path)
    for kind in ("diffusion_models", "unet"):
        folder_paths.add_model_folder_path(kind, str(folder))
    return folder


def stock(folder: Path, weights: str):
    import nodes

    return nodes.UNETLoader().load_unet(NAME, weights)[0]


def packed(folder: Path, weights: str):
    from pack.nodes.loading.bridge import load_diffusion_model

    return load_diffusion_model(str(folder / NAME), weights, min_bytes=0)[0]


def film(model, memory=None, chunks: int = 6):
    """Two clips; enough for LongLive 1's window to forget."""
    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.state import empty_memory
    from pack.nodes.sampling.bridge import sample_with_memory
    from pack.nodes.sampling.presets import PRESETS, memory_spec

    memory = empty_memory(memory_spec("longlive_1")) if memory is None else memory
    text = torch.randn(1, 12, 4096, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        samples, after = sample_with_memory(model, memory, [[text, {}]], PRESETS["longlive_1"], Geometry(16, 4, 6),
                                            3 * chunks, 1)
        return model.model.process_latent_in(samples), after


def plain(model):
    """Core's model in float32 with the weights that this MODEL's layers apply."""
    import comfy.model_patcher
    from comfy import supported_models

    config = supported_models.WAN21_T2V({**supported_models.WAN21_T2V.unet_config, "dim": 256, "ffn_dim": 512,
                                         "num_heads": 2, "num_layers": 2, "in_dim": 16, "out_dim": 16})
    config.set_inference_dtype(torch.float32, None)
    made = config.get_model({}, "", device="cpu")
    inner, state = model.model.diffusion_model, {}
    with torch.inference_mode():
        for name, module in inner.named_modules():
            if hasattr(module, "in_features"):  # a Linear is what it does to the unit vectors
                bias = module(torch.zeros(1, module.in_features))
                state[f"{name}.weight"] = (module(torch.eye(module.in_features)) - bias).T.clone()
                state[f"{name}.bias"] = bias[0].clone()
        for name, parameter in inner.named_parameters():
            if name in made.diffusion_model.state_dict():
                state.setdefault(name, parameter.data.as_subclass(torch.Tensor).float().clone())
    made.diffusion_model.load_state_dict(state)
    return comfy.model_patcher.ModelPatcher(made.eval(), torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize(("load", "weights"), [
    (stock, "default"), (stock, "fp8_e4m3fn"), (packed, "original"), (packed, "int8"), (packed, "nf4")],
    ids=lambda value: getattr(value, "__name__", value))
def test_the_film_is_that_of_the_weights_whatever_they_are_packed_into(load, weights, folder, tmp_path):
    check(load(folder, weights), tmp_path)


def check(model, folder: Path) -> None:
    from pack.nodes.memory.files import load_memory, save_memory
    from pack.nodes.memory.state import forget

    first, memory = film(model, chunks=4)
    second, after = film(model, load_memory(save_memory(memory, folder / "m.safetensors")), chunks=2)
    want, _ = film(plain(model))
    assert float((torch.cat((first, second), 2) - want).abs().max() / want.std()) < LIMIT
    assert [block.start for block in after.blocks] == [0, 12, 15] and want.std() > 0.5
    alone, _ = film(model, forget(memory), chunks=2)
    assert float((alone - second).abs().max()) > 0.1  # the memory reached the attention
    assert torch.equal(film(model, memory, chunks=2)[0], second)


@pytest.mark.skipif(not GGUF, reason="COMFYUI_GGUF_PATH does not name a checkout of ComfyUI-GGUF")
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
def test_a_gguf_model_makes_the_film_of_its_weights(kind, folder, tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf(gguf, folder / f"tiny_{kind}.gguf", folder / NAME, kind)
    model = gguf_nodes().UnetLoaderGGUF().load_unet(f"tiny_{kind}.gguf")[0]
    types = {getattr(parameter, "tensor_type", None) for parameter in model.model.diffusion_model.parameters()}
    assert gguf.GGMLQuantizationType[kind] in types  # the weights are really kept so
    check(model, tmp_path)


@functools.cache
def gguf_nodes():
    module_from("comfyui_gguf", Path(GGUF) / "__init__.py")
    return sys.modules["comfyui_gguf.nodes"]


def write_gguf(gguf, path: Path, source: Path, kind: str) -> None:
    """The weights of attention and feed-forward in this kind, all else as it is, in the layout of ComfyUI-GGUF."""
    from safetensors.torch import load_file

    wanted, writer = gguf.GGMLQuantizationType[kind], gguf.GGUFWriter(str(path), arch="wan")
    for name, tensor in load_file(source).items():
        array = tensor.numpy() if kind == "F16" and tensor.ndim > 1 else tensor.float().numpy()
        if tensor.ndim == 5:  # more dimensions than GGUF has
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            writer.add_tensor(name, array.reshape(tensor.shape[0], -1))
        elif kind != "F16" and name.startswith("blocks.") and tensor.ndim == 2:
            raw = random_q4_k(*tensor.shape) if kind == "Q4_K" else gguf.quants.quantize(array, wanted)
            writer.add_tensor(name, raw, raw_dtype=wanted)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_q4_k(rows: int, columns: int):
    """Valid Q4_K blocks (256 values: two float16 scales, 12 bytes of 6-bit scales, 128 bytes of 4-bit values) of random
    weights around 0; gguf's Python side can read this kind, not make it."""
    import numpy

    draw = numpy.random.default_rng(rows * columns)
    blocks = draw.integers(0, 256, (rows, columns // 256, 144), dtype=numpy.uint8)
    blocks[..., :4] = numpy.array([0.0003, 0.0003 * 7.5], numpy.float16).view(numpy.uint8)
    return blocks.reshape(rows, -1)
