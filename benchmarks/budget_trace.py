"""What a forward of the other families keeps alive, traced on ComfyUI's own modules of tensors without data.

    python benchmarks/budget_trace.py --comfyui PATH [--write]

No card is needed and no memory is taken. A fused attention is assumed, which allocates its output alone. Two lengths
give the bytes per token and what does not depend on the length; --write puts them into nodes/budget/data/<family>.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from full_size import stand_in_for_missing
from live_bytes import LiveBytes

DATA = Path(__file__).resolve().parents[1] / "nodes" / "budget" / "data"
LAYERS = 2  # of each kind of block: activations do not depend on their number
BF16, TEXT = torch.bfloat16, 256
HUNYUAN = {"image_model": "hunyuan_video", "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": LAYERS,
           "depth_single_blocks": LAYERS, "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True, "byt5": False,
           "meanflow": False, "patch_size": [1, 2, 2], "vec_in_dim": 768, "context_in_dim": 4096, "in_channels": 33,
           "out_channels": 16, "use_cond_type_embedding": False, "vision_in_dim": None, "guidance_embed": False}
HUNYUAN15 = {**HUNYUAN, "hidden_size": 2048, "num_heads": 16, "depth_single_blocks": 0, "patch_size": [1, 1, 1],
             "in_channels": 65, "out_channels": 32, "context_in_dim": 3584, "vec_in_dim": None,
             "use_cond_type_embedding": True, "vision_in_dim": 1152}
SVD = {"image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
       "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
       "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
       "use_spatial_transformer": True, "use_linear_in_transformer": True, "context_dim": 1024, "adm_in_channels": 768,
       "num_classes": "sequential", "legacy": False, "num_heads": -1, "num_head_channels": 64,
       "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_factor": 0.0,
       "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True,
       "use_temporal_attention": True, "disable_temporal_crossattention": False}
PARAMETERS = {"hunyuan": 12.8e9, "hunyuan15": 8.3e9, "svd": 1.5e9}
FAMILIES = {  # class, network, the sides of a latent frame at 1280x720, its patch, latents or frames that are traced
    "hunyuan": ("HunyuanVideoI2V", HUNYUAN, (90, 160), 2, (9, 17)),
    "hunyuan15": ("HunyuanVideo15", HUNYUAN15, (45, 80), 1, (9, 17)),
    "svd": ("SVD_img2vid", SVD, (72, 128), 1, (14, 25)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH"), required="COMFYUI_PATH" not in os.environ)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    stand_in_for_missing()
    from loading import import_bridge

    import_bridge(options.comfyui)
    for family in FAMILIES:
        found = coefficients_of(family)
        print(f"{family}: " + ", ".join(f"{name} {value:.6g}" for name, value in found.items()))
        if options.write:
            write(family, found)


def coefficients_of(family: str) -> dict[str, float]:
    """bytes per token and fixed bytes in 16 bits, from a straight line through two lengths; the widest linear."""
    _, _, (height, width), patch, lengths = FAMILIES[family]
    model = network(family)
    per_unit = (height // patch) * (width // patch)
    short, long = (traced(family, model, length) for length in lengths)
    slope = (long - short) / ((lengths[1] - lengths[0]) * per_unit)
    widest = max(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return {"bytes_per_token": slope, "fixed_bytes": max(0.0, short - slope * lengths[0] * per_unit),
            "widest_linear_values": float(widest)}


def network(family: str) -> torch.nn.Module:
    from comfy import supported_models

    name, unet, *_ = FAMILIES[family]
    config_class = getattr(supported_models, name)
    config = config_class({**config_class.unet_config, **unet})
    config.set_inference_dtype(BF16, None)
    return config.get_model({}, "", device=torch.device("meta")).diffusion_model


def traced(family: str, model: torch.nn.Module, length: int) -> int:
    """Peak of live bytes in one forward over so many latents (SVD: frames)."""
    height, width = FAMILIES[family][2]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=BF16)

    options = {"optimized_attention_override": fused}
    live = LiveBytes([*model.parameters(), *model.buffers()])
    with torch.no_grad(), live:
        if family == "svd":
            model(empty(length, 8, height, width), empty(length), context=empty(length, 1, 1024),
                  y=empty(length, 768), num_video_frames=length,
                  image_only_indicator=torch.zeros(1, length, device="meta"), transformer_options=options)
        else:
            channels, size = FAMILIES[family][1]["in_channels"], FAMILIES[family][1]["context_in_dim"]
            y = empty(1, 768) if family == "hunyuan" else None
            model(empty(1, channels, length, height, width), empty(1), empty(1, TEXT, size), y=y,
                  transformer_options=options)
    return live.peak


def fused(_attention: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *_rest: object,
          **options: object) -> torch.Tensor:
    """An attention that allocates its output alone, [B, L, heads * D]."""
    if options.get("skip_reshape"):
        return torch.empty(q.shape[0], q.shape[2], heads * q.shape[3], device="meta", dtype=q.dtype)
    return torch.empty_like(q)


def write(family: str, found: dict[str, float]) -> None:
    notes = {"bytes_per_token": "live at the peak of a forward, per token of the sampled latents, in 16 bits",
             "fixed_bytes": "live at that peak whatever the length: text, modulation",
             "parameters": "of the published model, for estimates of time",
             "widest_linear_values": "values of the widest weight, which is dequantised or cast for one use"}
    path = DATA / f"{family}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["coefficients"] if path.is_file() else {}
    others = {name: entry for name, entry in known.items() if name not in notes}
    content = {
        "family": family,
        "about": f"Traced on ComfyUI's own modules at 1280x720 (SVD: 1024x576), {LAYERS} layers of each kind (SVD: all "
                 "of them), a fused attention. Not measured on a card yet.",
        "script": "benchmarks/budget_trace.py --write",
        "coefficients": {
            name: {"value": value, "how": "assumed" if name == "parameters" else "traced", "note": notes[name]}
            for name, value in (found | {"parameters": PARAMETERS[family]}).items()} | others,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
