"""What the room says that a place costs, against what its own functions and ComfyUI's modules really allocate."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from pack.nodes.spatial.bound import bound  # noqa: E402
from pack.nodes.spatial.cameras import path_from_text  # noqa: E402
from pack.nodes.spatial.cloud import Look, read, write  # noqa: E402
from pack.nodes.spatial.costs import mirage_bytes, mirage_latents, read_bytes, update_bytes  # noqa: E402
from pack.nodes.spatial.values import empty_memory  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from live_bytes import LiveBytes  # noqa: E402

W, H = 640, 352
DIM, FFN, HEADS = 3072, 14336, 24  # Wan 2.2 TI2V-5B
GRID = (704 // 16, 1280 // 16)
TOKENS = GRID[0] * GRID[1] // 4


class LiveRam(LiveBytes):
    """LiveBytes for tensors with data."""

    def _count(self, tensor):
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.kept and key not in self.seen:
            self.live += size
            self.seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        return tensor


def tensors(memory):
    return [memory.points, memory.features, memory.frames, memory.confidence]


def looked(channels, stride, latents):
    return Look(torch.randn(channels, latents, H // stride, W // stride), torch.rand(latents, H, W) + 2,
                tuple(range(latents)))


@pytest.mark.parametrize(("channels", "stride"), [(48, 16), (16, 8)])
@pytest.mark.parametrize("latents", [1, 9])
@pytest.mark.parametrize("looks", [0, 1, 8])
def test_a_read_and_an_update_take_what_is_said(channels, stride, latents, looks):
    path, grid = path_from_text("truck 0.3 in 4", W, H, 16.0, 60.0), (H // stride, W // stride)
    memory = empty_memory(channels, *grid)
    for _ in range(looks):
        memory = write(memory, looked(channels, stride, 9), path)
    look = looked(channels, stride, latents)
    given = [*tensors(memory), look.latents, look.depth, path.poses, path.intrinsics]
    with LiveRam(given) as live:
        grown = write(memory, look, path)
        after = bound(grown, max(8 * grown.point_bytes, grown.nbytes - 1))
        del grown
    said = update_bytes(len(memory), channels, latents, *grid, W * H)
    assert live.peak <= said <= 2 * live.peak
    with LiveRam([*tensors(after), path.poses, path.intrinsics]) as live:
        read(after, path, look.frames)
    said = read_bytes(len(after), channels, latents, *grid)
    assert live.peak <= said <= 2 * live.peak


@pytest.fixture
def flash(monkeypatch):
    """A fused attention allocates its output alone; tensors without data have none."""
    wan = pytest.importorskip("comfy.ldm.wan.model")
    from comfy.ldm.modules.attention import wrap_attn

    monkeypatch.setattr(wan, "optimized_attention", wrap_attn(lambda q, k, v, heads, **kwargs: torch.empty_like(q)))


def empty(*shape):
    return torch.empty(1, *shape, device="meta", dtype=torch.bfloat16)


def traced_forward(latents, references=0, preceding=0, blocks=0):
    """Peak of a forward of the full width without data; with blocks, through a branch of so many."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel
    from comfy.patcher_extension import WrappersMP
    from pack.nodes.spatial.bridge_branch import Branch
    from pack.nodes.spatial.bridge_mirage import Surroundings, _Mirage

    model = WanModel(model_type="t2v", dim=DIM, ffn_dim=FFN, num_heads=HEADS, num_layers=6, in_dim=48, out_dim=48,
                     device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    known, options = list(model.parameters()), {}
    if blocks:
        branch = Branch(model, blocks, 96, comfy.ops.disable_weight_init, torch.bfloat16, "meta")
        around = Surroundings(empty(96, latents + preceding, *GRID), empty(48, references, *GRID),
                              empty(48, preceding, *GRID))
        known += [*branch.parameters(), around.place, around.references, around.preceding]
        options = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {
            "test": [_Mirage(SimpleNamespace(model=branch), around)]}}}
    live = LiveBytes(known)
    with torch.no_grad(), live:
        model(empty(48, latents, *GRID), torch.empty(1, latents, device="meta"), empty(512, 4096),
              transformer_options=options)
    return live.peak


@pytest.mark.comfy
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("latents", [9, 31])
def test_a_branch_takes_what_is_said_beside_a_plain_forward_of_as_many_latents(latents, blocks, flash):
    plain = traced_forward(mirage_latents(latents))
    beside = traced_forward(latents, 4, 2, blocks) - plain
    assert beside <= mirage_bytes(latents, TOKENS, DIM, 2) <= 1.2 * beside


@pytest.mark.comfy
@pytest.mark.parametrize("weights", ["original", "nf4", "int8", "nf4_int8"])
def test_a_branchs_weights_are_those_of_the_loaded_one(tmp_path, weights):
    from pack.nodes.spatial.branch import branch_bytes, read_branch
    from pack.nodes.spatial.bridge_branch import load_branch
    from pack.tests.spatial.test_mirage import branch_file
    from pack.tests.spatial.test_mirage_branch import packed_model

    file = branch_file(tmp_path, prefix="pipe.vace.", blocks=2)
    loaded, _ = load_branch(file, packed_model(tmp_path), weights, min_bytes=0)
    assert branch_bytes(read_branch(file), weights, min_bytes=0) == loaded.model_size()


@pytest.mark.comfy
def test_the_full_branch_has_the_size_that_the_node_names():
    import comfy.ops
    from pack.nodes.loading.files import TensorHeader
    from pack.nodes.loading.formats import Checkpoint
    from pack.nodes.spatial.branch import FAMILY, branch_bytes
    from pack.nodes.spatial.bridge_branch import Branch

    inner = SimpleNamespace(dim=DIM, ffn_dim=FFN, num_heads=HEADS, patch_size=(1, 2, 2), blocks=range(30))
    branch = Branch(inner, 15, 96, comfy.ops.disable_weight_init, torch.bfloat16, "meta")
    headers = {name: TensorHeader(name, value.dtype, tuple(value.shape), value.nbytes)
               for name, value in branch.state_dict().items()}
    sizes = {weights: branch_bytes(Checkpoint(Path("vace.safetensors"), FAMILY, headers, {}), weights)
             for weights in ("original", "int8", "nf4_int8", "nf4")}
    assert [round(size / 1e9, 1) for size in sizes.values()] == [5.2, 2.6, 1.8, 1.3]
