"""Reads the tiny UMT5 file and encodes prompts exactly as ComfyUI's WanT5Model does.

Token ids plus </s> (1), padded with 0 to 512, attention masked, outputs of the padding set to zero. All formulas follow
T5 v1.1 / UMT5 (one table of relative position biases per layer).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PROMPT_TOKENS = 512  # what the DiT was made for
SHORT_TOKENS = 16  # enough for every prompt of the toy world and one padding token
BUCKETS, NEAR, FAR = 16, 8, 128  # per direction: buckets, distances with a bucket of their own, farthest distance


def position_bucket(distance: Tensor) -> Tensor:
    """T5's bucket of (key position - query position), long -> long in 0..31."""
    side = (distance > 0).long() * BUCKETS
    distance = distance.abs()
    logarithm = torch.log(distance.float().clamp(min=1) / NEAR) / math.log(FAR / NEAR)
    far = (NEAR + (logarithm * (BUCKETS - NEAR)).long()).clamp(max=BUCKETS - 1)
    return side + torch.where(distance < NEAR, distance, far)


class TextEncoder:
    """The tokenizer and the encoder of a UMT5-format state dict that carries its own `spiece_model`."""

    def __init__(self, state_dict: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        import sentencepiece

        model = state_dict["spiece_model"].numpy().tobytes()
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model, add_bos=False, add_eos=True)
        self.weights = {key: value.float().to(device) for key, value in state_dict.items() if key != "spiece_model"}
        blocks = {key.split(".")[2] for key in self.weights if key.startswith("encoder.block.")}
        self.layers = len(blocks)
        self.heads = self.weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
        self.device = device

    def token_ids(self, text: str) -> list[int]:
        """Token ids with the closing </s>."""
        return self.tokenizer.encode(text)

    def encode(self, text: str, length: int = PROMPT_TOKENS) -> Tensor:
        """A prompt as the DiT gets it, [1, length, 4096], zeros after the last token."""
        embedding = self.run(torch.tensor([self.token_ids(text)]))
        return F.pad(embedding, (0, 0, 0, length - embedding.shape[1]))

    def encode_short(self, text: str) -> tuple[Tensor, Tensor]:
        """The same conditioning in SHORT_TOKENS tokens -> ([1, 16, 4096], additive attention bias [1, 1, 1, 16]).

        The padding tokens are identical keys and values, so ONE zero token with bias log(how many) replaces them
        exactly. ValueError when the prompt has more than 15 tokens.
        """
        ids = self.token_ids(text)
        if len(ids) >= SHORT_TOKENS:
            raise ValueError(
                f"encode_short got {text!r}, {len(ids)} tokens; at most {SHORT_TOKENS - 1} fit. Use encode instead."
            )
        return self.encode(text, SHORT_TOKENS), padding_bias(torch.tensor([len(ids)]))[None, None].to(self.device)

    @torch.no_grad()
    def run(self, ids: Tensor) -> Tensor:
        """Prompts of equal length, ids [B, n] -> [B, n, 4096]; padding never influences real tokens."""
        weights = self.weights
        x = weights["shared.weight"][ids.to(self.device)]
        position = torch.arange(ids.shape[1], device=self.device)
        bucket = position_bucket(position[None] - position[:, None])
        for layer in range(self.layers):
            prefix = f"encoder.block.{layer}.layer."
            x = x + self._attention(prefix + "0.", x, bucket)
            x = x + self._feed_forward(prefix + "1.", x)
        return _rms_norm(x, weights["encoder.final_layer_norm.weight"])

    def _attention(self, prefix: str, x: Tensor, bucket: Tensor) -> Tensor:
        weights, attention = self.weights, prefix + "SelfAttention."
        x = _rms_norm(x, weights[prefix + "layer_norm.weight"])
        q, k, v = (
            F.linear(x, weights[f"{attention}{name}.weight"]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in "qkv"
        )  # each [B, heads, n, d_kv]
        bias = weights[attention + "relative_attention_bias.weight"][bucket].permute(2, 0, 1)  # [heads, n, n]
        y = torch.softmax(q @ k.transpose(2, 3) + bias, -1) @ v  # T5 does not scale q @ k
        return F.linear(y.transpose(1, 2).flatten(2), weights[attention + "o.weight"])

    def _feed_forward(self, prefix: str, x: Tensor) -> Tensor:
        weights, dense = self.weights, prefix + "DenseReluDense."
        x = _rms_norm(x, weights[prefix + "layer_norm.weight"])
        gate = F.gelu(F.linear(x, weights[dense + "wi_0.weight"]), approximate="tanh")
        return F.linear(gate * F.linear(x, weights[dense + "wi_1.weight"]), weights[dense + "wo.weight"])


def embed_captions(encoder: TextEncoder, captions: list[str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All prompts as in `encode_short` -> embeddings [n, 16, 4096] and biases [n, 16] (-1e4 = not attended)."""
    ids = [torch.tensor(encoder.token_ids(text)) for text in captions]
    lengths = torch.tensor([len(row) for row in ids])
    table = torch.zeros(len(ids), SHORT_TOKENS, 4096, dtype=dtype, device=encoder.device)
    for length in lengths.unique().tolist():
        for rows in torch.nonzero(lengths == length)[:, 0].split(512):
            embedding = encoder.run(torch.stack([ids[row] for row in rows.tolist()]))
            table[rows.to(encoder.device), :length] = embedding.to(dtype)
    return table, padding_bias(lengths, hidden=-1e4).to(encoder.device)


def padding_bias(lengths: Tensor, hidden: float = float("-inf")) -> Tensor:
    """Attention bias of short prompts: 0 for tokens, log(padding) for the one zero token, `hidden` after; [n, 16]."""
    position, lengths = torch.arange(SHORT_TOKENS)[None], lengths[:, None]
    bias = torch.where(position < lengths, 0.0, hidden)
    return torch.where(position == lengths, torch.log(PROMPT_TOKENS - lengths.float()), bias)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
