"""Load Diffusion Model (NF4) and Load Text Encoder (NF4)."""

from __future__ import annotations

import folder_paths

from ..common.compat import field, io, node_progress, schema
from .bridge import load_diffusion_model
from .bridge_text import load_text_encoder
from .codecs import WEIGHTS
from .nodes_names import check_name, fingerprint, model_names
from .text_formats import TYPES

WEIGHTS_TOOLTIP = ("nf4 = large matrices in 4 bits (about a quarter of the VRAM), int8 = in 8 bits (half of it, closer "
                   "to the original), nf4_int8 = 4 bits, but 8 for the layers whose errors show most (a third "
                   "larger than nf4); packed while the file is read, LoRAs work. A file that is packed already "
                   "is taken as it is. original = as ComfyUI loads it.")

CACHE_TOOLTIP = ("keep = what was quantised is kept beside the model as <file>.<weights>.videomemory and "
                 "read from there the next time; made anew when the model file changes. off = nothing is written.")
CACHES = ("off", "keep")
NO_FILE = "none"
TYPE_TOOLTIP = ("What the prompts are for. auto = from the files: UMT5 -> wan, T5 -> ltxv, LLaVA-Llama-3 + CLIP-L -> "
                "hunyuan_video, Qwen2.5-VL + ByT5 -> hunyuan_video_15, CLIP-L -> stable_diffusion, T5 + CLIP-L -> "
                "flux. T5 also serves mochi, chroma and sd3: choose these here.")


class LoadDiffusionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "loading",
            node_id="VideoMemoryLoadDiffusionModel",
            display_name="Load Diffusion Model (NF4)",
            description="Loads a video model in 4 or 8 bits, so that it fits a small card, or in its original form.",
            search_aliases=["UNETLoader", "bitsandbytes", "4-bit", "quantize", "bnb", "diffusers"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Combo, "model_name", display_name="model",
                      options=model_names("diffusion_models"),
                      tooltip="Wan, HunyuanVideo, LTX-Video, SVD or SD 1.5 in models/diffusion_models, known by its "
                              "tensors. Of a sharded folder: its list (.index.json) or any of its files."),
                field(io.Combo, "weights", options=list(WEIGHTS), default="nf4", tooltip=WEIGHTS_TOOLTIP),
                field(io.Combo, "cache", options=list(CACHES), default="off", optional=True, tooltip=CACHE_TOOLTIP),
            ],
            outputs=[
                io.Model.Output(id="model", display_name="MODEL", tooltip="Works with every node that takes a MODEL."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="How many weights were packed, what stayed and why, sizes before and after."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool | str:
        return check_name("Load Diffusion Model (NF4)", "diffusion_models", model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None, weights: str | None, cache: str | None = None) -> tuple:
        return fingerprint("diffusion_models", model_name)

    @classmethod
    def execute(cls, model_name: str, weights: str, cache: str = "off") -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", model_name)
        progress = node_progress(1, cls.hidden.unique_id)
        return io.NodeOutput(*load_diffusion_model(
            path, weights, progress=progress, cache=cache == CACHES[1]))


class LoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = model_names("text_encoders")
        return schema(
            "loading",
            node_id="VideoMemoryLoadTextEncoder",
            display_name="Load Text Encoder (NF4)",
            description="Loads the text encoder of a video model in 4 bits, in 8 bits or as it is: UMT5, T5, CLIP-L, "
                        "LLaVA-Llama-3, Qwen2.5-VL, ByT5; reduced ones too.",
            search_aliases=["CLIPLoader", "DualCLIPLoader", "umt5", "t5xxl", "llava", "bitsandbytes", "4-bit", "bnb"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Combo, "text_encoder_name", display_name="text encoder", options=files,
                      tooltip="A file in models/text_encoders, recognised by its tensors. UMT5 needs its tokenizer "
                              "inside (as repackaged for ComfyUI)."),
                field(io.Combo, "weights", options=list(WEIGHTS), default="nf4", tooltip=WEIGHTS_TOOLTIP),
                field(io.Combo, "second_name", display_name="second text encoder", options=[NO_FILE, *files],
                      default=NO_FILE, optional=True,
                      tooltip="The other file of models that read prompts with two: CLIP-L beside LLaVA-Llama-3 "
                              "(HunyuanVideo) or T5, ByT5 beside Qwen2.5-VL (HunyuanVideo 1.5). The order is free."),
                field(io.Combo, "type", options=["auto", *TYPES], default="auto", optional=True, tooltip=TYPE_TOOLTIP),
                field(io.Combo, "cache", options=list(CACHES), default="off", optional=True, tooltip=CACHE_TOOLTIP),
            ],
            outputs=[
                io.Clip.Output(id="clip", display_name="CLIP", tooltip="Works with every node that takes a CLIP."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="The type, how many weights were packed, what stayed and why, sizes before "
                                         "and after."),
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name: str | None) -> bool | str:
        return check_name("Load Text Encoder (NF4)", "text_encoders", text_encoder_name)

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name: str | None, weights: str | None, second_name: str | None = NO_FILE,
                           type: str | None = "auto", cache: str | None = None) -> tuple:
        second = fingerprint("text_encoders", second_name) if second_name != NO_FILE else ()
        return fingerprint("text_encoders", text_encoder_name) + second

    @classmethod
    def execute(cls, text_encoder_name: str, weights: str, second_name: str = NO_FILE, type: str = "auto",
                cache: str = "off") -> io.NodeOutput:
        path, second = (folder_paths.get_full_path_or_raise("text_encoders", name) if name != NO_FILE else None
                        for name in (text_encoder_name, second_name))
        return io.NodeOutput(*load_text_encoder(
            path, weights, progress=node_progress(1, cls.hidden.unique_id), second=second, kind=type,
            embeddings=folder_paths.get_folder_paths("embeddings"), cache=cache == CACHES[1]))


NODES = [LoadDiffusionModel, LoadTextEncoder]
