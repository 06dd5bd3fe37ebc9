"""Makes diffusers_models.safetensors: names, shapes and one output of diffusers' own model classes at tiny sizes.

Run where diffusers can be imported (0.36.0 was used): python tests/loading/data/make_diffusers_models.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from diffusers_weights import inputs_of, state_of  # noqa: E402

WAN = {"num_attention_heads": 1, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16, "ffn_dim": 192,
       "num_layers": 2}
IMAGE = {"image_dim": 1280, "added_kv_proj_dim": 128}
HUNYUAN = {"num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 1, "text_embed_dim": 96}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan_i2v": ("WanTransformer3DModel", {**WAN, **IMAGE}),
    "wan_flf2v": ("WanTransformer3DModel", {**WAN, **IMAGE, "pos_embed_seq_len": 514}),
    "wan_ti2v": ("WanTransformer3DModel", {**WAN, "in_channels": 48, "out_channels": 48}),
    "wan_vace": ("WanVACETransformer3DModel", {**WAN, "in_channels": 16, "vace_layers": [0], "vace_in_channels": 96}),
    "ltx": ("LTXVideoTransformer3DModel", {"num_attention_heads": 32, "attention_head_dim": 6, "num_layers": 2,
                                           "cross_attention_dim": 192}),
    "hunyuan": ("HunyuanVideoTransformer3DModel", {**HUNYUAN, "num_single_layers": 1}),
    "hunyuan_15": ("HunyuanVideo15Transformer3DModel", HUNYUAN),
}


def call(kind: str, model: torch.nn.Module) -> torch.Tensor:
    given = inputs_of(kind)
    x, text, time = given["x"], given["context"], torch.tensor([700.0])
    ones = torch.ones(text.shape[:2])
    if kind.startswith("wan"):
        more = {"encoder_hidden_states_image": given["clip_fea"].reshape(-1, 257, 1280)} if "clip_fea" in given else {}
        if kind == "wan_vace":
            more = {"control_hidden_states": given["vace"]}
        return model(x, time, text, return_dict=False, **more)[0]
    if kind == "ltx":
        out = model(x.flatten(2).mT, text, time[None], ones, num_frames=2, height=4, width=4,
                    rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False)[0]
        return out.mT.reshape(x.shape)
    if kind == "hunyuan":
        return model(x, time, text, ones, given["y"], guidance=torch.tensor([6000.0]), return_dict=False)[0]
    byt5 = given["txt_byt5"]
    return model(x, time, text, ones, encoder_hidden_states_2=byt5, encoder_attention_mask_2=torch.ones(byt5.shape[:2]),
                 image_embeds=given["clip_fea"], return_dict=False)[0]


def main() -> None:
    outputs, shapes = {}, {}
    for kind, (name, values) in MODELS.items():
        model = getattr(diffusers, name)(**values).eval()
        shapes[kind] = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        model.load_state_dict(state_of(shapes[kind]))
        with torch.no_grad():
            outputs[kind] = call(kind, model).contiguous()
    save_file(outputs, HERE / "diffusers_models.safetensors",
              {"diffusers": diffusers.__version__, "shapes": json.dumps(shapes, separators=(",", ":"))})


if __name__ == "__main__":
    main()
