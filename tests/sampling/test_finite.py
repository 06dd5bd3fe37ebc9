"""A model that makes NaN: said after the first chunk or the first model, and nothing is remembered or kept of it."""

from __future__ import annotations

import pytest
import torch

from .counting_films import memory_of
from .counting_films import sample as latent_clip
from .latent_models import blocks_vae, picture
from .latent_models import model as latent_model
from .rolling_films import FILMS, HEIGHT, WIDTH, empty, model, text

pytestmark = pytest.mark.comfy

SAID = "needs a picture from the model, but got NaN or infinity; .*sage attention.*LoRA"
STEPS = 4  # of longlive_1, and then the clean pass


def broken(patcher, first: int):
    """(a MODEL whose forwards overflow from this one on, the list of those that were begun)"""
    from comfy.patcher_extension import WrappersMP

    begun = []

    def overflow(executor, *args, **kwargs):
        begun.append(0)
        made = executor(*args, **kwargs)
        return made if len(begun) < first else made * float("nan")

    patcher = patcher.clone()
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "overflow", overflow)
    return patcher, begun


def rolling_clip(patcher, memory):
    from pack.nodes.sampling.nodes import ClipSampler

    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(
            model=patcher, memory=memory, positive=[[text(), {}]], seed=1, width=8 * WIDTH, height=8 * HEIGHT,
            clip_seconds=3 * 3 * 4 / 16).args


@pytest.mark.parametrize("whole_chunks", [0, 1])
def test_a_causal_clip_ends_with_its_broken_chunk_and_keeps_those_before(whole_chunks, tmp_path):
    first = whole_chunks * (STEPS + 1) + 1
    patcher, begun = broken(model(16), first)
    with pytest.raises(ValueError, match=f"Clip Sampler {SAID}"):
        rolling_clip(patcher, empty(FILMS["longlive_1"]))
    assert len(begun) == first + STEPS - 1  # not committed
    assert len(list(tmp_path.rglob("*.safetensors"))) == whole_chunks


@pytest.mark.parametrize(("preset", "kind"), [("wan21_i2v_14b", "i2v"), ("wan22_i2v_14b", "i2v22"), ("svd", "svd")])
def test_an_ordinary_clip_is_neither_kept_nor_decoded(preset, kind, tmp_path, monkeypatch):
    import comfy.samplers

    coder, decoded = blocks_vae(preset), []
    monkeypatch.setattr(coder, "decode", decoded.append)
    with pytest.raises(ValueError, match=f"Clip Sampler {SAID}"):
        latent_clip(preset, memory_of(preset), model=broken(latent_model(kind), 2)[0], vae=coder,
                    start_image=picture(), sampler=comfy.samplers.sampler_object("euler"))
    assert not decoded and not list(tmp_path.rglob("*.safetensors"))


def test_a_clip_in_a_place_is_not_handed_on():
    from pack.tests.spatial.test_spatial_clip import sample

    with pytest.raises(ValueError, match=f"Spatial Clip Sampler {SAID}"):
        sample("ti2v", model=broken(latent_model("ti2v"), 1)[0])
