"""Runs the causal Wan code of Self-Forcing, Causal-Forcing, LongLive 1 and LongLive 2, as published, on a tiny model.

Their checkouts stay where they are; nothing of them is part of this pack. Their own pipeline class runs with their own
model class, on the CPU in float32. What needs CUDA, weights or a download is stood in for, and nothing else: see
STAND_INS. Used by beside_originals.py, in a process of its own per original (all four call a package `utils`).
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

STAND_INS = (
    "flash_attn: torch's scaled_dot_product_attention in float32",
    "checkpoint, text encoder, VAE: random weights, random conditionings, latents handed back as they are",
    "1.3B/5B sizes written into the pipelines: the tiny model's layers, heads and tokens per latent frame",
    "torch.randn_like between the steps: the noise that ours gets too",
    "LLV2_TRITON_ROPE=0, LLV2_TRITON_ADALN=0: LongLive 2's own switches for its plain torch code",
    "demo_utils.memory, utils.memory: empty (they ask for a CUDA device when imported)",
)


@dataclass(frozen=True)
class Original:
    """Where the parts lie in a checkout. package: the model's; wrapper, pipeline: module and class."""

    package: str
    wrapper: str
    pipeline: tuple[str, str]
    memory: str = ""


ORIGINALS = {
    "self_forcing": Original("wan", "utils.wan_wrapper", ("pipeline.causal_inference", "CausalInferencePipeline"),
                             "demo_utils.memory"),
    "longlive1": Original("wan", "utils.wan_wrapper",
                          ("pipeline.interactive_causal_inference", "InteractiveCausalInferencePipeline"),
                          "utils.memory"),
    "longlive2": Original("wan_5b", "utils.wan_5b_wrapper",
                          ("pipeline.causal_diffusion_inference", "CausalDiffusionInferencePipeline")),
}
ORIGINALS["causal_forcing"] = ORIGINALS["self_forcing"]


class Texts:
    """In the place of their text encoder: a prompt ends in the number of its conditioning."""

    def __init__(self, contexts: torch.Tensor) -> None:
        self.contexts = contexts  # [prompts, 512, 4096]

    def __call__(self, text_prompts: list[str]) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": torch.stack([self.contexts[int(text.split()[-1])] for text in text_prompts])}


class Latents:
    """In the place of their VAE: hands latents back as they are."""

    def decode_to_pixel(self, latents: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        return latents

    decode_to_pixel_chunk = decode_to_pixel


@torch.no_grad()
def run(root: Path, name: str, case: object, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Their latents of the whole film, [1, C, n, h, w].

    case: beside_originals.Case. tensors: `weights.*` by their names, contexts [prompts, 512, 4096], draws
    [chunks, draws, C, chunk, h, w] and, for an image to begin with, given [1, C, 1, h, w].
    """
    original = ORIGINALS[name]
    _prepare(root, original)
    wrapper = importlib.import_module(original.wrapper)
    weights = {key[8:]: value for key, value in tensors.items() if key.startswith("weights.")}
    for module_class in {wrapper.CausalWanModel, getattr(wrapper, "CausalWanModelInfinity", wrapper.CausalWanModel)}:
        module_class.from_pretrained = classmethod(lambda cls, _path, **options: _tiny(cls, weights, options))
    args, draws = _config(case, tensors), tensors["draws"]
    pipeline = getattr(importlib.import_module(original.pipeline[0]), original.pipeline[1])
    pipeline = pipeline(args, "cpu", text_encoder=Texts(tensors["contexts"]), vae=Latents())
    _shrink(pipeline, weights, draws)
    first = draws[:, 0].movedim(1, 2).flatten(0, 1).unsqueeze(0)  # [1, latents, C, h, w]
    given = tensors["given"].movedim(1, 2) if "given" in tensors else None
    if given is not None and given.shape[1] == draws.shape[3]:  # a whole chunk: it is committed, not denoised
        draws, first = draws[1:], first[:, given.shape[1]:]
    torch.randn_like = _replayed(draws[:, 1:].flatten(0, 1))
    answer = pipeline.inference(first, return_latents=True, **_asked(name, case, given))
    return (answer if torch.is_tensor(answer) else answer[1]).movedim(2, 1)


def _asked(name: str, case: object, given: torch.Tensor | None) -> dict[str, object]:
    """The arguments of their `inference` besides the noise."""
    if name == "longlive1":
        return {"text_prompts_list": [[f"prompt {i}"] for i in sorted(set(case.prompts))],
                "switch_frame_indices": [case.chunk * i for i in range(1, case.chunks)
                                         if case.prompts[i] != case.prompts[i - 1]]}
    if name == "longlive2":
        cut = "The scene transitions. "
        texts = [f"{cut if i in case.cuts else ''}prompt {prompt}" for i, prompt in enumerate(case.prompts)]
        return {"text_prompts": [texts], "initial_latent": given}
    return {"text_prompts": ["prompt 0"], "initial_latent": given}


def _prepare(root: Path, original: Original) -> None:
    """Their modules importable without what a CPU cannot have."""
    os.environ.update(LLV2_TRITON_ROPE="0", LLV2_TRITON_ADALN="0")
    sys.path.insert(0, str(root))
    for name in (original.package, f"{original.package}.modules", "pipeline"):  # their __init__ would import all of Wan
        _module(name).__path__ = [str(root / name.replace(".", "/"))]
    for name in ("tokenizers", "t5", "vae", "vae2_2"):
        _module(f"{original.package}.modules.{name}", HuggingfaceTokenizer=None, umt5_xxl=None, _video_vae=None)
    if original.memory:
        nothing = dict.fromkeys(("gpu", "get_cuda_free_memory_gb", "DynamicSwapInstaller", "log_gpu_memory",
                                 "move_model_to_device_with_memory_preservation"))
        _module(original.memory, **nothing)
    attention = importlib.import_module(f"{original.package}.modules.attention")
    attention.attention = attention.flash_attention = _attention


def _module(name: str, **attributes: object) -> types.ModuleType:
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(attributes)
    return module


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, k_lens: object = None) -> torch.Tensor:
    """q, k, v [B, tokens, heads, head_dim]; every key counts, as in all their calls with a cache."""
    if k_lens is not None:
        raise RuntimeError("an original asks for key lengths, which this stand-in does not know")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _tiny(model_class: type, weights: dict[str, torch.Tensor], options: dict) -> torch.nn.Module:
    dim, channels = weights["patch_embedding.weight"].shape[:2]
    model = model_class(dim=dim, num_heads=dim // 128, num_layers=_layers(weights), in_dim=channels, out_dim=channels,
                        ffn_dim=weights["blocks.0.ffn.0.bias"].numel(), **options)
    model.load_state_dict(weights)
    return model.eval()


def _layers(weights: dict[str, torch.Tensor]) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith("blocks.")})


def _config(case: object, tensors: dict[str, torch.Tensor]) -> object:
    """Their inference configuration: the published values, and what the case sets."""
    from omegaconf import OmegaConf

    height, width = tensors["draws"].shape[-2:]
    config = {"denoising_step_list": [1000, 750, 500, 250], "warp_denoising_step": True, "context_noise": 0,
              "num_frame_per_block": case.chunk, "independent_first_frame": False, "global_sink": True,
              "image_or_video_shape": [1, case.chunks * case.chunk, 48, height, width],
              "model_kwargs": {"timestep_shift": 5.0, **case.model_kwargs}, **case.config}
    return OmegaConf.create(config)


def _shrink(pipeline: object, weights: dict[str, torch.Tensor], draws: torch.Tensor) -> None:
    """The pipeline with the tiny model's sizes in place of those of Wan that are written into it."""
    layers, heads = _layers(weights), weights["patch_embedding.bias"].numel() // 128
    pipeline.num_transformer_blocks = layers
    pipeline.frame_seq_length = draws.shape[-2] * draws.shape[-1] // 4
    for name in ("_initialize_kv_cache", "_initialize_crossattn_cache"):
        setattr(pipeline, name, _narrowed(pipeline, getattr(pipeline, name), heads))


def _narrowed(pipeline: object, allocate: object, heads: int) -> object:
    """Their allocation, cut to the tiny model's heads."""

    def allocate_narrow(*args: object, **options: object) -> None:
        allocate(*args, **options)
        for name in ("kv_cache1", "crossattn_cache", "kv_cache_pos", "kv_cache_neg", "crossattn_cache_pos",
                     "crossattn_cache_neg"):
            for cache in getattr(pipeline, name, None) or ():
                cache["k"], cache["v"] = (cache[side][:, :, :heads].clone() for side in "kv")

    return allocate_narrow


def _replayed(draws: torch.Tensor) -> object:
    """torch.randn_like that hands out these draws [n, C, chunk, h, w], each as [chunk, C, h, w]."""
    remaining: Iterator[torch.Tensor] = iter(draws)
    return lambda like: next(remaining).movedim(0, 1).to(like).reshape(like.shape)
