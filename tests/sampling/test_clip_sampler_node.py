"""The nodes themselves, executed on the real patcher with the bundled checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytestmark = pytest.mark.comfy

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(toyworld):
    sd = pytest.importorskip("comfy.sd")
    return sd.load_diffusion_model(str(toyworld / "toyworld_dit_fp16.safetensors"))


@pytest.fixture(scope="module")
def positive():
    tokens = torch.zeros(1, 512, 4096)
    tokens[:, :9] = torch.randn(1, 9, 4096, generator=torch.Generator().manual_seed(4))
    return [[tokens, {}]]


def sample(model, memory, positive, seed=3, **options):
    from pack.nodes.sampling.nodes import ClipSampler

    options = {"width": 128, "height": 80, "clip_seconds": 1.5} | options
    with torch.inference_mode():
        return ClipSampler.EXECUTE_NORMALIZED(model=model, memory=memory, positive=positive, seed=seed, **options).args


def fresh(**options):
    from pack.nodes.memory.nodes import PersistentMemory

    defaults = {"preset": "toyworld", "window_seconds": 0.0, "sink_seconds": -1.0, "precision": "model",
                "placement": "vram"}
    return PersistentMemory.EXECUTE_NORMALIZED(**{**defaults, **options}).args[0]


def test_clip_is_deterministic_and_the_input_memory_untouched(model, positive):
    memory = fresh()
    first, after, report = sample(model, memory, positive)
    again, _, _ = sample(model, memory, positive)
    assert torch.equal(first["samples"], again["samples"])
    assert first["samples"].shape == (1, 16, 3, 10, 16)
    assert memory.blocks == () and after.latents_done == 3
    assert report.startswith("Rolling K/V memory, because Toy world") and "8 steps" in report


def test_branches_equal_separate_runs(model, positive):
    _, after, _ = sample(model, fresh(), positive)
    left, _, _ = sample(model, after, positive, seed=1)
    right, _, _ = sample(model, after, positive, seed=2)
    left_again, _, _ = sample(model, after, positive, seed=1)
    assert torch.equal(left["samples"], left_again["samples"])
    assert not torch.equal(left["samples"], right["samples"])


def test_later_clips_carry_their_decoding_context(model, positive):
    first, after, _ = sample(model, fresh(), positive)
    second, _, _ = sample(model, after, positive)
    assert "context_samples" not in first and (first["first_latent"], first["fps"]) == (0, 8.0)
    assert second["first_latent"] == 3
    assert torch.allclose(second["context_samples"], first["samples"], atol=1e-5)


def test_placement_in_ram_is_bit_equal(model, positive):
    results = []
    for placement in ("vram", "ram"):
        _, after, _ = sample(model, fresh(placement=placement, precision="int8"), positive)
        results.append(sample(model, after, positive)[0]["samples"])
    assert torch.equal(*results)


def test_saved_memory_continues_bit_equal(model, positive, tmp_path):
    from pack.nodes.memory.files import load_memory, save_memory

    _, after, _ = sample(model, fresh(precision="4bit"), positive)
    loaded = load_memory(save_memory(after, tmp_path / "hero.safetensors"))
    want, got = (sample(model, memory, positive)[0]["samples"] for memory in (after, loaded))
    assert torch.equal(want, got)


def test_memory_rebuilt_from_latents_stays_close(model, positive):
    from dataclasses import replace

    _, after, _ = sample(model, fresh(), positive)
    bare = replace(after, blocks=tuple(replace(block, kv=None) for block in after.blocks))
    want, got = (sample(model, memory, positive)[0]["samples"] for memory in (after, bare))
    assert torch.allclose(want, got, atol=1e-3)  # same model, same prompt, nothing evicted: the same cache again


def test_another_lora_is_another_model(model):
    from pack.nodes.common.digest import patcher_key

    patched = model.clone()
    patched.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.5)
    weaker = model.clone()
    weaker.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.25)
    keys = {patcher_key(model), patcher_key(patched), patcher_key(weaker)}
    assert len(keys) == 3 and patcher_key(model.clone()) == patcher_key(model)


def test_model_key_is_the_same_while_the_model_is_loaded(model, positive):
    """ComfyUI bakes LoRAs into the weights and exchanges the sampling module of a model that it has loaded."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from pack.nodes.common.digest import patcher_key

    shifted = ModelSamplingSD3().patch(model, 5.0)[0]
    shifted.add_patches({"diffusion_model.blocks.0.self_attn.q.weight": ("diff", (torch.ones(256, 256),))}, 0.1)
    before = patcher_key(model), patcher_key(shifted)
    sample(shifted, fresh(), positive)
    assert (patcher_key(model), patcher_key(shifted)) == before
    assert len(set(before)) == 2


def test_model_key_sees_options_that_other_nodes_set(model):
    from comfy_extras.nodes_rope import ScaleROPE
    from pack.nodes.common.digest import patcher_key

    scaled = [ScaleROPE.execute(model, 1.0, 0.0, 1.0, 0.0, scale_t, 0.0).args[0] for scale_t in (1.0, 2.0)]
    assert len({patcher_key(each) for each in (model, *scaled)}) == 3


def test_model_key_needs_no_state_dict(model, monkeypatch):
    """GGUF layers put placeholders without data into their state dict."""
    from pack.nodes.common.digest import patcher_key

    def placeholder(destination, prefix, keep_vars):
        destination[f"{prefix}weight"] = torch.empty(1, device="meta")

    before = patcher_key(model)
    monkeypatch.setattr(model.model.diffusion_model.blocks[3].ffn[0], "_save_to_state_dict", placeholder)
    assert patcher_key(model) == before


def test_rebuilt_sink_keeps_eight_bits(model, positive):
    from dataclasses import replace

    _, after, _ = sample(model, fresh(precision="4bit"), positive, clip_seconds=3)
    bare = replace(after, blocks=tuple(replace(block, kv=None) for block in after.blocks))
    for memory in (after, bare):
        _, again, _ = sample(model, memory, positive)
        formats = [block.kv.layers[0].k.precision for block in again.blocks]
        assert formats == ["int8", "4bit", "4bit"]


def test_combined_conditionings_are_refused(model, positive):
    """ComfyUI gives prompts of different lengths to the model one after the other."""
    shorter = [[positive[0][0][:, :300], {}]]
    with pytest.raises(ValueError, match="one prompt at a time, but got several combined ones"):
        sample(model, fresh(), [*positive, *shorter])


def test_conditioning_with_frames_is_refused(model):
    frames = torch.zeros(1, 16, 1, 10, 16)
    with pytest.raises(ValueError, match="adds frames to the chunk, but got 'time_dim_concat'"):
        sample(model, fresh(), [[torch.zeros(1, 512, 4096), {"time_dim_concat": frames}]])


def test_plan_of_another_checkpoint_is_refused(model, positive):
    from pack.nodes.common.types import RenderPlan
    from pack.nodes.sampling.presets import memory_spec

    plan = RenderPlan(128, 80, 16, memory_spec("longlive_2"), 0, 1, 2**33, (), ())
    with pytest.raises(ValueError, match="a plan for longlive_2 and a memory for toyworld.*same VRAM Budget Gate"):
        sample(model, fresh(), positive, plan=plan)


def test_plan_of_another_model_is_refused(model, positive):
    from pack.nodes.common.compat import model_facts
    from pack.nodes.common.types import RenderPlan

    memory, facts = fresh(), model_facts(model)
    plan = RenderPlan(128, 80, 6, memory.spec, 0, 1, 2**33, (), (), model=replace(facts, layers=30, heads=24))
    with pytest.raises(ValueError, match="made for another model, but got a plan for a wan t2v of 30 layers and width "
                                         "3072 and a wan t2v of 6 layers and width 256.*Connect the same MODEL"):
        sample(model, memory, positive, plan=plan)


def test_image_to_video_models_are_refused(model, positive, monkeypatch):
    monkeypatch.setattr(model.model.diffusion_model, "in_dim", 36)
    with pytest.raises(ValueError, match="causal text-to-video model, but got one with 36 channels in and 16 out"):
        sample(model, fresh(), positive)


def test_size_that_does_not_fit_is_refused(model, positive):
    with pytest.raises(ValueError, match="size does not fit the model, but got .?130x80.*steps of 16"):
        sample(model, fresh(), positive, width=130)


def test_a_clip_without_memory_cannot_be_continued(model, positive):
    with pytest.raises(ValueError, match="needs a memory, but got a clip that was saved or loaded without one"):
        sample(model, None, positive)


@pytest.mark.parametrize(("prefix", "allowed"), [
    ("hero", True), ("films/hero", True), (None, True), ("", False), ("../hero", False), ("a\\..\\b", False),
    ("h" * 300, False)])
def test_save_memory_stays_in_its_folder(prefix, allowed):
    from pack.nodes.memory.nodes_files import SaveMemory

    answer = SaveMemory.validate_inputs(prefix)
    assert answer is True if allowed else "Choose a name such as hero" in answer


def test_other_models_are_refused():
    from types import SimpleNamespace

    from pack.nodes.common.compat import model_facts

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="need a Wan-family diffusion model, but got 'Linear'"):
        model_facts(other)


def test_persistent_memory_checks_its_choices():
    from pack.nodes.memory.nodes import PersistentMemory

    assert PersistentMemory.validate_inputs("toyworld", "int8", "ram") is True
    assert "allowed: model, int8, 4bit" in PersistentMemory.validate_inputs("toyworld", "int3", "ram")
    assert "longlive_2" in PersistentMemory.validate_inputs("sora", "int8", "ram")
    assert PersistentMemory.validate_inputs(None, None, None) is True  # over links: checked when the node runs


def test_names_that_come_over_a_link_are_accepted():
    from pack.nodes.memory.nodes_files import LoadMemory
    from pack.nodes.render.nodes import RenderShort
    from pack.nodes.video.nodes import LoadClip, SaveClip

    assert LoadMemory.validate_inputs(None) is True and "no such file" in LoadMemory.validate_inputs("x.safetensors")
    for node in (RenderShort, SaveClip, LoadClip):
        assert node.validate_inputs(None) is True and "plain folder name" in node.validate_inputs("a/b")


def test_a_memory_saved_under_any_prefix_can_be_loaded(tmp_path, monkeypatch):
    folder_paths = pytest.importorskip("folder_paths")
    from pack.nodes.memory.nodes_files import LoadMemory, SaveMemory

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    memory = fresh(window_seconds=6.0)
    for prefix in ("hero", "heroes/anna"):
        SaveMemory.EXECUTE_NORMALIZED(memory=memory, filename_prefix=prefix)
        assert LoadMemory.EXECUTE_NORMALIZED(file=f"{prefix}_00001_.safetensors").args[0] == memory
    (tmp_path / "output" / "videomemory" / "other.safetensors").touch()
    for outside in ("../other.safetensors", str(tmp_path / "other.safetensors"), "hero"):
        assert "no such file" in LoadMemory.validate_inputs(outside)
        with pytest.raises(ValueError, match="no such file.*allowed: hero_00001_.safetensors, heroes/anna_00001_"):
            LoadMemory.EXECUTE_NORMALIZED(file=outside)


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_caches_of_forwards_are_refused_before_anything_is_sampled(model, positive, name):
    from comfy.patcher_extension import WrappersMP
    from comfy_extras import nodes_easycache

    begun = []
    cached = getattr(nodes_easycache, f"{name}Node").execute(model, 0.2, 0.15, 0.95, False).args[0]
    cached.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "begun", lambda *_args, **_options: begun.append(0))
    with pytest.raises(ValueError, match=f"{name} cannot follow a clip made in chunks, .*Disconnect {name}"):
        sample(cached, fresh(), positive, clip_seconds=3.0)
    assert not begun
