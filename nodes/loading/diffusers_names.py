"""Diffusion models in diffusers' names, in ComfyUI's: renamed, and what diffusers splits put together again.

A rule's replacement may name a piece in brackets: `img_attn.qkv[q]` is the upper part of `img_attn.qkv`.
Sources, for the names alone: diffusers' scripts convert_wan_to_diffusers.py, convert_ltx_to_diffusers.py,
convert_hunyuan_video_to_diffusers.py and convert_hunyuan_video1_5_to_diffusers.py, read backwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.errors import message
from .files import TensorHeader
from .quant_state import SOURCE_DTYPES

PIECES = "qkvm"  # from top to bottom: query, key, value, feed-forward
_PIECE = re.compile(r"\[([qkvm])\]")


@dataclass(frozen=True)
class Naming:
    """markers: the names that prove it. rules: (pattern, replacement), each applied to every name, in order.

    swapped: names whose halves stand the other way round (scale before shift).
    """

    markers: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    swapped: tuple[str, ...] = ()


_WAN = Naming(
    ("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight", "scale_shift_table"),
    ((r"^condition_embedder\.time_proj\.", "time_projection.1."),
     (r"^condition_embedder\.(time|text)_embedder\.linear_1\.", r"\1_embedding.0."),
     (r"^condition_embedder\.(time|text)_embedder\.linear_2\.", r"\1_embedding.2."),
     (r"^condition_embedder\.image_embedder\.pos_embed$", "img_emb.emb_pos"),
     (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
     (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
     (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
     (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
     (r"^proj_out\.", "head.head."),
     (r"^scale_shift_table$", "head.modulation"),
     (r"^(vace_blocks\.\d+)\.proj_in\.", r"\1.before_proj."),
     (r"^(vace_blocks\.\d+)\.proj_out\.", r"\1.after_proj."),
     (r"\.scale_shift_table$", ".modulation"),
     (r"\.norm2\.", ".norm3."),
     (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
     (r"\.ffn\.net\.2\.", ".ffn.2."),
     (r"\.attn2\.norm_added_k\.", ".cross_attn.norm_k_img."),
     (r"\.attn2\.add_([kv])_proj\.", r".cross_attn.\1_img."),
     (r"\.attn1\.", ".self_attn."),
     (r"\.attn2\.", ".cross_attn."),
     (r"_attn\.to_out\.0\.", "_attn.o."),
     (r"_attn\.to_([qkv])\.", r"_attn.\1.")))

_LTX = Naming(
    ("proj_in.weight", "time_embed.emb.timestep_embedder.linear_1.bias", "transformer_blocks.0.attn2.norm_k.weight",
     "scale_shift_table"),
    ((r"^proj_in\.", "patchify_proj."),
     (r"^time_embed\.", "adaln_single."),
     (r"\.norm_([qk])\.", r".\1_norm.")))

_MLP = ((r"\.linear_1\.", ".in_layer."), (r"\.linear_2\.", ".out_layer."))
_HUNYUAN_RULES = (
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder_2\.norm\.", "byt5_in.layernorm."),
    (r"^context_embedder_2\.linear_", "byt5_in.fc"),
    (r"^image_embedder\.norm_in\.", "vision_in.proj.0."),
    (r"^image_embedder\.linear_1\.", "vision_in.proj.1."),
    (r"^image_embedder\.linear_2\.", "vision_in.proj.3."),
    (r"^image_embedder\.norm_out\.", "vision_in.proj.4."),
    (r"^cond_type_embed\.", "cond_type_embedding."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^context_embedder\.proj_in\.", "txt_in.input_embedder."),
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.", "txt_in.t_embedder."),
    (r"^context_embedder\.time_text_embed\.text_embedder\.", "txt_in.c_embedder."),
    (r"^time(?:_text)?_embed\.timestep_embedder\.", "time_in."),
    (r"^time(?:_text)?_embed\.timestep_embedder_r\.", "time_r_in."),
    (r"^time_text_embed\.guidance_embedder\.", "guidance_in."),
    (r"^time_text_embed\.text_embedder\.", "vector_in."),
    *((rf"^({part}(?:_embedder)?){pattern}", rf"\1{new}")
      for part in (r"time_in", r"time_r_in", r"guidance_in", r"vector_in", r"txt_in\.t", r"txt_in\.c")
      for pattern, new in _MLP),
    (r"^context_embedder\.token_refiner\.refiner_blocks\.", "txt_in.individual_token_refiner.blocks."),
    (r"^(txt_in\..+)\.attn\.to_([qkv])\.", r"\1.self_attn.qkv[\2]."),
    (r"^(txt_in\..+)\.attn\.to_out\.0\.", r"\1.self_attn.proj."),
    (r"^(txt_in\..+)\.ff\.net\.0\.proj\.", r"\1.mlp.0."),
    (r"^(txt_in\..+)\.ff\.net\.2\.", r"\1.mlp.2."),
    (r"^(txt_in\..+)\.norm_out\.linear\.", r"\1.adaLN_modulation.1."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_([qkv])\.", r"single_blocks.\1.linear1[\2]."),
    (r"^single_transformer_blocks\.(\d+)\.proj_mlp\.", r"single_blocks.\1.linear1[m]."),
    (r"^single_transformer_blocks\.(\d+)\.proj_out\.", r"single_blocks.\1.linear2."),
    (r"^single_transformer_blocks\.(\d+)\.norm\.linear\.", r"single_blocks.\1.modulation.lin."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight$", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight$", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.norm1\.linear\.", ".img_mod.lin."),
    (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
    (r"^(double.+)\.attn\.to_([qkv])\.", r"\1.img_attn.qkv[\2]."),
    (r"^(double.+)\.attn\.add_([qkv])_proj\.", r"\1.txt_attn.qkv[\2]."),
    (r"\.attn\.norm_q\.weight$", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight$", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight$", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight$", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
    (r"\.ff\.net\.2\.", ".img_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
    (r"\.ff_context\.net\.2\.", ".txt_mlp.2."))
_HUNYUAN = Naming(
    ("x_embedder.proj.weight", "context_embedder.token_refiner.refiner_blocks.0.norm1.weight",
     "transformer_blocks.0.norm1_context.linear.weight"),
    _HUNYUAN_RULES, ("final_layer.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.bias"))
NAMINGS = (_WAN, _LTX, _HUNYUAN)


def comfy_names(headers: Mapping[str, TensorHeader]) -> dict[str, TensorHeader] | None:
    """The tensors by ComfyUI's names, or None where they have no names of diffusers that are known.

    Raises ValueError where packed tensors would have to be put together.
    """
    naming = next((naming for naming in NAMINGS if all(marker in headers for marker in naming.markers)), None)
    if naming is None:
        return None
    pieces: dict[str, dict[str, TensorHeader]] = {}
    for key, header in headers.items():
        name = _renamed(key, naming)
        piece = _PIECE.search(name)
        pieces.setdefault(_PIECE.sub("", name), {})[piece[1] if piece else ""] = header
    return {name: replace(_join(name, found), swapped=name in naming.swapped) for name, found in pieces.items()}


def spellings(name: str) -> list[str]:
    """A name of diffusers as the models have it in ComfyUI that keep every layer whole: Wan and LTX-Video."""
    return [_renamed(name, naming) for naming in (_WAN, _LTX)]


def _renamed(name: str, naming: Naming) -> str:
    for pattern, replacement in naming.rules:
        name = re.sub(pattern, replacement, name)
    return name


def ltx_positions(path: Path, names: Container[str]) -> tuple[dict[str, str], str]:
    """The metadata that diffusers leaves out of LTX-Video, and a line of the report about it.

    Since version 0.9.5 the first latent frame stands for one moment, not for eight. That shows in the pipeline's name
    in model_index.json, or in the 48 layers that only later versions have.
    """
    try:
        index = json.loads((path.parent.parent / "model_index.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        index = None
    named = isinstance(index, dict) and index.get("_class_name") == "LTXConditionPipeline"
    causal = named or "transformer_blocks.47.attn1.to_q.weight" in names
    return ({"config": json.dumps({"transformer": {"causal_temporal_positioning": causal}})},
            f"time positions: {'as since' if causal else 'as before'} LTX-Video 0.9.5")


def _join(name: str, found: Mapping[str, TensorHeader]) -> TensorHeader:
    """One header for pieces that lie below each other."""
    first, *others = [found[piece] for piece in sorted(found, key=PIECES.find)]
    if not others:
        return first
    kinds = {(header.dtype, header.shape[1:]) for header in (first, *others)}
    if len(kinds) > 1 or first.dtype not in SOURCE_DTYPES:
        raise ValueError(message(
            f"The parts of {name} must fit below each other", ", ".join(f"{dtype} [n, {list(rest)}]"
                                                                        for dtype, rest in sorted(kinds, key=str)),
            "fp32, fp16 or bf16, of one width",
            "diffusers' files of this model cannot be packed: take the fp16 or bf16 one, or the file for ComfyUI."))
    return replace(first, shape=(sum(header.shape[0] for header in (first, *others)), *first.shape[1:]),
                   bytes=sum(header.bytes for header in (first, *others)), more=tuple(header.key for header in others))
