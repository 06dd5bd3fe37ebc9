"""Makes toyworld_te_fp16.safetensors: a tiny UMT5-format encoder with fixed random weights and a word-level tokenizer.

One T5 block whose two heads look at the previous and at the next token (q and k are zero: attention is purely
positional), so "blue" in "blue hat" and "blue" in "blue square" get different vectors. Nothing is trained; everything
follows from one seed.

    python make_text_encoder.py OUT.safetensors
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from world import caption_table

MODEL_DIM, HEADS, HEAD_DIM, FEED_FORWARD_DIM = 4096, 2, 8, 8
SEED = 20250
VOCABULARY = 200  # asked for; sentencepiece finds 113 pieces
UNTRAINED_WORDS = (  # in the tokenizer only
    "and", "or", "on", "at", "of", "to", "from", "with", "without", "under", "over", "near", "big", "small", "happy",
    "two", "friends", "morning", "evening", "video", "scene", "shot", "camera", "slow", "fast", "close", "wide", "view",
    "then", "again", "same", "character",
)  # fmt: skip
PREVIOUS_BUCKET, SAME_BUCKET, NEXT_BUCKET = 1, 0, 17  # of T5's 32 relative positions
NEIGHBOUR_RMS, FEED_FORWARD_RMS = 0.7, 0.3  # size of what the two sub-layers add


def train_tokenizer(captions: list[str]) -> bytes:
    """A sentencepiece model in which every word of the world is one piece and other words fall back to characters."""
    words = sorted({word for caption in captions for word in caption.split()} | set(UNTRAINED_WORDS))
    lines: list[str] = []
    for word in words:
        lines += [word, f"{word} {word}", f"the {word}"] * 60
    lines += [captions[row] for row in np.random.default_rng(0).integers(0, len(captions), 3000)]
    lines += list("abcdefghijklmnopqrstuvwxyz0123456789,.!?'-:;()") * 40
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="unigram",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        max_sentencepiece_length=16,
        num_threads=1,
        minloglevel=2,
        user_defined_symbols=["\u2581" + word for word in words],
    )
    return out.getvalue()


def make_weights(vocabulary: int) -> dict[str, Tensor]:
    """The encoder's tensors under UMT5's names, float32."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inner = HEADS * HEAD_DIM
    attention, dense = "encoder.block.0.layer.0.", "encoder.block.0.layer.1."
    embedding = normal(vocabulary, MODEL_DIM)
    embedding[0] = 0
    return {
        "shared.weight": embedding,
        attention + "layer_norm.weight": torch.ones(MODEL_DIM),
        attention + "SelfAttention.q.weight": torch.zeros(inner, MODEL_DIM),
        attention + "SelfAttention.k.weight": torch.zeros(inner, MODEL_DIM),
        attention + "SelfAttention.v.weight": normal(inner, MODEL_DIM) / MODEL_DIM**0.5,
        attention + "SelfAttention.o.weight": normal(MODEL_DIM, inner) * (NEIGHBOUR_RMS / HEAD_DIM**0.5),
        attention + "SelfAttention.relative_attention_bias.weight": _neighbour_bias(),
        dense + "layer_norm.weight": torch.ones(MODEL_DIM),
        dense + "DenseReluDense.wi_0.weight": normal(FEED_FORWARD_DIM, MODEL_DIM) / MODEL_DIM**0.5,
        dense + "DenseReluDense.wi_1.weight": normal(FEED_FORWARD_DIM, MODEL_DIM) / MODEL_DIM**0.5,
        dense + "DenseReluDense.wo.weight": normal(MODEL_DIM, FEED_FORWARD_DIM)
        * (FEED_FORWARD_RMS / FEED_FORWARD_DIM**0.5),
        "encoder.final_layer_norm.weight": torch.ones(MODEL_DIM),
    }


def make_text_encoder(path: Path) -> None:
    """Write the text encoder and its tokenizer to one safetensors file, float16."""
    model = train_tokenizer(caption_table()[0])
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    tensors = {key: value.half().contiguous() for key, value in make_weights(pieces).items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(model), dtype=torch.uint8).clone()
    save_file(tensors, path, metadata={"format": "pt", "model_type": "umt5"})


def _neighbour_bias() -> Tensor:
    """Head 0 sees the previous token, head 1 the next; a token without that neighbour sees itself. [32, HEADS]."""
    bias = torch.full((32, HEADS), -20.0)
    bias[PREVIOUS_BUCKET, 0] = 10.0
    bias[NEXT_BUCKET, 1] = 10.0
    bias[SAME_BUCKET] = 0.0
    return bias


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    make_text_encoder(parser.parse_args().out)
