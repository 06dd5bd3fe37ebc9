"""Keys and values that rest in RAM, brought to the device one layer ahead of the layer that computes.

Two slots, each with room for one layer of all remembered chunks: while the model computes with one layer, the next one
travels on a stream of its own. On CUDA a slot has two buffers, pinned RAM to leave from (what rests in RAM may be
pageable or a mapped file) and device memory to arrive in; elsewhere the same steps run one after the other. Nothing is
computed here, so that the result is bit-equal to a memory that lies on the device.

The order on CUDA, for a slot:  host fills `leaving` -> side stream copies to `arrived` -> compute stream reads.
    host fills       only after the slot's last copy has finished     (sent.synchronize)
    side stream      only after the slot's last layer has been read   (wait_event(read))
    compute stream   only after this copy has finished                (wait_event(sent))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..memory.kv_cache import BlockKV, LayerKV

ALIGNMENT = 256  # bytes; where a tensor begins inside a slot
SLOTS = 2


class LayerPrefetch:
    """The layers of some chunks' caches, in order, on the device; layer i + 1 travels while layer i is used."""

    def __init__(self, blocks: Sequence[BlockKV], device: torch.device) -> None:
        self.blocks = tuple(blocks)
        self.layers = len(self.blocks[0].layers)
        size = layer_bytes(self.blocks)
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.slots = [_Slot(size, device, stream) for _ in range(SLOTS)]
        self.turn = 0
        self.coming: int | None = None  # the layer that lies, or will soon lie, in the slot whose turn it is

    def layer(self, i: int) -> tuple[LayerKV, ...]:
        """Layer i of every block, packed, on the device. Valid until layer() is called again: read it before."""
        if self.coming != i:
            self._send(i)
        here = self.slots[self.turn]
        here.receive()
        self.turn = (self.turn + 1) % SLOTS
        self.slots[self.turn].mark_read()  # whatever reads the layer before this one has been queued by now
        self._send((i + 1) % self.layers)  # after the last layer: the first one, for the next forward
        return here.layers

    def _send(self, i: int) -> None:
        self.slots[self.turn].send([block.layers[i] for block in self.blocks])
        self.coming = i


class _Slot:
    """Room for one layer: uint8 [size] to leave from and uint8 [size] to arrive in (one and the same on the CPU)."""

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.stream, self.device = stream, device
        self.arrived = torch.empty(size, dtype=torch.uint8, device=device)
        self.leaving = self.arrived if device.type == "cpu" else _host_buffer(size, pinned=stream is not None)
        self.layers: tuple[LayerKV, ...] = ()  # what was sent last, as views of `arrived`
        if stream is not None:
            self.sent, self.read = torch.cuda.Event(), torch.cuda.Event()
            stream.wait_stream(torch.cuda.current_stream(device))  # `arrived` may be memory that was just let go of
            self.arrived.record_stream(stream)  # and is given to nobody else before the last copy has finished

    def send(self, layers: list[LayerKV]) -> None:
        """Fill the slot with these layers."""
        if self.stream is not None:
            self.sent.synchronize()
        start = 0

        def place(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal start
            where = slice(start, start + tensor.nbytes)
            start += _aligned(tensor.nbytes)
            self.leaving[where].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            return self.arrived[where].view(tensor.dtype).view(tensor.shape)

        self.layers = tuple(LayerKV(layer.k.map(place), layer.v.map(place)) for layer in layers)
        self._copy()

    def _copy(self) -> None:
        if self.stream is None:
            if self.leaving is not self.arrived:
                self.arrived.copy_(self.leaving)
            return
        self.stream.wait_event(self.read)
        with torch.cuda.stream(self.stream):
            self.arrived.copy_(self.leaving, non_blocking=True)
            self.sent.record(self.stream)

    def receive(self) -> None:
        """Let the compute stream wait for the copy."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self.sent)

    def mark_read(self) -> None:
        """What the compute stream was given so far is all that reads this slot."""
        if self.stream is not None:
            self.read.record(torch.cuda.current_stream(self.device))


def layer_bytes(blocks: Sequence[BlockKV]) -> int:
    """Bytes of one slot: one layer of all these chunks. Two slots lie on the device and, on CUDA, in pinned RAM."""
    return sum(_aligned(tensor.nbytes) for block in blocks for tensor in _tensors(block.layers[0]))


def _tensors(layer: LayerKV) -> list[torch.Tensor]:
    return [*layer.k.tensors().values(), *layer.v.tensors().values()]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _host_buffer(size: int, pinned: bool) -> torch.Tensor:
    """RAM to copy from; pageable where the system refuses to pin as much: slower, not different."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)
