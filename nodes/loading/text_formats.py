"""Which text encoder a file is, the sizes that its tensors imply, and which models it serves.

ComfyUI brings the tokenizers of all of them but UMT5, whose file carries its own. A tokenizer fits one vocabulary, so
the number of rows of the embedding tells families apart that are built alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.errors import message
from .files import TensorHeader
from .formats import Checkpoint, Family, recognise
from .text_foreign import name_file

CLIP_HEAD, LLAMA_HEAD = 64, 128  # values per attention head, in every size of these families
BIAS = "SelfAttention.relative_attention_bias.weight"


@dataclass(frozen=True)
class TextFamily(Family):
    """A kind of text encoder.

    part: its name inside ComfyUI's models. vocabulary: rows of its embedding, 0 where the file's own tokenizer says.
    optional: beginning of names that may be missing all together, and what that means.
    """

    part: str = ""
    vocabulary: int = 0
    optional: tuple[str, str] | None = None


_T5 = ("shared.weight", f"encoder.block.0.layer.0.{BIAS}")
_T5_KEEP = (("shared", "embedding"), ("relative_attention_bias", "position bias"))
_T5_IGNORE = ("encoder.embed_tokens.", "decoder.", "lm_head.")
_T5_MIX = {"mixed": r"SelfAttention\.[vo]\.", "late": r"DenseReluDense\."}
_CLIP = ("text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight")
_LLAMA_MIX = {"mixed": r"self_attn\.[vo]_proj\.", "late": r"layers\.\d+\.mlp\."}
_LLAMA = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")

UMT5 = TextFamily("UMT5 text encoder", _T5, _T5_KEEP, _T5_IGNORE, part="umt5xxl", **_T5_MIX)
T5 = TextFamily("T5 v1.1 text encoder", _T5, _T5_KEEP, _T5_IGNORE, part="t5xxl", vocabulary=32128,
                **_T5_MIX)
BYT5 = TextFamily("ByT5 glyph text encoder", _T5, _T5_KEEP, _T5_IGNORE, part="byt5_small", vocabulary=1510,
                  **_T5_MIX)
CLIP_L = TextFamily(
    "CLIP-L text encoder", _CLIP, (("embedding", "embedding"), ("text_projection", "output projection")),
    ("text_model.embeddings.position_ids", "logit_scale", "vision_model.", "visual_projection."),
    part="clip_l", vocabulary=49408, optional=("text_projection.", "not used"),
    mixed=r"self_attn\.(v|out)_proj\.", late=r"\.mlp\.")
LLAVA = TextFamily("LLaVA-Llama-3 text encoder", _LLAMA, (("embed_tokens", "embedding"),), ("lm_head.",),
                   part="llama", vocabulary=128320, **_LLAMA_MIX)
QWEN_VL = TextFamily(
    "Qwen2.5-VL 7B text encoder", _LLAMA,
    (("embed_tokens", "embedding"), ("visual.patch_embed", "image embedding"), ("visual.merger", "image projection")),
    ("lm_head.",), part="qwen25_7b", vocabulary=152064, optional=("visual.", "no prompts with images"), **_LLAMA_MIX)
TEXT_ENCODERS = (UMT5, T5, BYT5, CLIP_L, LLAVA, QWEN_VL)

# Model families by what they read prompts with. Of those with the same files "auto" takes the first.
TYPES: dict[str, tuple[tuple[TextFamily, ...], ...]] = {
    "wan": ((UMT5,),),
    "ltxv": ((T5,),),
    "hunyuan_video": ((LLAVA, CLIP_L),),
    "hunyuan_video_15": ((QWEN_VL, BYT5),),
    "stable_diffusion": ((CLIP_L,),),
    "flux": ((T5, CLIP_L),),
    "mochi": ((T5,),),
    "chroma": ((T5,),),
    "sd3": ((T5,), (T5, CLIP_L)),
}


@dataclass(frozen=True)
class TextEncoder:
    """A recognised file. config: what ComfyUI's class of it must be told, from the tensors. family: as the file's."""

    checkpoint: Checkpoint
    family: TextFamily
    config: dict[str, Any]

    @property
    def absent(self) -> str:
        """The beginning of the optional names, where the file has none of them; else ""."""
        beginning, _ = self.family.optional or ("", "")
        return "" if any(name.startswith(beginning) for name in self.checkpoint.tensors) else beginning


def read_text_encoder(path: str | Path) -> TextEncoder:
    """Recognise a file by its header; raises ValueError, naming what it is, for anything but a known text encoder."""
    for markers, refine in ((_T5, _read_t5), (_CLIP, _read_clip), (_LLAMA, _read_llama)):
        checkpoint = recognise(path, (Family("text encoder", markers, ()),))
        if checkpoint is not None:
            family, config = refine(checkpoint)
            tensors = {name: header for name, header in checkpoint.tensors.items()
                       if not name.startswith(family.ignore)}
            return TextEncoder(replace(checkpoint, family=family, tensors=tensors), family, config)
    looked_for = "; ".join(
        f"{' or '.join(family.title for family in TEXT_ENCODERS if family.markers == markers)} ({', '.join(markers)})"
        for markers in (_T5, _CLIP, _LLAMA))
    got, do = name_file(path)
    raise ValueError(message(f"'{Path(path).name}' must be a text encoder", got, looked_for, do))


def resolve_type(encoders: Sequence[TextEncoder], asked: str) -> tuple[str, tuple[TextEncoder, ...]]:
    """The type that is meant, and the encoders in the order of TYPES; raises ValueError where they do not fit it.

    asked: a key of TYPES, or "auto" for the first one that is made of just these encoders.
    """
    if asked != "auto" and asked not in TYPES:
        raise ValueError(message("Load Text Encoder (NF4) needs a type", asked, ", ".join(("auto", *TYPES)),
                                 "Choose one of these."))
    for name in TYPES if asked == "auto" else (asked,):
        for families in TYPES[name]:
            ordered = tuple(encoder for family in families for encoder in encoders if encoder.family is family)
            if tuple(encoder.family for encoder in ordered) == families and len(ordered) == len(encoders):
                return name, ordered
    names = "; ".join(f"{name}: {' or '.join(map(_titles, families))}" for name, families in TYPES.items()
                      if asked in ("auto", name))
    raise ValueError(message(
        "Load Text Encoder (NF4) needs the text encoders of one model",
        f"{' and '.join(_article(encoder.family.title) for encoder in encoders)} for type '{asked}'", names,
        "Choose the missing file as second text encoder, 'none' for a superfluous one, or another type."))


def _read_t5(checkpoint: Checkpoint) -> tuple[TextFamily, dict[str, Any]]:
    """UMT5 has a position bias in every layer, the others one for all."""
    tensors = checkpoint.tensors
    layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.block.")})
    biases = sum(name.endswith(BIAS) and name.startswith("encoder.") for name in tensors)
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    vocabulary, width = _matrix(checkpoint, "shared.weight")
    spiece = tensors.get("spiece_model")
    has_tokenizer = spiece is not None and spiece.dtype == torch.uint8 and len(spiece.shape) == 1
    family = next((family for family in (T5, BYT5) if vocabulary == family.vocabulary and biases == 1), None)
    if biases == layers and has_tokenizer:
        family = UMT5
    if gated not in tensors or family is None:
        raise ValueError(message(
            f"'{checkpoint.path.name}' must be a text encoder whose tokenizer is there",
            f"a T5 with {biases} position bias{'es' * (biases != 1)} in {layers} layers, "
            f"{'gated' if gated in tensors else 'no gated'} feed-forward, a vocabulary of {vocabulary}, "
            f"{'a' if has_tokenizer else 'no'} tokenizer (spiece_model)",
            f"UMT5 (gated, a bias in every layer, with spiece_model); T5 v1.1 (gated, one bias, {T5.vocabulary}); "
            f"ByT5 glyph (gated, one bias, {BYT5.vocabulary})",
            "Choose a file as repackaged for ComfyUI, e.g. umt5_xxl_fp16.safetensors or t5xxl_fp16.safetensors."))
    heads = _matrix(checkpoint, f"encoder.block.0.layer.0.{BIAS}")[1]
    inner = _matrix(checkpoint, "encoder.block.0.layer.0.SelfAttention.q.weight")[0]
    return family, {
        "num_layers": layers, "d_model": width, "num_heads": heads, "d_kv": inner // heads,
        "d_ff": _matrix(checkpoint, gated)[0], "vocab_size": vocabulary,
        "model_type": "umt5" if family is UMT5 else "t5", "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}


def _read_clip(checkpoint: Checkpoint) -> tuple[TextFamily, dict[str, Any]]:
    vocabulary, width = _matrix(checkpoint, _CLIP[0])
    layers = len({name.split(".")[3] for name in checkpoint.tensors if name.startswith("text_model.encoder.layers.")})
    if vocabulary != CLIP_L.vocabulary or layers > 22:
        title = f"a {'CLIP-G' if layers > 30 else 'CLIP-H'}" if vocabulary == CLIP_L.vocabulary else "another CLIP"
        raise _another_size(checkpoint, f"{title} with {layers} layers and a vocabulary of {vocabulary}",
                            f"CLIP-L (12 layers, {CLIP_L.vocabulary})")
    return CLIP_L, {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": max(1, width // CLIP_HEAD),
        "intermediate_size": _matrix(checkpoint, _CLIP[1])[0],
        "max_position_embeddings": _matrix(checkpoint, "text_model.embeddings.position_embedding.weight")[0]}


def _read_llama(checkpoint: Checkpoint) -> tuple[TextFamily, dict[str, Any]]:
    tensors, layer = checkpoint.tensors, "model.layers.0."
    vocabulary, width = _matrix(checkpoint, _LLAMA[0])
    layers = len({name.split(".")[2] for name in tensors if name.startswith("model.layers.")})
    family = QWEN_VL if f"{layer}self_attn.k_proj.bias" in tensors else LLAVA
    others = (("post_feedforward_layernorm.weight", "Gemma"), ("self_attn.q_norm.weight", "Qwen3"))
    kind = next((kind for part, kind in others if layer + part in tensors), None)
    if kind or vocabulary != family.vocabulary:
        kind = kind or ("Qwen2.5" if family is QWEN_VL else "Llama or Mistral")
        raise _another_size(checkpoint, f"a {kind} with {layers} layers and a vocabulary of {vocabulary}",
                            f"LLaVA-Llama-3 as HunyuanVideo has it ({LLAVA.vocabulary}); Qwen2.5-VL 7B "
                            f"({QWEN_VL.vocabulary})")
    q, k, gate = (_matrix(checkpoint, f"{layer}{part}.weight")[0] for part in
                  ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))
    return family, {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": gate,
        "num_attention_heads": max(1, q // LLAMA_HEAD), "num_key_value_heads": max(1, k // LLAMA_HEAD)}


def _matrix(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    header: TensorHeader | None = checkpoint.tensors.get(name)
    if header is None or len(header.shape) != 2 or not all(header.shape):
        raise ValueError(message(
            f"'{checkpoint.path.name}' must be a whole text encoder",
            f"a file without {name}" if header is None else f"{name} of shape {list(header.shape)}",
            f"a matrix {name}, which gives the model's sizes", "Download it again."))
    return header.shape


def _another_size(checkpoint: Checkpoint, got: str, allowed: str) -> ValueError:
    return ValueError(message(f"'{checkpoint.path.name}' must be a text encoder of a video model that this node knows",
                              got, allowed, "Choose another file, or ComfyUI's Load CLIP for this one."))


def _titles(families: Sequence[TextFamily]) -> str:
    return " + ".join(family.title for family in families)


def _article(title: str) -> str:
    return f"a {title}"
