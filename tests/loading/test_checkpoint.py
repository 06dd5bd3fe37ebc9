"""All-in-one files: the model packed, and the parts beside it as core's own loader gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from .diffusers_weights import state_of
from .test_diffusers import SHAPES
from .tiny_models import output, random_state

pytestmark = pytest.mark.comfy
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    pytest.importorskip("comfy.ops")
    from pack.nodes.loading import bridge_checkpoint

    return bridge_checkpoint


def some(*shapes: int | tuple[int, ...]) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(shape, generator=generator).half() for shape in shapes)


def clip_l(prefix: str) -> dict[str, torch.Tensor]:
    """The first layer of SD 1.5's text encoder: the others are as good as absent, for core and for us."""
    position, bias, weight = some((77, 768), 768, (3072, 768))
    layer = f"{prefix}text_model.encoder.layers.0."
    return {f"{prefix}text_model.embeddings.position_embedding.weight": position,
            f"{layer}mlp.fc1.weight": weight, f"{layer}self_attn.q_proj.bias": bias}


def sd_vae(prefix: str, temporal: bool) -> dict[str, torch.Tensor]:
    conv, quant, factor = some((512, 4, 3, 3), (4, 4, 1, 1), 1)
    tensors = {f"{prefix}decoder.conv_in.weight": conv,
               f"{prefix}encoder.down.2.downsample.conv.weight": torch.zeros(512, 512, 3, 3).half()}
    if temporal:
        return tensors | {f"{prefix}decoder.mid.block_1.mix_factor": factor}
    return tensors | {f"{prefix}post_quant_conv.weight": quant}


def ltx_vae(prefix: str) -> dict[str, torch.Tensor]:
    conv, bias = some((512, 512, 3, 3, 3), 512)
    return {f"{prefix}decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": conv,
            f"{prefix}decoder.up_blocks.0.res_blocks.0.conv1.conv.bias": bias}


def image_encoder(prefix: str) -> dict[str, torch.Tensor]:
    """The layer of ViT-H by which core knows it, in OpenCLIP's names as SVD's file has them."""
    gain, shift, position = some(1280, 1280, (257, 1280))
    block = f"{prefix}transformer.resblocks."
    return {f"{block}0.attn.in_proj_weight": torch.zeros(3840, 1280).half(), f"{block}30.ln_1.weight": gain,
            f"{block}30.ln_1.bias": shift, f"{prefix}positional_embedding": position}


# kind of model -> what lies beside it in the file that people download
BESIDE: dict[str, dict[str, Any]] = {
    "sd15": {"clip": lambda: clip_l("cond_stage_model.transformer."),
             "vae": lambda: sd_vae("first_stage_model.", False)},
    "ltx": {"vae": lambda: ltx_vae("vae.")},
    "svd": {"vae": lambda: sd_vae("first_stage_model.", True),
            "clip_vision": lambda: image_encoder("conditioner.embedders.0.open_clip.model.visual.")},
}


def write(folder: Path, kind: str, parts: tuple[str, ...] | None = None) -> Path:
    state = {PREFIX + name: tensor for name, tensor in random_state(kind).items()}
    for part, make in BESIDE[kind].items():
        state |= make() if parts is None or part in parts else {}
    path = folder / f"{kind}.safetensors"
    save_file(state, path, {"config": json.dumps({"transformer": {"causal_temporal_positioning": True}})}
              if kind == "ltx" else None)
    return path


def module_of(part: Any) -> torch.nn.Module:
    return getattr(part, "cond_stage_model", None) or getattr(part, "first_stage_model", None) or part.model


def assert_same_part(ours: Any, theirs: Any, given: int) -> None:
    """The same classes, and the tensors that the file has have arrived; the rest is memory that nobody has set."""
    ours, theirs = module_of(ours), module_of(theirs)
    assert type(ours) is type(theirs)
    expected = theirs.state_dict()
    same = [name for name, tensor in ours.state_dict().items()
            if tensor.any() and torch.equal(tensor, expected[name]) and tensor.isfinite().all()]
    assert ours.state_dict().keys() == expected.keys() and len(same) >= given, same


@pytest.mark.parametrize("kind", ["sd15", "ltx", pytest.param("svd", marks=pytest.mark.slow)])
def test_parts_are_those_of_cores_loader(bridge: ModuleType, tmp_path: Path, kind: str) -> None:
    import comfy.sd
    from pack.nodes.loading.bridge import load_diffusion_model

    path = write(tmp_path, kind)
    parts, report = bridge.load_checkpoint(str(path), "nf4", min_bytes=0)
    core = dict(zip(("model", "clip", "vae", "clip_vision"),
                    comfy.sd.load_checkpoint_guess_config(str(path), output_clipvision=True), strict=True))
    for part in ("clip", "vae", "clip_vision"):
        if part in BESIDE[kind]:
            given = sum(bool(tensor.any()) for tensor in BESIDE[kind][part]().values())
            assert_same_part(getattr(parts, part), core[part], given)
            assert f"{part.upper()}: as stored, " in report
        else:
            assert getattr(parts, part) is None and core[part] is None
            assert f"{part.upper()}: none in the file; " in report
    alone = load_diffusion_model(str(path), "nf4", min_bytes=0)[0]
    assert type(parts.model.model.model_config) is type(core["model"].model.model_config)
    assert torch.equal(output(kind, parts.model), output(kind, alone))
    assert "NF4: " in report and parts.model.model_size() < core["model"].model_size() / 1.1


def test_absent_parts_are_said_and_the_vae_says_so_itself(bridge: ModuleType, tmp_path: Path) -> None:
    for weights in ("int8", "original"):
        parts, report = bridge.load_checkpoint(str(write(tmp_path, "sd15", parts=())), weights, min_bytes=0)
        assert parts.clip is None and parts.clip_vision is None
        assert "CLIP: none in the file; load a text encoder" in report
        assert "VAE: none in the file; load a VAE beside it" in report
        with pytest.raises(RuntimeError, match="does not contain a valid VAE"):
            parts.vae.throw_exception_if_invalid()


def test_a_diffusion_model_alone_loads_without_the_others(bridge: ModuleType, tmp_path: Path) -> None:
    for name, state in (("plain", random_state("ltx")), ("diffusers", state_of(SHAPES["ltx"]))):
        path = tmp_path / f"{name}.safetensors"
        save_file(state, path)
        for weights, line in (("nf4", "NF4: "), ("original", "loaded as it is")):
            parts, report = bridge.load_checkpoint(str(path), weights, min_bytes=0)
            assert parts.clip is None and parts.clip_vision is None and parts.vae.first_stage_model is None
            assert report.count("none in the file") == 3 and line in report
            assert len(parts.model.model.diffusion_model.transformer_blocks) == 2


def test_original_is_cores_own_loading(bridge: ModuleType, tmp_path: Path) -> None:
    import comfy.sd

    path = write(tmp_path, "sd15")
    parts, report = bridge.load_checkpoint(str(path), "original")
    core = comfy.sd.load_checkpoint_guess_config(str(path))
    assert torch.equal(output("sd15", parts.model), output("sd15", core[0]))
    assert "loaded as it is through ComfyUI" in report and "CLIP: as stored" in report


def test_the_quantised_model_is_cached_beside_the_file(bridge: ModuleType, tmp_path: Path) -> None:
    path = write(tmp_path, "ltx")
    first, wrote = bridge.load_checkpoint(str(path), "nf4", min_bytes=0, cache=True)
    second, read = bridge.load_checkpoint(str(path), "nf4", min_bytes=0, cache=True)
    assert "cache: written" in wrote and "cache: read from ltx.safetensors.nf4.videomemory" in read
    assert torch.equal(output("ltx", first.model), output("ltx", second.model))


def test_cancel_between_model_and_parts_stops(bridge: ModuleType, tmp_path: Path) -> None:
    from pack.nodes.common.progress import Progress

    class Cancelled(Exception):
        pass

    path, done = write(tmp_path, "ltx"), []

    def cancel_at_the_end() -> None:
        if done and done[-1][0] == done[-1][1]:
            raise Cancelled

    with pytest.raises(Cancelled):
        bridge.load_checkpoint(str(path), "nf4", min_bytes=0, progress=Progress(
            update=lambda *at: done.append(at), check_cancel=cancel_at_the_end))


def test_other_files_are_refused(bridge: ModuleType, tmp_path: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    for weights in ("nf4", "original"):
        with pytest.raises(ValueError, match=r"'vae.safetensors' must be a diffusion model, but got .* is a VAE"):
            bridge.load_checkpoint(str(tmp_path / "vae.safetensors"), weights)


def test_the_node_gives_five_outputs(bridge: ModuleType, tmp_path: Path) -> None:
    import folder_paths
    from pack.nodes.loading.nodes_checkpoint import LoadCheckpoint

    write(tmp_path, "sd15")
    saved = {name: (list(paths), set(endings))
             for name, (paths, endings) in folder_paths.folder_names_and_paths.items()}
    folder_paths.add_model_folder_path("checkpoints", str(tmp_path))
    try:
        assert LoadCheckpoint.validate_inputs(checkpoint_name="sd15.safetensors") is True
        assert "models/checkpoints" in LoadCheckpoint.validate_inputs(checkpoint_name="absent.safetensors")
        assert LoadCheckpoint.fingerprint_inputs("sd15.safetensors", "nf4")[0] == "sd15.safetensors"
        result = LoadCheckpoint.PREPARE_CLASS_CLONE({}).execute(checkpoint_name="sd15.safetensors", weights="int8").args
    finally:
        folder_paths.folder_names_and_paths.update(saved)
        folder_paths.filename_list_cache.clear()
    assert len(result) == 5 and result[0].model.diffusion_model is not None and result[3] is None
    assert result[1].tokenize("a dog") and "int8: " in result[4]
    assert load_file(tmp_path / "sd15.safetensors")  # the file is not held open for writing
