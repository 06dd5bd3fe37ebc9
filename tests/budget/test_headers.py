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
