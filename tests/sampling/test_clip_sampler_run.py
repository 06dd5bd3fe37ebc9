"""Clip Sampler while it runs: progress and previews of the whole clip, Cancel within a step, one memory on the card."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .rolling_films import FILMS, HEADS, HEIGHT, WIDTH, empty, model, text

pytestmark = pytest.mark.comfy

FILM = FILMS["longlive_1"]
FORWARDS = 5  # per chunk: four steps and the clean one
CLIP_S = 3 * 3 * 4 / 16  # three chunks


def sample(memory, seconds=CLIP_S, patcher=None, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(
            model=patcher or model(16), memory=memory, positive=[[text(), {}]], seed=1, width=8 * WIDTH,
            height=8 * HEIGHT, clip_seconds=seconds, **options).args


@pytest.fixture(scope="module")
def three_chunks():
    return sample(empty(FILM))[1]


def without_kv(memory):
    return replace(memory, blocks=tuple(replace(block, kv=None) for block in memory.blocks))


def watched(after, before=lambda: None):
    """A MODEL that calls these before every forward and after it, with the clean estimate that came out."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, *args, **kwargs):
        before()
        out = executor(*args, **kwargs)
        after(out)
        return out

    patcher = model(16).clone()
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watched", wrapper)
    return patcher


@pytest.fixture
def ticks():
    """What ComfyUI's progress bars were told: (value, total, preview image or None)."""
    import comfy.utils

    told = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: told.append((value, total, preview and preview[1])))
    yield told
    comfy.utils.set_progress_bar_global_hook(None)


@pytest.mark.parametrize(("rebuilt", "options"), [(0, {}), (3, {}), (0, {"negative": [[text(8), {}]], "cfg": 3.0})])
def test_progress_runs_once_from_the_first_rebuilt_chunk_to_the_clips_end(rebuilt, options, ticks, three_chunks):
    memory = without_kv(three_chunks) if rebuilt else empty(FILM)
    sample(memory, **options)
    total = rebuilt + 3 * FORWARDS
    assert [(value, most) for value, most, _ in ticks] == [(i + 1, total) for i in range(total)]


def test_every_chunk_is_previewed_by_its_clean_estimates(ticks, monkeypatch):
    import latent_preview
    import numpy
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    previewer = latent_preview.get_previewer(torch.device("cpu"), model(16).model.latent_format)
    estimates = []
    sample(empty(FILM), patcher=watched(estimates.append))
    pictures = [numpy.asarray(preview) for _, _, preview in ticks]
    assert len(pictures) == 3 * FORWARDS and all(picture.shape == (HEIGHT, WIDTH, 3) for picture in pictures)
    for i, (picture, estimate) in enumerate(zip(pictures, estimates, strict=True)):
        if i % FORWARDS < FORWARDS - 1:  # the clean pass shows the finished chunk again
            assert numpy.array_equal(picture, numpy.asarray(previewer.decode_latent_to_preview(estimate)))
    finished = [picture.tobytes() for picture in pictures[FORWARDS - 1::FORWARDS]]
    assert len(set(finished)) == 3 and finished == [p.tobytes() for p in pictures[FORWARDS - 2::FORWARDS]]


@pytest.mark.parametrize(("rebuilt", "forward"), [(0, 1), (0, 3), (0, 4), (0, 5), (0, 14), (3, 1), (3, 3)])
@pytest.mark.parametrize("placement", ["vram", "ram"])
def test_cancel_stops_before_the_next_forward(rebuilt, forward, placement, three_chunks):
    """Pressed among a chunk's steps, after its last one, after its clean pass, while K/V are made again. (Core itself
    asks in every layer, so that a running forward ends early too.)"""
    import comfy.model_management as management
    from pack.nodes.memory.state import placed

    begun = []

    def press_cancel(_):
        if len(begun) == forward:
            management.interrupt_current_processing(True)

    memory = placed(without_kv(three_chunks) if rebuilt else empty(FILM), placement)
    with pytest.raises(management.InterruptProcessingException):
        sample(memory, patcher=watched(press_cancel, lambda: begun.append(0)))
    assert len(begun) == forward
    assert not management.processing_interrupted()


@pytest.mark.parametrize("placement", ["vram", "ram"])
@pytest.mark.parametrize("rebuilt", [0, 3])
def test_an_error_leaves_nothing_and_the_memory_serves_again(rebuilt, placement, three_chunks):
    """Also while the error, and with it every frame that it passed, is still held."""
    from pack.nodes.memory.kv_cache import LayerKV
    from pack.nodes.memory.state import placed
    from pack.nodes.sampling.prefetch import LayerPrefetch

    memory, made = placed(without_kv(three_chunks) if rebuilt else three_chunks, placement), []

    def fail(_):
        made.append(0)
        if len(made) >= 8:  # whatever is given up
            raise torch.OutOfMemoryError("the card is full")

    def alive():
        gc.collect()
        return sum(type(each) in (LayerKV, LayerPrefetch) for each in gc.get_objects())

    want, _, _ = sample(memory)
    before = alive()
    with pytest.raises(torch.OutOfMemoryError) as held:
        sample(memory, patcher=watched(fail))
    assert held.value.__traceback__ is not None and len(made) > 8
    assert alive() == before
    assert torch.equal(sample(memory)[0]["samples"], want["samples"])


def fails_at(forwards: set[int]):
    """A MODEL that runs out of memory in these of its forwards, and the list of those that were begun."""
    made = []

    def fail(_):
        made.append(0)
        if len(made) in forwards:
            raise torch.OutOfMemoryError("the card is full")

    return watched(fail), made


REBUILT = 3  # forwards: K/V made under a MODEL without the wrapper above are made again


def plan_for(memory, profile: str):
    from pack.nodes.common.types import RenderPlan

    return RenderPlan(8 * WIDTH, 8 * HEIGHT, 9, memory.spec, 0, 1, 0, (), (), profile=profile)


def test_a_clip_goes_on_from_the_last_chunk_when_memory_runs_out_and_the_film_is_the_same(three_chunks):
    """quality gives up the memory's place first, which changes no bit."""
    want, after, _ = sample(three_chunks)
    patcher, made = fails_at({REBUILT + FORWARDS + 3})
    got, less, report = sample(three_chunks, patcher=patcher, plan=plan_for(three_chunks, "quality"))
    assert torch.equal(got["samples"], want["samples"])
    assert len(made) == REBUILT + 3 * FORWARDS + 3  # what the second chunk had done until then is done again
    assert less.spec == replace(after.spec, placement="ram")
    assert "placement vram became ram" in report and "from the last finished chunk" in report
    assert [block.start for block in less.blocks] == [block.start for block in after.blocks]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(less.blocks, after.blocks, strict=True))


def test_one_thing_after_the_other_is_given_up_while_memory_runs_out():
    """Also the K/V that the memory came with are stored anew, and stay so after the clip."""
    fails: set[int] = set()
    patcher, made = fails_at(fails)
    before = sample(empty(FILM), patcher=patcher)[1]
    fails |= {len(made) + after for after in (2, 4, 6)}
    got, less, report = sample(before, patcher=patcher, plan=plan_for(before, "balanced"))
    assert (less.spec.precision, less.spec.placement) == ("4bit", "ram")
    assert got["samples"].isfinite().all() and got["samples"].shape[2] == 9
    for block in less.blocks:
        sink = block.start < less.spec.sink_latents
        assert {layer.k.precision for layer in block.kv.layers} == {"int8" if sink else "4bit"}
    assert "precision model became 4bit" in report


def test_a_shorter_window_drops_the_oldest_chunks_and_the_sink_stays(three_chunks):
    patcher, _ = fails_at({REBUILT + after for after in (2, 3, 4, 5)})
    _, less, _ = sample(three_chunks, patcher=patcher, plan=plan_for(three_chunks, "balanced"))
    spec = three_chunks.spec
    assert less.spec.window_latents == spec.window_latents - 3
    assert sum(block.length for block in less.blocks) == spec.capacity_latents - 3
    assert less.blocks[0].start == 0 and less.blocks[-1].start == 15


def test_progress_never_runs_past_its_end_when_a_chunk_is_made_again(three_chunks, ticks):
    sample(three_chunks, patcher=fails_at({FORWARDS + 3})[0])
    assert all(value <= total for value, total, _ in ticks)


def test_other_models_are_moved_away_before_anything_is_given_up(three_chunks, monkeypatch):
    from pack.nodes.sampling import bridge_retreat

    moved, held = [], [5 * 2**30, 0]
    monkeypatch.setattr(bridge_retreat, "other_models_bytes", lambda *_: held.pop(0))
    monkeypatch.setattr(bridge_retreat.mm, "free_memory", lambda *args, **kwargs: moved.append(kwargs["keep_loaded"]))
    patcher, _ = fails_at({FORWARDS + 3})
    want = sample(three_chunks)
    got = sample(three_chunks, patcher=patcher)
    assert len(moved) == 1 and got[1].spec == want[1].spec
    assert torch.equal(got[0]["samples"], want[0]["samples"])


def on_a_card_with_ram():
    """A MODEL whose device has another name than the RAM beside it, as on a card."""
    import comfy.model_patcher

    card = comfy.model_patcher.ModelPatcher(model.__wrapped__(16).model, torch.device("cpu", 0), torch.device("cpu"))
    assert card.load_device != card.offload_device
    return card


@pytest.mark.parametrize(("pinned", "says"), [((), "of the model rest in RAM"), (("offload",), "window_latents")])
def test_the_model_goes_to_ram_piece_by_piece_before_the_window_is_shortened(pinned, says, monkeypatch):
    """Precision and place of the memory first; a plan that pins the model to the card keeps it there."""
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    def free(_device=None, torch_free_too=False):
        return (8 * 2**30, 0) if torch_free_too else 8 * 2**30

    monkeypatch.setattr(management, "get_free_memory", free)
    made, patcher = [], on_a_card_with_ram()

    def fail(executor, *args, **kwargs):
        made.append(int(patcher.loaded_size()))
        if FORWARDS + 1 < len(made) < FORWARDS + 7:
            raise torch.OutOfMemoryError("the card is full")
        return executor(*args, **kwargs)

    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "fail", fail)
    before = empty(FILM)
    plan = replace(plan_for(before, "balanced"), pinned=pinned)
    got, less, report = sample(before, patcher=patcher, plan=plan)
    assert got["samples"].isfinite().all() and got["samples"].shape[2] == 9
    assert (less.spec.precision, less.spec.placement) == ("4bit", "ram")
    assert says.split("_")[0] in report
    whole, left = made[0], made[-1]
    assert (left < whole) == (not pinned)
    assert (less.spec.window_latents < before.spec.window_latents) == bool(pinned)


class Card(TorchDispatchMode):
    """Tensors without data lie on the card; what leaves it for the CPU is memory without a value. Asked, they are
    finite."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True
        return func(*args, **kwargs)


def bytes_on_the_card() -> int:
    """Of K/V at rest, of what is being committed, and of the slots in which K/V from RAM arrive."""
    from pack.nodes.memory.kv_cache import LayerKV
    from pack.nodes.sampling.prefetch import _Slot

    found = {}
    for each in gc.get_objects():
        tensors = [*each.k.tensors().values(), *each.v.tensors().values()] if type(each) is LayerKV else []
        tensors += [each.arrived] if type(each) is _Slot else []
        found |= {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in tensors if t.is_meta}
    return sum(found.values())


def wan_on_the_card(monkeypatch):
    import comfy.ldm.wan.model as wan
    import comfy.ops
    from comfy.ldm.modules.attention import wrap_attn

    @wrap_attn
    def fused(q, k, v, heads, **kwargs):  # core's own attention for CPUs asks how much memory is free
        return torch.empty_like(q)

    monkeypatch.setattr(wan, "optimized_attention", fused)
    return wan.WanModel(model_type="t2v", dim=HEADS * 128, ffn_dim=512, num_heads=HEADS, num_layers=2, in_dim=16,
                        out_dim=16, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)


@pytest.mark.parametrize("placement", ["vram", "ram"])
@pytest.mark.parametrize("precision", ["model", "4bit"])
def test_one_memory_lies_on_the_card_however_many_are_kept(precision, placement, monkeypatch):
    """Eight clips, the memory after each of them kept, as ComfyUI keeps node outputs; the real sampler, hook and model,
    with tensors without data for what would lie on a card."""
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.common.compat import model_facts
    from pack.nodes.common.progress import SILENT
    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.state import begin_clip, caches, end_clip
    from pack.nodes.sampling.bridge import MemorySampler, device_bytes
    from pack.nodes.sampling.bridge_hook import MemoryHook
    from pack.nodes.sampling.chunk_loop import Clip, seeded_noise
    from pack.nodes.sampling.presets import PRESETS

    wan, kept, held, made = wan_on_the_card(monkeypatch), [], [], []
    memory = empty(FILM, precision=precision, placement=placement)
    most = device_bytes(memory.spec, model_facts(model(16)), HEIGHT * WIDTH // 4, 3, 1)

    def forward(x, sigma, **_):
        out = wan(x, sigma, text().to("meta"), transformer_options=options)
        made.append(0)
        if len(made) % FORWARDS == 0:  # the clean pass: all that is remembered, and what is being committed
            held.append(bytes_on_the_card())
        return out

    for _ in range(8):
        hook, before = MemoryHook(), begin_clip(memory, Geometry(16, HEIGHT, WIDTH), "model", text())
        options = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {"ours": [hook]}}}
        clip = Clip(PRESETS["longlive_1"], 3, seeded_noise(1, (1, 16, 3, HEIGHT, WIDTH)))
        with torch.no_grad(), Card():
            sampler = MemorySampler(hook, before, clip, SILENT, False)
            sampler.sample(forward, torch.ones(6), {}, None, torch.empty(1, 16, 3, HEIGHT, WIDTH, device="meta"))
            memory = end_clip(sampler.memory, before)
        hook.clear()
        del sampler
        kept.append(memory)
        assert bytes_on_the_card() == 0
        assert all(tensor.device.type == "cpu" for kv in caches(memory) for layer in kv.layers
                   for side in (layer.k, layer.v) for tensor in side.tensors().values())
    assert len(held) == 8 and 0 < max(held) <= most
    assert held[4] == held[7] == max(held)  # of the fifth clip's memory, the first full one, as of the eighth's
