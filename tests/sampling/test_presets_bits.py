"""Every causal recipe, to the bit: branches, re-runs, resumed films, memories in files and in RAM."""

from __future__ import annotations

import pytest
import torch

from .rolling_films import FILMS, clip, draws, empty, ours

pytestmark = pytest.mark.comfy

STORED = {"longlive_1": "int8", "longlive_2, cuts and pins": "4bit", "custom": "int8", "self_forcing": "4bit"}


def tensors_of(memory) -> list[torch.Tensor]:
    found = [memory.tail, *(block.latents for block in (*memory.blocks, *memory.archive))]
    for block in (*memory.blocks, *memory.archive):
        for kv in (block.kv, block.negative_kv):
            for layer in kv.layers if kv else ():
                found += [*layer.k.tensors().values(), *layer.v.tensors().values()]
    return [tensor for tensor in found if tensor is not None]


def other_noise(film):
    def of(chunk: int):
        draw = draws(film)(chunk)
        return lambda: -draw()

    return of


@pytest.mark.parametrize("name", FILMS)
def test_one_memory_serves_any_number_of_clips_and_is_never_changed(name):
    """Two samplers fed the same memory give the clips of two separate runs; running one twice gives the same bits."""
    film = FILMS[name]
    precision = STORED.get(name, "model")
    start = 2 * film.chunks // 3  # something has been forgotten, or is about to be
    _, memory = clip(film, empty(film, precision=precision), start)
    before, fields = [tensor.clone() for tensor in tensors_of(memory)], memory.__dict__.copy()

    left, after = clip(film, memory, film.chunks - start)
    right, _ = clip(film, memory, film.chunks - start, noise=other_noise(film))
    again, after_again = clip(film, memory, film.chunks - start)
    assert torch.equal(left, again) and not torch.allclose(left, right, atol=0.1)
    assert all(map(torch.equal, tensors_of(after), tensors_of(after_again)))
    assert all(map(torch.equal, before, tensors_of(memory))) and fields == memory.__dict__

    _, separate = clip(film, empty(film, precision=precision), start)  # a run that never saw the left clip
    assert torch.equal(right, clip(film, separate, film.chunks - start, noise=other_noise(film))[0])


@pytest.mark.parametrize("name", FILMS)
def test_a_film_made_in_clips_saved_and_loaded_in_between_is_the_unbroken_film(name, tmp_path):
    from pack.nodes.memory.files import load_memory, save_memory

    film, precision = FILMS[name], STORED.get(name, "model")
    unbroken, end = clip(film, empty(film, precision=precision), film.chunks)
    memory, clips = empty(film, precision=precision), []
    for i, chunks in enumerate((1, film.chunks // 2, film.chunks - film.chunks // 2 - 1)):
        latents, memory = clip(film, load_memory(save_memory(memory, tmp_path / f"{i}.safetensors")), chunks)
        clips.append(latents)
    assert torch.equal(torch.cat(clips, 2), unbroken)
    assert all(map(torch.equal, tensors_of(memory), tensors_of(end)))


@pytest.mark.parametrize("name", FILMS)
def test_memory_in_ram_makes_the_same_film(name):
    film = FILMS[name]
    films = [ours(film, empty(film, placement=placement, precision=STORED.get(name, "model")))
             for placement in ("vram", "ram")]
    (in_vram, memory), (in_ram, other) = films
    assert torch.equal(in_vram, in_ram)
    assert all(map(torch.equal, tensors_of(memory), tensors_of(other)))


@pytest.mark.parametrize("precision", ["model", "int8", "4bit"])
def test_seeded_noise_belongs_to_the_chunk_not_to_the_clip(precision):
    """A clip sampled alone from the memory before it, as a re-roll does, with a seed: no noise is handed in."""
    film = FILMS["toyworld"]
    unbroken, _ = clip(film, empty(film, precision=precision), 4, noise=None)
    first, memory = clip(film, empty(film, precision=precision), 2, noise=None)
    for _ in range(2):
        second, _ = clip(film, memory, 2, noise=None)
        assert torch.equal(torch.cat((first, second), 2), unbroken)


def test_cfg_keeps_to_the_same_rules(tmp_path):
    from pack.nodes.memory.files import load_memory, save_memory

    from .rolling_films import text

    film, guided = FILMS["longlive_1"], {"negative": [[text(8), {}]], "cfg": 3.0}
    unbroken, _ = clip(film, empty(film), 4, **guided)
    plain, _ = clip(film, empty(film), 4)
    first, memory = clip(film, empty(film, placement="ram"), 2, **guided)
    second, _ = clip(film, load_memory(save_memory(memory, tmp_path / "m.safetensors")), 2, **guided)
    assert torch.equal(torch.cat((first, second), 2), unbroken)
    assert not torch.allclose(plain, unbroken, atol=0.1)
