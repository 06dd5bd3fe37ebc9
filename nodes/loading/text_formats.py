"""Which text encoder a file is, by its tensors, and the configuration that they imply."""

from __future__ import annotations

from typing import Any

from ..common.errors import message
from .formats import Checkpoint, Family

UMT5 = Family(
    "UMT5 text encoder",
    ("shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    (("shared", "embedding"), ("relative_attention_bias", "position bias")),
    ignore=("encoder.embed_tokens.", "decoder.", "lm_head."))
TEXT_ENCODERS = (UMT5,)


def umt5_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """ComfyUI's T5 configuration, derived from the tensors, so that reduced encoders load too.

    Raises ValueError for a T5 that is not a gated UMT5, or that carries no tokenizer.
    """
    tensors = checkpoint.tensors
    layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.block.")})
    first = "encoder.block.0.layer.0.SelfAttention."
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    biased = sum(name.endswith("relative_attention_bias.weight") for name in tensors)
    if gated not in tensors or biased != layers or "spiece_model" not in tensors:
        raise ValueError(message(
            f"'{checkpoint.path.name}' must be a UMT5 text encoder with its tokenizer",
            f"a T5 with {biased} position biases in {layers} layers, "
            f"{'gated' if gated in tensors else 'no gated'} feed-forward, "
            f"{'a' if 'spiece_model' in tensors else 'no'} tokenizer (spiece_model)",
            "UMT5 as repackaged for ComfyUI, e.g. umt5_xxl_fp16.safetensors",
            "Choose a UMT5 file: T5-XXL (for Flux and others) does not fit Wan."))
    vocabulary, width = tensors["shared.weight"].shape
    heads = tensors[first + "relative_attention_bias.weight"].shape[1]
    return {
        "num_layers": layers, "d_model": width, "num_heads": heads,
        "d_kv": tensors[first + "q.weight"].shape[0] // heads, "d_ff": tensors[gated].shape[0],
        "vocab_size": vocabulary, "model_type": "umt5", "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
