"""The derived cache of a memory: keys and values of every layer for each remembered chunk.

Keys are kept after the layer's norm and before rotary position, so that a block can be given any position later
(LongLive's relative RoPE; memory positions never grow with the film). K and V of one layer: [B, S, H, D] with S tokens
of the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .kv_quant import Packed, pack, packed_bytes, unpack


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one transformer layer for one chunk."""

    k: Packed
    v: Packed

    def to(self, device: torch.device | str) -> LayerKV:
        return LayerKV(*(packed.map(lambda tensor: tensor.to(device)) for packed in (self.k, self.v)))

    def unpack(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(k, v), each [B, S, H, D] in dtype on device; moved packed, unpacked there."""
        moved = self.to(device)
        return unpack(moved.k, dtype), unpack(moved.v, dtype)


@dataclass(frozen=True)
class BlockKV:
    """Keys and values of one chunk, one LayerKV per transformer layer.

    in_file: they lie in a mapped file and take no RAM. Without layers they were let go of for want of room
    (memory.shelf) and must be made again from the chunk's latents.
    """

    layers: tuple[LayerKV, ...]
    in_file: bool = False

    def to(self, device: torch.device | str) -> BlockKV:
        """The same cache on another device, or itself where all of it is there already."""
        sides = (side for layer in self.layers for side in (layer.k, layer.v))
        tensors = (tensor for side in sides for tensor in side.tensors().values())
        if all(tensor.device == torch.device(device) for tensor in tensors):
            return self
        return BlockKV(tuple(layer.to(device) for layer in self.layers))

    def rest_on(self, same: BlockKV) -> None:
        """Let go of these tensors for bit-equal ones that lie elsewhere: what the cache holds does not change.

        ComfyUI keeps the memory after every clip of a film as long as the film is on the canvas; a saved one takes no
        RAM when its tensors lie in the file that was saved, which is mapped.
        """
        object.__setattr__(self, "layers", same.layers)
        object.__setattr__(self, "in_file", True)

    def let_go(self) -> None:
        """Drop the tensors for every value that shares this cache."""
        object.__setattr__(self, "layers", ())

    @property
    def is_gone(self) -> bool:
        return not self.layers

    @property
    def nbytes(self) -> int:
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self.layers)


def pack_layer(k: torch.Tensor, v: torch.Tensor, precision: str) -> LayerKV:
    """Store one layer's k, v [B, S, H, D]; keys have their channel means taken out first."""
    return LayerKV(pack(k, precision, centre=precision != "model"), pack(v, precision))


def repacked(kv: BlockKV, precision: str) -> BlockKV:
    """The same cache stored in another precision, layer by layer, where it lies; itself where it has that already."""
    if all(layer.k.precision == precision for layer in kv.layers):
        return kv
    layers = []
    for layer in kv.layers:
        device = next(iter(layer.k.tensors().values())).device
        layers.append(pack_layer(*layer.unpack(torch.float32, device), precision))
    return BlockKV(tuple(layers))


def kv_bytes(layers: int, heads: int, head_dim: int, tokens: int, precision: str, dtype_bytes: int,
             batch: int = 1) -> int:
    """Bytes of one block's cache before it exists; equal to BlockKV.nbytes of a block with that many tokens.

    The common rule of thumb "context x hidden size x bytes x 2" is per layer: here all layers are counted.
    """
    k = packed_bytes(batch, tokens, heads, head_dim, precision, dtype_bytes, centre=precision != "model")
    v = packed_bytes(batch, tokens, heads, head_dim, precision, dtype_bytes)
    return layers * (k + v)


def recall_bytes(heads: int, head_dim: int, remembered: int, chunk: int, dtype_bytes: int, as_stored: bool,
                 batch: int = 1) -> int:
    """Scratch of one layer's remembered K and V on their way into the attention, traced; remembered, chunk: tokens.

    The joined keys and values of memory and chunk, in the compute dtype, one row per prompt; for the one chunk that is
    being unpacked, per value of K, four float32 temporaries of the turning and its result, and the unpacked K and V
    where the memory is packed or lies in RAM (not as_stored); and the rotation table of what is remembered.
    """
    if remembered == 0:
        return 0
    dim, table = heads * head_dim, head_dim // 2 * 4 * 4  # bytes per token: float32 2x2 per pair of channels
    per_value = 4 * 4 + dtype_bytes + (0 if as_stored else 2 * dtype_bytes)
    return batch * 2 * (remembered + chunk) * dim * dtype_bytes + chunk * dim * per_value + remembered * table
