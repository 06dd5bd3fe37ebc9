"""Side by side with the originals: at equal weights, the latents of Self-Forcing's and LongLive's own code?

Each original's own pipeline and model (originals.py says what is stood in for) makes a film of a few chunks on a tiny
model of random weights; Clip Sampler's code makes it again from the same weights and the same noise on core's WanModel.
Printed per chunk: the largest and the RMS difference of the latents, beside their spread, beside what bfloat16 alone
changes (ours in bf16 against ours in float32), and beside what the memory changes (ours with nothing remembered).

    python benchmarks/beside_originals.py --comfyui PATH --self-forcing PATH --longlive1 PATH --longlive2 PATH
                                          [--causal-forcing PATH] [--only CASE ...] [--json RESULT]

PATH of an original: a checkout (LongLive 1 is the branch v1.0 of LongLive's repository). Needs ComfyUI's Python and,
for the originals, the packages diffusers and omegaconf. On the CPU in float32; a few minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from random_wan import write_wan
from safetensors.torch import load_file, save_file

HEADS, LAYERS, HEIGHT, WIDTH = 2, 3, 8, 12
GAIN = 3.0  # on random_wan's weights: then what the model says matters as much as the noise it was given
NORMS = ("norm_q.weight", "norm_k.weight", "norm3.weight")  # around 1, as trained: attention that picks out keys
DRAWS = 4  # of noise, per chunk: one to begin with, one between any two steps


@dataclass(frozen=True)
class Case:
    """A film. original: key of originals.ORIGINALS. preset, spec, positions: ours; model_kwargs, config: theirs.

    prompts: number of the prompt of every chunk. cuts: chunks before which the scene is cut. positions: "own", or
    "absolute" where theirs count on from the film's beginning while ours count inside the memory. has_image: the film
    begins with a given latent.
    """

    original: str
    says: str
    preset: str
    chunks: int
    chunk: int = 3
    model_kwargs: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    spec: dict = field(default_factory=dict)
    positions: str = "own"
    prompts: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    has_image: bool = False


_LL1 = {"local_attn_size": 12, "sink_size": 3}
_LL2 = {"model_name": "Wan2.2-TI2V-5B", "local_attn_size": 32, "num_frame_per_block": 8}
_LL2_INFERENCE = {"sampling_steps": 4, "sink_size": 8, "guidance_scale": 1.0, "multi_shot_sink": True,
                  "multi_shot_rope_offset": 8}
CASES = {
    "self_forcing": Case("self_forcing", "as published: 21 latents, nothing forgotten", "self_forcing", 7),
    "self_forcing_rolling": Case("self_forcing", "local_attn_size 21, forgets from chunk 8 on", "self_forcing", 10,
                                 model_kwargs={"local_attn_size": 21}),
    "causal_forcing": Case("causal_forcing", "chunk-wise", "causal_forcing", 7),
    "causal_forcing_framewise": Case("causal_forcing", "frame-wise, from an image", "causal_forcing_framewise", 21, 1,
                                     has_image=True),
    "longlive1_infinity": Case("longlive1", "longlive_inference_infinity: positions inside the memory", "longlive_1", 9,
                               model_kwargs={**_LL1, "use_infinite_attention": True}),
    "longlive1_absolute": Case("longlive1", "longlive_inference: positions of the film, given to ours too",
                               "longlive_1", 9, model_kwargs=_LL1, positions="absolute"),
    "longlive1_decision": Case("longlive1", "longlive_inference against ours as decided: positions inside the memory",
                               "longlive_1", 9, model_kwargs=_LL1),
    "longlive1_switch": Case("longlive1", "a new prompt from chunk 7 on, recached", "longlive_1", 9,
                             model_kwargs={**_LL1, "use_infinite_attention": True}, prompts=(0,) * 6 + (1,) * 3,
                             spec={"prompt_change": "recache"}),
    "longlive2_relative": Case("longlive2", "use_relative_rope: positions inside the memory", "longlive_2", 6, 8,
                               model_kwargs=_LL2, config={"inference": _LL2_INFERENCE, "use_relative_rope": True}),
    "longlive2_shots": Case("longlive2", "as published, two scene cuts: positions of the film, given to ours too",
                            "longlive_2", 9, 8, model_kwargs=_LL2, config={"inference": _LL2_INFERENCE},
                            spec={"prompt_change": "pin"}, positions="absolute",
                            prompts=(0, 0, 1, 1, 1, 1, 2, 2, 2), cuts=(2, 6)),
    "longlive2_decision": Case("longlive2", "the same against ours as decided: positions inside the memory",
                               "longlive_2", 9, 8, model_kwargs=_LL2, config={"inference": _LL2_INFERENCE},
                               spec={"prompt_change": "pin"}, prompts=(0, 0, 1, 1, 1, 1, 2, 2, 2), cuts=(2, 6)),
    "longlive2_image": Case("longlive2", "from an image", "longlive_2", 5, 8, model_kwargs=_LL2, has_image=True,
                            config={"inference": {**_LL2_INFERENCE, "independent_first_frame": True},
                                    "use_relative_rope": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("comfyui", "self-forcing", "causal-forcing", "longlive1", "longlive2", "json"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--child", nargs=3, metavar=("ROLE", "CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    roots = {name: vars(options)[name] for name in ("self_forcing", "causal_forcing", "longlive1", "longlive2")}
    if options.child:
        child(*options.child, roots, options.comfyui)
        return
    if not options.comfyui or not any(roots.values()):
        parser.error("say where ComfyUI and at least one original are")
    commits = {name: commit(root) for name, root in roots.items() if root}
    result = {"device": cpu_name(), "torch": torch.__version__,
              "date": time.strftime("%Y-%m-%d"), "originals": commits, "cases": {},
              "model": f"{LAYERS} layers of {HEADS} heads, latents of {HEIGHT}x{WIDTH}"}
    print_head(result)
    for name in options.only:
        if roots[CASES[name].original]:
            result["cases"][name] = compare(name)
            print_case(name, result["cases"][name])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def cpu_name() -> str:
    """The processor and the number of threads; nothing here runs on a GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def commit(root: Path) -> str:
    asked = subprocess.run(["git", "--git-dir", str(root / ".git"), "log", "-1", "--format=%h %cs"],
                           capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown commit"


def compare(name: str) -> dict:
    """One row per chunk, and the whole film as the last one."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(CASES[name], Path(folder))
        for role in ("original", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--child", role, name, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}, {role} failed:\n{done.stdout}\n{done.stderr}")
        theirs = load_file(Path(folder) / "original.safetensors")["latents"]
        ours = load_file(Path(folder) / "ours.safetensors")
    chunk = CASES[name].chunk
    parts = [slice(start, start + chunk) for start in range(0, theirs.shape[2], chunk)] + [slice(None)]
    return {"says": CASES[name].says, "rows": [row(theirs[:, :, part], {k: v[:, :, part] for k, v in ours.items()})
                                               for part in parts]}


def row(theirs: torch.Tensor, ours: dict[str, torch.Tensor]) -> dict[str, float]:
    def rms(x: torch.Tensor) -> float:
        return x.square().mean().sqrt().item()

    difference, rounding = ours["exact"] - theirs, ours["bf16"] - ours["exact"]
    return {"std": theirs.std().item(), "max": difference.abs().max().item(), "rms": rms(difference),
            "bf16_max": rounding.abs().max().item(), "bf16_rms": rms(rounding),
            "forgetful_rms": rms(ours["forgetful"] - ours["exact"])}


def write_inputs(case: Case, folder: Path) -> None:
    """Weights, conditionings and noise for both sides."""
    channels = 48 if case.original == "longlive2" else 16
    path = write_wan(folder / "wan.safetensors", dim=128 * HEADS, ffn=512, layers=LAYERS, channels=channels,
                     dtype=torch.float32)
    weights = {f"weights.{name}": tensor * GAIN + name.endswith(NORMS) for name, tensor in load_file(path).items()}
    path.unlink()
    generator = torch.Generator().manual_seed(1)
    contexts = torch.zeros(3, 512, 4096)
    contexts[:, :20] = torch.randn(3, 20, 4096, generator=generator)
    draws = torch.randn(case.chunks, DRAWS, channels, case.chunk, HEIGHT, WIDTH, generator=generator)
    image = {"given": torch.randn(1, channels, 1, HEIGHT, WIDTH, generator=generator)} if case.has_image else {}
    save_file({**weights, **image, "contexts": contexts, "draws": draws}, folder / "inputs.safetensors")


def child(role: str, name: str, folder: str, roots: dict[str, Path], comfyui: Path) -> None:
    """One side, in a process of its own."""
    case, tensors = CASES[name], load_file(Path(folder) / "inputs.safetensors")
    case = replace(case, prompts=case.prompts or (0,) * case.chunks)
    if role == "original":
        import originals

        made = {"latents": originals.run(roots[case.original].resolve(), case.original, case, tensors)}
    else:
        from clip_sampler import start

        start(comfyui)
        made = {"exact": ours(case, tensors), "bf16": ours(case, tensors, torch.bfloat16),
                "forgetful": ours(case, tensors, forgets=True)}
    save_file({key: value.float().contiguous() for key, value in made.items()}, Path(folder) / f"{role}.safetensors")


@torch.inference_mode()
def ours(case: Case, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32,
         forgets: bool = False) -> torch.Tensor:
    """Clip Sampler's latents of the film, one clip per chunk, [1, C, n, h, w] normalised."""
    from pack.nodes.common.types import Geometry
    from pack.nodes.memory.state import empty_memory, forget
    from pack.nodes.sampling import bridge
    from pack.nodes.sampling.presets import PRESETS, memory_spec

    if case.positions == "absolute":
        bridge.MemorySampler._show = show_absolute
    model, draws = comfy_model(tensors, dtype), tensors["draws"]
    memory, clips = empty_memory(memory_spec(case.preset, **case.spec)), []
    for i in range(case.chunks):
        samples, memory = bridge.sample_with_memory(
            model, forget(memory) if forgets else memory, [[tensors["contexts"][case.prompts[i]].unsqueeze(0), {}]],
            PRESETS[case.preset], Geometry(draws.shape[2], HEIGHT, WIDTH), case.chunk, 0,
            noise=lambda chunk: iter(draws[chunk].unsqueeze(1)).__next__, given=None if i else tensors.get("given"),
            is_cut=i in case.cuts)
        clips.append(model.model.process_latent_in(samples))
    return torch.cat(clips, 2)


def show_absolute(sampler: object, memory: object) -> None:
    """MemorySampler._show with the positions of the film: as LongLive counts, and as ours would without its decision to
    count inside the memory."""
    from pack.nodes.memory.state import view

    blocks, gap = view(memory, sampler.clip.prompt), sampler.clip.preset.shot_gap
    positions = [block.start + gap * block.cuts + i for block in blocks for i in range(block.length)]
    sampler.hook.look_at(tuple(block.kv for block in blocks), (), tuple(positions),
                         memory.latents_done + gap * memory.cuts)


def comfy_model(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> object:
    """The weights in ComfyUI's own WanModel, computing in dtype."""
    import comfy.model_patcher
    from comfy import supported_models

    weights = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    dim, channels = weights["patch_embedding.weight"].shape[:2]
    config = supported_models.WAN22_T2V if channels == 48 else supported_models.WAN21_T2V
    config = config({**config.unet_config, "image_model": "wan2.1", "model_type": "t2v", "dim": dim, "ffn_dim": 512,
                     "num_heads": HEADS, "num_layers": LAYERS, "in_dim": channels, "out_dim": channels})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device="cpu")
    model.diffusion_model.load_state_dict(weights)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def print_head(result: dict) -> None:
    import originals

    print(f"{result['device']}, torch {result['torch']}, float32; {result['model']}; {result['date']}")
    for name, commit_of in result["originals"].items():
        print(f"{name}: {commit_of}")
    print("Stood in for, in the originals:", *originals.STAND_INS, sep="\n  ")


def print_case(name: str, case: dict) -> None:
    print(f"\n{name}: {case['says']}")
    print("chunk    std   largest       RMS | bf16: largest      RMS | without memory: RMS")
    for i, line in enumerate(case["rows"], 1):
        which = "film" if i == len(case["rows"]) else str(i)
        print(f"{which:>5} {line['std']:6.3f} {line['max']:9.1e} {line['rms']:9.1e} | {line['bf16_max']:13.1e} "
              f"{line['bf16_rms']:8.1e} | {line['forgetful_rms']:19.1e}", flush=True)


if __name__ == "__main__":
    main()
