"""Facts read from the headers of files are those of the loaded modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes.budget.headers import lora_bytes, read_model_facts, read_vae_facts
from safetensors.torch import save_file

CPU_BYTES = 4


def wan_state(dim: int = 512, ffn: int = 1536, layers: int = 2, inputs: int = 16, outputs: int = 16,
              dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """All tensors of a Wan model of ComfyUI's names."""
    import comfy.ldm.wan.model as wan
    import comfy.ops

    model = wan.WanModel(model_type="t2v", dim=dim, ffn_dim=ffn, num_heads=dim // 128, num_layers=layers,
                         in_dim=inputs, out_dim=outputs, dtype=dtype, operations=comfy.ops.disable_weight_init)
    return {name: torch.randn(tensor.shape).mul(0.02).to(dtype) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def wan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    save_file(wan_state(), path)
    return path


@pytest.mark.comfy
@pytest.mark.parametrize("weights", ["nf4", "int8", "nf4_int8", "original"])
def test_model_facts_equal_those_of_the_loaded_model(wan_file, weights):
    from pack.nodes.common.compat import model_facts
    from pack.nodes.loading.bridge import load_diffusion_model

    loaded = model_facts(load_diffusion_model(str(wan_file), weights)[0])
    assert read_model_facts(wan_file, weights, CPU_BYTES) == loaded


@pytest.mark.comfy
def test_packed_files_are_counted_as_they_are(wan_file, tmp_path):
    from pack.nodes.common.compat import model_facts
    from pack.nodes.loading.bridge import load_diffusion_model
    from pack.nodes.loading.bridge_save import save_model

    packed = tmp_path / "packed.safetensors"
    save_model(load_diffusion_model(str(wan_file), "nf4")[0], packed)
    loaded = model_facts(load_diffusion_model(str(packed), "original")[0])
    found = read_model_facts(packed, "original", CPU_BYTES)
    assert replace(found, weight_bytes=0) == replace(loaded, weight_bytes=0)
    states = 2000 * 2 * 10  # the JSON beside each of 20 packed weights stays in the file
    assert loaded.weight_bytes <= found.weight_bytes <= loaded.weight_bytes + states


@pytest.mark.comfy
def test_fp8_counts_one_byte_a_value_where_it_stays(wan_file, tmp_path):
    state = {name: tensor.to(torch.float8_e4m3fn) if name.endswith("weight") and tensor.ndim == 2 else tensor
             for name, tensor in wan_state(dtype=torch.bfloat16).items()}
    path = tmp_path / "fp8.safetensors"
    save_file(state, path)
    stays, cast, sixteen = (read_model_facts(path, weights, 2, fp8).weight_bytes
                            for weights, fp8 in (("original", 0), ("original", 1), ("int8", 0)))
    assert stays == 4000 + sum(tensor.nbytes for tensor in state.values())
    assert cast == 4000 + sum(tensor.numel() for tensor in state.values())
    assert cast < stays < sixteen * 1.3


@pytest.mark.comfy
def test_vae_facts_equal_those_of_the_loaded_vae(toyworld):
    import comfy.sd
    import comfy.utils
    from pack.nodes.budget.bridge import vae_facts

    path = toyworld / "toyworld_vae_fp16.safetensors"
    assert read_vae_facts(path, CPU_BYTES) == vae_facts(comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path))))


@pytest.mark.comfy
@pytest.mark.parametrize("weights", ["nf4", "original"])
@pytest.mark.parametrize("kind", ["hunyuan", "hunyuan_15", pytest.param("svd", marks=pytest.mark.slow)])
def test_facts_of_models_that_are_not_wan_equal_those_of_the_loaded_model(kind, weights, tmp_path):
    from pack.nodes.common.compat import model_facts
    from pack.nodes.loading.bridge import load_diffusion_model

    from ..loading.tiny_models import write

    path = write(tmp_path, kind)
    loaded = model_facts(load_diffusion_model(str(path), weights)[0])
    found = read_model_facts(path, weights, CPU_BYTES)
    assert replace(found, weight_bytes=0) == replace(loaded, weight_bytes=0)
    assert abs(found.weight_bytes - loaded.weight_bytes) <= 16_000  # tables of noise levels


def save_header(path, tensors: dict[str, torch.Tensor]) -> None:
    """A file of these tensors, of zeros that take no room on the disk."""
    import json

    entries, at = {}, 0
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        entries[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)


@pytest.mark.comfy
def test_a_hunyuan_film_of_the_published_size_is_planned_from_headers_alone(tmp_path):
    """13 billion parameters and ComfyUI's VAE: nothing but the headers of two files is there."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from pack.nodes.budget.answer import answer_graph

    from ..loading.test_families import FULL_SIZE
    from ..loading.tiny_models import core_model
    from .test_graph import MACHINE

    model, vae = tmp_path / "model.safetensors", tmp_path / "vae.safetensors"
    save_header(model, core_model("hunyuan", "meta", **FULL_SIZE["hunyuan"][0]).state_dict())
    with torch.device("meta"):
        save_header(vae, AutoencoderKL(ddconfig={**KL, "z_channels": 16, "conv3d": True, "time_compress": 4},
                                       embed_dim=16).state_dict())
    graph = {
        "1": {"class_type": "VideoMemoryLoadDiffusionModel", "inputs": {"model_name": "m", "weights": "nf4"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "v"}},
        "3": {"class_type": "VideoMemoryPersistentMemory", "inputs": {"preset": "hunyuan_i2v_v2"}},
        "4": {"class_type": "VideoMemoryBudgetGate", "inputs": {
            "model": ["1", 0], "vae": ["2", 0], "memory": ["3", 0], "width": 1280, "height": 720, "clip_seconds": 4.0}}}
    answer = answer_graph(graph, "4", lambda folder, _: str(model if folder == "diffusion_models" else vae), 2, MACHINE)
    assert answer.fits is True, answer.message
    assert answer.plan.model.weight_bytes / 1e9 == pytest.approx(FULL_SIZE["hunyuan"][3], abs=0.1)
    assert answer.plan.weights_in_ram_bytes > 0 and answer.plan.decode_tile_px < 0


def test_a_model_that_no_recipe_knows_is_no_plan(tmp_path):
    from pack.nodes.budget.headers_other import other_model_facts
    from pack.nodes.loading.families import HUNYUAN, LTX

    hunyuan = {"img_in.proj.weight": torch.zeros(8, 33, 1, 2, 2), "final_layer.linear.weight": torch.zeros(64, 8)}
    facts = other_model_facts(HUNYUAN, hunyuan, 5, 2)
    assert (facts.kind, facts.patch, facts.latent_channels, facts.spatial_stride) == ("i2v", (1, 2, 2), 16, 8)
    with pytest.raises(ValueError, match="cannot say what this model needs, but got LTX-Video diffusion model"):
        other_model_facts(LTX, {}, 5, 2)


KL = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
      "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
REFINER = {"block_out_channels": [128, 256, 512, 1024, 1024], "in_channels": 3, "out_channels": 3,
           "num_res_blocks": 2, "ffactor_spatial": 16, "ffactor_temporal": 4, "downsample_match_channel": True,
           "upsample_match_channel": True, "z_channels": 32}
VAES = {  # kind -> (regularizer, encoder, decoder, their options), in their full size: core knows no other
    "svd": ("DiagonalGaussianRegularizer", "ldm.modules.diffusionmodules.model.Encoder",
            "ldm.modules.temporal_ae.VideoDecoder", KL, {**KL, "video_kernel_size": [3, 1, 1], "alpha": 0.0}),
    "hunyuan15": ("EmptyRegularizer", "ldm.hunyuan_video.vae_refiner.Encoder",
                  "ldm.hunyuan_video.vae_refiner.Decoder", REFINER, REFINER)}


@pytest.mark.comfy
@pytest.mark.parametrize("kind", ["hunyuan", "svd", "hunyuan15"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_facts_of_vaes_that_comfyui_decodes_equal_those_of_the_loaded_vae(kind, prefix, tmp_path):
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine
    from pack.nodes.budget.bridge import vae_facts

    with torch.device("meta"):
        if kind == "hunyuan":
            module = AutoencoderKL(ddconfig={**KL, "z_channels": 16, "conv3d": True, "time_compress": 4}, embed_dim=16)
        else:
            regularizer, encoder, decoder, options, more = VAES[kind]
            module = AutoencodingEngine(
                regularizer_config={"target": f"comfy.ldm.models.autoencoder.{regularizer}"},
                encoder_config={"target": f"comfy.{encoder}", "params": options},
                decoder_config={"target": f"comfy.{decoder}", "params": more})
        state = module.state_dict()
        loaded = comfy.sd.VAE(sd=dict(state), device=torch.device("meta"), dtype=torch.float16)
    path = tmp_path / "vae.safetensors"
    save_header(path, {prefix + name: value for name, value in state.items()})
    assert read_vae_facts(path, 2) == vae_facts(loaded, family=kind)


def test_other_vaes_and_other_models_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="cannot predict this VAE, but got the file other.safetensors; allowed"):
        read_vae_facts(path, 2)
    with pytest.raises(ValueError, match="must be a diffusion model, but got a file that is a VAE"):
        read_model_facts(path, "nf4", 2)


def test_a_lora_counts_its_values(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"a.lora_up.weight": torch.zeros(8, 2), "a.lora_down.weight": torch.zeros(2, 8)}, path)
    assert lora_bytes(path, 2) == 64
