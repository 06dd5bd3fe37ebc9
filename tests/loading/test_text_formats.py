"""Recognising text encoders by their header: family, sizes, type, and the words in which other files are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from pack.nodes.loading import text_formats
from pack.nodes.loading.plan import plan_layers
from safetensors.torch import load_file, save_file

from .text_files import SIZES, tiny_state, write_full_size, write_sparse

PARTS = tuple(SIZES)
# part -> (weights to pack, other tensors by reason, ComfyUI's configuration or the numbers in it) at full size
FULL_SIZE = {
    "umt5xxl": (168, {"embedding": 1, "position bias": 24, "norm, bias or modulation": 49,
                      "tokenizer or other data": 1}, "umt5_config_xxl.json"),
    "t5xxl": (168, {"embedding": 1, "position bias": 1, "norm, bias or modulation": 49}, "t5_config_xxl.json"),
    "byt5_small": (84, {"embedding": 1, "position bias": 1, "norm, bias or modulation": 25},
                   "byt5_config_small_glyph.json"),
    "clip_l": (72, {"embedding": 2, "output projection": 1, "norm, bias or modulation": 122}, "sd1_clip_config.json"),
    "llama": (224, {"embedding": 1, "norm, bias or modulation": 65}, "Llama2Config"),
    "qwen25_7b": (356, {"embedding": 1, "image embedding": 1, "image projection": 5, "norm, bias or modulation": 365},
                  "Qwen25_7BVLI_Config"),
}


def write(folder: Path, tensors: dict[str, torch.Tensor], name: str = "file.safetensors") -> Path:
    save_file(tensors, folder / name)
    return folder / name


def encoders(toyworld: Path, folder: Path, *parts: str) -> list[text_formats.TextEncoder]:
    return [text_formats.read_text_encoder(write(folder, tiny_state(part, toyworld), f"{part}.safetensors"))
            for part in parts]


def test_reduced_umt5_is_read_from_the_tensors(toyworld: Path) -> None:
    encoder = text_formats.read_text_encoder(toyworld / "toyworld_te_fp16.safetensors")
    assert encoder.family is text_formats.UMT5 and encoder.checkpoint.family is text_formats.UMT5
    assert encoder.config.items() >= {
        "num_layers": 1, "d_model": 4096, "num_heads": 2, "d_kv": 8, "d_ff": 8, "vocab_size": 113}.items()


@pytest.mark.comfy
@pytest.mark.parametrize("part", PARTS)
def test_every_encoder_is_recognised_with_its_sizes(part: str, toyworld: Path, tmp_path: Path) -> None:
    (encoder,) = encoders(toyworld, tmp_path, part)
    assert encoder.family.part == part
    assert SIZES[part].items() <= encoder.config.items()


@pytest.mark.comfy
@pytest.mark.parametrize("part", PARTS)
def test_real_files_have_cores_sizes_and_keep_what_is_sensitive(part: str, tmp_path: Path) -> None:
    import comfy
    import comfy.text_encoders.llama

    linears, reasons, config = FULL_SIZE[part]
    encoder = text_formats.read_text_encoder(write_full_size(tmp_path / "full.safetensors", part, "BF16"))
    plan = plan_layers(encoder.checkpoint)
    assert len(plan.quantize) == linears
    assert {reason: list(plan.keep.values()).count(reason) for reason in set(plan.keep.values())} == reasons
    mixed = plan_layers(encoder.checkpoint, weights="nf4_int8")
    layers = {"llama": 32, "qwen25_7b": 28, "clip_l": 12, "byt5_small": 12}.get(part, 24)
    late = 2 if part == "clip_l" else 3  # matrices of a feed-forward layer
    assert mixed.keep == plan.keep
    assert list(mixed.quantize.values()).count("int8") == 2 * layers + late * layers // 2
    folder = Path(comfy.__path__[0])
    known = (json.loads(next(folder.rglob(config)).read_text()) if config.endswith(".json")
             else vars(getattr(comfy.text_encoders.llama, config)()))
    assert encoder.family.part == part and encoder.checkpoint.dtype == torch.bfloat16
    assert {key: known[key] for key in encoder.config} == encoder.config


@pytest.mark.comfy
def test_longer_clip_and_other_prefixes(toyworld: Path, tmp_path: Path) -> None:
    state = {"model." + name: tensor for name, tensor in tiny_state("clip_l", toyworld).items()}
    state["model.text_model.embeddings.position_embedding.weight"] = torch.zeros(248, 128)
    encoder = text_formats.read_text_encoder(write(tmp_path, state))
    assert encoder.config["max_position_embeddings"] == 248


@pytest.mark.comfy
def test_what_the_model_has_no_place_for_is_left_aside(toyworld: Path, tmp_path: Path) -> None:
    state = tiny_state("llama", toyworld) | {"lm_head.weight": torch.zeros(8, 64)}
    assert "lm_head.weight" not in text_formats.read_text_encoder(write(tmp_path, state)).checkpoint.tensors
    state = tiny_state("t5xxl", toyworld) | {"encoder.embed_tokens.weight": torch.zeros(8, 64)}
    tensors = text_formats.read_text_encoder(write(tmp_path, state)).checkpoint.tensors
    assert "encoder.embed_tokens.weight" not in tensors


@pytest.mark.comfy
@pytest.mark.parametrize(("parts", "asked", "expected"), [
    (("umt5xxl",), "auto", "wan"), (("umt5xxl",), "wan", "wan"), (("t5xxl",), "auto", "ltxv"),
    (("t5xxl",), "mochi", "mochi"), (("t5xxl",), "chroma", "chroma"), (("t5xxl",), "sd3", "sd3"),
    (("t5xxl", "clip_l"), "auto", "flux"), (("clip_l", "t5xxl"), "sd3", "sd3"),
    (("clip_l",), "auto", "stable_diffusion"), (("clip_l", "llama"), "auto", "hunyuan_video"),
    (("byt5_small", "qwen25_7b"), "auto", "hunyuan_video_15")])
def test_type_follows_the_files(parts: tuple, asked: str, expected: str, toyworld: Path, tmp_path: Path) -> None:
    name, ordered = text_formats.resolve_type(encoders(toyworld, tmp_path, *parts), asked)
    assert name == expected
    assert tuple(encoder.family for encoder in ordered) in text_formats.TYPES[expected]


@pytest.mark.comfy
@pytest.mark.parametrize(("parts", "asked", "text"), [
    (("llama",), "auto", "got a LLaVA-Llama-3 text encoder for type 'auto'; allowed: wan: UMT5 text encoder; ltxv: "
                         "T5 v1.1 text encoder; hunyuan_video: LLaVA-Llama-3 text encoder + CLIP-L text encoder; "),
    (("t5xxl",), "wan", "got a T5 v1.1 text encoder for type 'wan'; allowed: wan: UMT5 text encoder. Choose the "
                        "missing file as second text encoder, 'none' for a superfluous one, or another type."),
    (("umt5xxl", "clip_l"), "auto", "got a UMT5 text encoder and a CLIP-L text encoder for type 'auto'"),
    (("clip_l", "clip_l"), "auto", "got a CLIP-L text encoder and a CLIP-L text encoder for type 'auto'"),
    (("clip_l",), "gemma", "needs a type, but got 'gemma'; allowed: auto, wan, ltxv, hunyuan_video, "),
])
def test_files_that_do_not_belong_together_are_refused(parts: tuple, asked: str, text: str, toyworld: Path,
                                                       tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as refused:
        text_formats.resolve_type(encoders(toyworld, tmp_path, *parts), asked)
    assert str(refused.value).startswith("Load Text Encoder (NF4) needs ")


T5_FILE = {"shared.weight": (32128, 16), "encoder.block.0.layer.0.SelfAttention.q.weight": (16, 16),
           "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
           "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (16, 16), "encoder.block.1.layer_norm.weight": (16,)}
CLIP_FILE = {"text_model.embeddings.token_embedding.weight": (49408, 16),
             "text_model.encoder.layers.0.mlp.fc1.weight": (16, 16)}
LLAMA_FILE = {"model.embed_tokens.weight": (128320, 16), "model.layers.0.self_attn.q_proj.weight": (16, 16)}
REFUSED = {
    "UMT5 without its tokenizer": (
        T5_FILE | {"shared.weight": (256384, 16),
                   "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2)},
        "must be a text encoder whose tokenizer is there, but got a T5 with 2 position biases in 2 layers, gated "
        "feed-forward, a vocabulary of 256384, no tokenizer (spiece_model); allowed: UMT5 (gated, a bias in every "
        "layer, with spiece_model); T5 v1.1 (gated, one bias, 32128); ByT5 glyph (gated, one bias, 1510). Choose a"),
    "mT5": (T5_FILE | {"shared.weight": (250112, 16)}, "a T5 with 1 position bias in 2 layers, gated feed-forward, a "
                                                       "vocabulary of 250112"),
    "T5 1.0": ({name.replace("wi_0", "wi"): shape for name, shape in T5_FILE.items()}, "no gated feed-forward"),
    "T5 without queries": ({name: shape for name, shape in T5_FILE.items() if not name.endswith("q.weight")},
                           "must be a whole text encoder, but got a file without encoder.block.0.layer.0.SelfAtte"),
    "CLIP-G": (CLIP_FILE | {f"text_model.encoder.layers.{i}.mlp.fc2.weight": (16, 16) for i in range(32)},
               "text encoder of a video model that this node knows, but got a CLIP-G with 32 layers and a vocabulary "
               "of 49408; allowed: CLIP-L (12 layers, 49408). Choose another file, or ComfyUI's Load CLIP for this "),
    "CLIP-H": (CLIP_FILE | {f"text_model.encoder.layers.{i}.mlp.fc2.weight": (16, 16) for i in range(24)},
               "a CLIP-H with 24 layers"),
    "SigLIP": (CLIP_FILE | {"text_model.embeddings.token_embedding.weight": (32000, 16)}, "another CLIP with 1 layers"),
    "Gemma": (LLAMA_FILE | {"model.layers.0.post_feedforward_layernorm.weight": (16,)}, "a Gemma with 1 layers"),
    "Qwen3": (LLAMA_FILE | {"model.layers.0.self_attn.q_norm.weight": (16,)}, "a Qwen3 with 1 layers"),
    "Qwen2.5 3B": (LLAMA_FILE | {"model.embed_tokens.weight": (151936, 16),
                                 "model.layers.0.self_attn.k_proj.bias": (16,)},
                   "a Qwen2.5 with 1 layers and a vocabulary of 151936; allowed: LLaVA-Llama-3 as HunyuanVideo has it "
                   "(128320); Qwen2.5-VL 7B (152064)"),
    "Llama 3.1": (LLAMA_FILE | {"model.embed_tokens.weight": (128256, 16)}, "a Llama or Mistral with 1 layers and a "
                                                                            "vocabulary of 128256"),
    "embedding of one dimension": (LLAMA_FILE | {"model.embed_tokens.weight": (128320,)},
                                   "model.embed_tokens.weight of shape [128320]; allowed: a matrix"),
    "Wan's own UMT5": ({"token_embedding.weight": (8, 8), "blocks.0.pos_embedding.embedding.weight": (8, 8)},
                       "but got a text encoder in a layout that ComfyUI does not read (2 tensors, the first named "
                       "'blocks.0.pos_embedding.embedding.weight')"),
    "a LoRA": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (8, 8)}, "but got a LoRA (1 tensors, "),
    "a VAE": ({"decoder.conv1.weight": (8, 8), "encoder.conv1.weight": (8, 8)}, "but got a VAE (2 tensors, "),
    "a diffusion model": ({"head.modulation": (8, 8), "patch_embedding.weight": (8, 8),
                           "blocks.0.self_attn.q.weight": (8, 8)},
                          "but got a Wan diffusion model (3 tensors, the first named 'blocks.0.self_attn.q.weight'); "
                          "allowed: UMT5 text encoder or T5 v1.1 text encoder or ByT5 glyph text encoder "
                          "(shared.weight, encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight); "
                          "CLIP-L text encoder (text_model.embeddings.token_embedding.weight, "),
    "an all-in-one checkpoint": ({"model.diffusion_model.x": (8, 8), "cond_stage_model.y": (8, 8)},
                                 "but got an all-in-one checkpoint (2 tensors, "),
    "an unknown file": ({"a.b": (8, 8)}, "must be a text encoder, but got a file that is not known (1 tensors, the "
                                         "first named 'a.b')"),
    "an empty file": ({}, "but got a file that is not known (0 tensors, the first named None)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    shapes, text = REFUSED[case]
    tensors = [(name, shape, "F16") for name, shape in sorted(shapes.items())]
    path = write_sparse(tmp_path / "given.safetensors", tensors)
    with pytest.raises(ValueError, match=re.escape(text)) as refused:
        text_formats.read_text_encoder(path)
    assert str(refused.value).startswith("'given.safetensors' must be a ")


@pytest.mark.parametrize("tokenizer", [torch.zeros(3, 3, dtype=torch.uint8), torch.zeros(9)])
def test_a_tokenizer_that_is_none_does_not_make_a_umt5(tokenizer: torch.Tensor, toyworld: Path, tmp_path: Path) -> None:
    state = load_file(toyworld / "toyworld_te_fp16.safetensors") | {"spiece_model": tokenizer}
    with pytest.raises(ValueError, match=r"no tokenizer \(spiece_model\)"):
        text_formats.read_text_encoder(write(tmp_path, state))
