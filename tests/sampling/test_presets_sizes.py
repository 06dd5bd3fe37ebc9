"""What a memory takes is known before, for every causal recipe; and how near stored keys and values are to the real."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from .rolling_films import (
    FILMS,
    HEAD_DIM,
    HEADS,
    HEIGHT,
    LAYERS,
    TOKENS,
    WIDTH,
    channels_of,
    clip,
    empty,
    model,
    ours,
    recipe,
    text,
)

pytestmark = pytest.mark.comfy


def stored_as(memory, block) -> str:
    """The sink keeps 8 bits where the rest has 4."""
    is_sink = block.start < memory.spec.sink_latents
    return "int8" if memory.spec.precision == "4bit" and is_sink else memory.spec.precision


def predicted(memory) -> int:
    from pack.nodes.memory.kv_cache import kv_bytes

    return sum(kv_bytes(LAYERS, HEADS, HEAD_DIM, block.length * TOKENS, stored_as(memory, block), 4)
               for block in memory.blocks)


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
@pytest.mark.parametrize("name", FILMS)
def test_kv_and_file_have_the_bytes_that_were_predicted(name, precision, tmp_path):
    from pack.nodes.memory.files import file_bytes, save_memory
    from pack.nodes.memory.state import memory_bytes
    from safetensors import safe_open

    _, memory = ours(FILMS[name], empty(FILMS[name], precision=precision))
    latents, kv = memory_bytes(memory)
    assert kv == predicted(memory) == sum(block.kv.nbytes for block in memory.blocks)
    assert latents == 4 * HEIGHT * WIDTH * channels_of(FILMS[name]) * (
        sum(block.length for block in memory.blocks) + memory.tail.shape[1])
    for with_kv in (True, False):
        with safe_open(str(save_memory(memory, tmp_path / "m.safetensors", with_kv)), framework="pt") as file:
            written = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        assert written == file_bytes(memory, with_kv)
    assert file_bytes(memory) - file_bytes(memory, with_kv=False) == kv


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("placement", ["vram", "ram"])
@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
def test_comfyui_is_asked_for_what_the_hook_will_hold(precision, placement, kinds):
    """K/V of a full memory and of the chunk being committed, or two slots and a layer; and a layer's joined K/V."""
    from pack.nodes.common.compat import model_facts
    from pack.nodes.memory.kv_cache import pack_layer, recall_bytes
    from pack.nodes.sampling.bridge import device_bytes
    from pack.nodes.sampling.prefetch import LayerPrefetch

    film = FILMS["longlive_1"]
    guided = {"negative": [[text(8), {}]], "cfg": 3.0} if kinds == 2 else {}
    _, memory = clip(film, empty(film, precision=precision, placement=placement), film.chunks, **guided)
    blocks = [kv for block in memory.blocks for kv in (block.kv, block.negative_kv) if kv is not None]
    chunk = torch.zeros(1, TOKENS * 3, HEADS, HEAD_DIM)
    committed = pack_layer(chunk, chunk, "int8" if precision == "4bit" else precision)
    layers = 1 if placement == "ram" else LAYERS
    held = kinds * layers * (committed.k.nbytes + committed.v.nbytes)
    if placement == "vram":
        held += sum(kv.nbytes for kv in blocks)
    else:
        held += sum(slot.arrived.nbytes for slot in LayerPrefetch(blocks, torch.device("cpu")).slots)
    as_stored = (precision, placement) == ("model", "vram")
    held += recall_bytes(HEADS, HEAD_DIM, 9 * TOKENS, 3 * TOKENS, 4, as_stored, kinds)
    asked = device_bytes(memory.spec, model_facts(model(16)), TOKENS, 3, kinds)
    assert abs(asked - held) <= 512 * 8 * len(blocks)  # a slot's tensors begin at multiples of 256 bytes


@pytest.mark.parametrize(("change", "forward"), [("keep", 3), ("recache", 9)])
def test_the_reserve_reaches_comfyuis_estimate(change, forward):
    """As latents beyond the longest forward: recaching reads the window and the chunk before it at once."""
    from pack.nodes.common.compat import model_facts
    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.state import begin_clip
    from pack.nodes.sampling.bridge import _reserve, device_bytes

    film = FILMS["longlive_1"]
    _, memory = clip(film, empty(film, prompt_change=change), 5)
    memory = begin_clip(memory, memory.geometry, memory.model_key, text(8))
    facts, patcher = model_facts(model(16)), model(16).model
    reserve, asked = _reserve(facts, memory, Geometry(16, HEIGHT, WIDTH), 3, 1), []
    reserve(lambda _model, shape, _conds: asked.append(shape), patcher, [1, 16, 3, HEIGHT, WIDTH], None)
    per_latent = patcher.memory_required([1, 16, 1, HEIGHT, WIDTH])
    room = patcher.memory_required(asked[0]) - forward * per_latent
    size = device_bytes(memory.spec, facts, TOKENS, 3, 1)
    assert size <= room < size + 1.01 * per_latent


def errors(packed, exact) -> float:
    from pack.nodes.memory.kv_quant import unpack

    return float((unpack(packed, torch.float32) - unpack(exact, torch.float32)).norm() / exact.data.norm())


@pytest.mark.parametrize(("precision", "key_limit", "value_limit"), [("int8", 0.008, 0.008), ("4bit", 0.1, 0.1)])
def test_stored_keys_and_values_are_near_the_exact_ones(precision, key_limit, value_limit):
    """Of a model's own keys and values, per layer, in parts of their norm; and the film that is made with them."""
    film = FILMS["longlive_1"]
    exact_film, _ = clip(film, empty(film, sink_s=0.0), film.chunks)
    x0 = exact_film[:, :, :3]
    kept, stored = (first_chunk(film, x0, kind) for kind in ("model", precision))
    for layer, exact_layer in zip(stored.layers, kept.layers, strict=True):
        assert 0 < errors(layer.k, exact_layer.k) < key_limit
        assert 0 < errors(layer.v, exact_layer.v) < value_limit
    stored_film, _ = clip(film, empty(film, sink_s=0.0, precision=precision), film.chunks)
    drift = (stored_film - exact_film).norm() / exact_film.norm()
    assert 1e-5 < drift < {"int8": 0.002, "4bit": 0.02}[precision]


def first_chunk(film, x0: torch.Tensor, precision: str):
    """The K/V of a chunk behind nothing, as one clean forward of the real model hands them out."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
    from pack.nodes.sampling.bridge_hook import MemoryHook

    hook, options = MemoryHook(), {}
    hook.collect((precision,))
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "videomemory", hook, options)
    with torch.inference_mode():
        model(channels_of(film)).model.diffusion_model(x0, torch.zeros(1), text(), transformer_options=options)
    return hook.caches(0)[0]


def test_recaching_reads_the_chunk_that_fell_out_last_and_does_not_store_it():
    """LongLive 1 at a prompt switch: window and the chunk before it in one forward behind the sink."""
    from pack.nodes.memory.state import begin_clip
    from pack.nodes.sampling.chunk_loop import rebuild

    film, asked = FILMS["longlive_1"], []
    _, memory = clip(film, empty(film, prompt_change="recache"), 5)
    assert [block.start for block in memory.blocks] == [0, 9, 12]
    assert [(block.start, block.kv) for block in memory.archive] == [(6, None)]
    switched = begin_clip(memory, memory.geometry, memory.model_key, text(8))

    def encode(x0, so_far, precisions, prompt):
        assert prompt is None  # the new one
        asked.append((x0, [block.start for block in so_far.blocks], so_far.latents_done, precisions))
        return tuple((f"new {i}", None) for i, kept in enumerate(precisions) if kept)

    rebuilt = rebuild(SimpleNamespace(encode=encode, device="cpu", has_negative=False), switched)
    (x0, sink, done, precisions), = asked
    assert torch.equal(x0[0], torch.cat([memory.archive[0].latents, *(b.latents for b in memory.blocks[1:])], 1))
    assert (sink, done, precisions) == ([0], 6, (None, "model", "model"))
    assert [block.kv for block in rebuilt.blocks[1:]] == ["new 1", "new 2"]
    assert rebuilt.blocks[0].kv is memory.blocks[0].kv and rebuilt.archive[0].kv is None


def test_recaching_does_not_reach_behind_a_scene_cut():
    from pack.nodes.memory.state import begin_clip
    from pack.nodes.sampling.chunk_loop import rebuilt_together

    film = FILMS["longlive_1"]
    _, memory = clip(film, empty(film, prompt_change="recache"), 4)
    _, memory = clip(film, memory, 1, is_cut=True)
    switched = begin_clip(memory, memory.geometry, memory.model_key, text(8))
    assert [[block.start for block in group] for group in rebuilt_together(switched, False)] == [[12]]
    assert recipe(film).sink == 3
