"""The kinds of diffusion models, known by the names of their tensors, and what of each is too sensitive to be packed.

A file's own name says nothing. `keep` lists what every token passes through once: errors there never average out.
`fine` lists modulations that are a quarter of the model: they take 8 bits where the rest takes 4. Norms, biases,
convolutions and everything under 1 MB stay without being listed. `mixed` and `late` list what takes 8 bits when a mix
is asked for: what attention hands on, everywhere, and feed-forward layers in the later half of the blocks, whose errors
nothing after them evens out (chosen by the error of a Wan model's output, benchmarks/weights_quality.py; the mixes of
llama.cpp single out the same layers). Sources of the names: the modules of ComfyUI's model classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    markers: the names that prove it. absent: names that disprove it. columns: the length of a marker's last dimension,
    where names alone do not tell. keep, fine: (part of a name, reason). mixed, late: patterns of names. ignore:
    beginnings of names that ComfyUI's model class has no place for.
    """

    title: str
    markers: tuple[str, ...]
    keep: tuple[tuple[str, str], ...]
    ignore: tuple[str, ...] = ()
    fine: tuple[tuple[str, str], ...] = ()
    mixed: str = "(?!)"  # no name
    late: str = "(?!)"
    absent: tuple[str, ...] = ()
    columns: Mapping[str, int] = field(default_factory=dict)


WAN = Family(
    "Wan diffusion model", ("head.modulation", "patch_embedding.weight", "blocks.0.self_attn.q.weight"),
    (("embedding", "embedding"), ("img_emb", "embedding"), ("audio_proj", "embedding"), ("time_projection",
     "time modulation"), ("casual_audio_encoder", "audio encoder"), ("motion_encoder", "face encoder"),
     ("face_encoder", "face encoder"), ("trainable_cond_mask", "embedding"), ("head.", "output head")),
    fine=(("injector_adain_layers", "audio modulation"),), mixed=r"self_attn\.[vo]\.", late=r"\.ffn\.")

_HUNYUAN = ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "img_in.proj.weight", "final_layer.linear.weight")
_HUNYUAN_KEEP = (
    *((f"{name}.", "embedding") for name in (
        "img_in", "txt_in.input_embedder", "txt_in.t_embedder", "txt_in.c_embedder", "time_in", "time_r_in",
        "vector_in", "guidance_in", "byt5_in", "vision_in", "cond_type_embedding")),
    ("adaLN_modulation", "time modulation"), ("final_layer.", "output head"))
_HUNYUAN_FINE = (("_mod.lin", "time modulation"), (".modulation.lin", "time modulation"))
_HUNYUAN_MIX = {"mixed": r"_attn[._](qkv|proj)\.", "late": r"_mlp\.|\.linear[12]\."}
HUNYUAN_15 = Family("HunyuanVideo 1.5 diffusion model", (*_HUNYUAN, "vision_in.proj.0.weight"), _HUNYUAN_KEEP,
                    fine=_HUNYUAN_FINE, **_HUNYUAN_MIX)
HUNYUAN = Family("HunyuanVideo diffusion model", _HUNYUAN, _HUNYUAN_KEEP, fine=_HUNYUAN_FINE, **_HUNYUAN_MIX,
                 absent=("vision_in.proj.0.weight",))

LTX = Family(
    "LTX-Video diffusion model",
    ("adaln_single.emb.timestep_embedder.linear_1.bias", "patchify_proj.weight", "scale_shift_table",
     "transformer_blocks.0.attn2.to_k.weight"),
    (("patchify_proj", "embedding"), ("caption_projection", "embedding"), ("adaln_single", "time modulation"),
     ("proj_out", "output head")),
    mixed=r"\.attn1\.to_(v|out)\.", late=r"\.ff\.net\.")

_UNET = ("input_blocks.0.0.weight", "time_embed.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
_UNET_KEEP = (("time_embed", "embedding"), ("label_emb", "embedding"), ("time_pos_embed", "embedding"),
              ("emb_layers", "time modulation"))
_UNET_MIX = r"\.attn1\.to_(v|out)\.|^output_blocks\..*\.ff\.net\."
SVD = Family("Stable Video Diffusion UNet", (*_UNET, "input_blocks.1.1.time_stack.0.attn1.to_q.weight"), _UNET_KEEP,
             columns={_UNET[2]: 1024}, mixed=_UNET_MIX)
SD15 = Family("Stable Diffusion 1.5 UNet", _UNET, _UNET_KEEP, columns={_UNET[2]: 768}, mixed=_UNET_MIX,
              absent=("label_emb.0.0.weight", "input_blocks.1.1.time_stack.0.attn1.to_q.weight"))

DIFFUSION_MODELS = (WAN, HUNYUAN_15, HUNYUAN, LTX, SVD, SD15)


@dataclass(frozen=True)
class OtherKind:
    """A kind of file that is no diffusion model. pattern: found in one of its names. do: the way to load it."""

    title: str
    pattern: re.Pattern[str]
    do: str


OTHER_KINDS = (
    OtherKind("a LoRA", re.compile(r"\blora_|\blora\.|_lora\.|\blok[rh]a?_|\bhada_w|\.lora_|\.diff_b$"),
              "Put it in models/loras and load it with Load LoRA (coverage)."),
    OtherKind("an AnimateDiff motion module", re.compile(r"motion_modules\.\d|\btemporal_transformer\."),
              "Load it with the nodes of AnimateDiff."),
    OtherKind("a ControlNet", re.compile(r"^control_model\.|^controlnet_|^zero_convs\.|^input_hint_block\."),
              "Put it in models/controlnet and load it with Load ControlNet Model."),
    OtherKind("a text encoder", re.compile(
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.|text_model\.encoder\.layers\.0\.|"
        r"^(model\.|language_model\.|llama\.)*layers\.0\.self_attn\.q_proj\.|^blocks\.0\.pos_embedding\.embedding\."),
        "Put it in models/text_encoders and load it with Load Text Encoder (NF4)."),
    OtherKind("an image encoder", re.compile(r"vision_model\.embeddings\.patch_embedding\.|visual\.transformer\.resbl"),
              "Put it in models/clip_vision and load it with Load CLIP Vision."),
    OtherKind("a VAE", re.compile(r"^(first_stage_model\.|vae\.)?(decoder|encoder)\.(conv_in|conv1|conv_out|head)\."),
              "Put it in models/vae and load it with Load VAE."),
)


def other_kind(names: Iterable[str]) -> OtherKind | None:
    """What a file is that is no diffusion model, by its tensors' names; None where that is not known."""
    names = list(names)
    return next((kind for kind in OTHER_KINDS if any(map(kind.pattern.search, names))), None)
