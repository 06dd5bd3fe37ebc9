"""Load Checkpoint (NF4)."""

from __future__ import annotations

import folder_paths

from ..common.compat import field, io, node_progress, schema
from .bridge_checkpoint import load_checkpoint
from .codecs import WEIGHTS
from .nodes import CACHE_TOOLTIP, CACHES, WEIGHTS_TOOLTIP
from .nodes_names import check_name, fingerprint, model_names


class LoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "loading",
            node_id="VideoMemoryLoadCheckpoint",
            display_name="Load Checkpoint (NF4)",
            description="Loads an all-in-one file: its diffusion model in 4 or 8 bits, what lies beside it as it is.",
            search_aliases=["CheckpointLoaderSimple", "ImageOnlyCheckpointLoader", "SVD", "LTX", "bitsandbytes", "bnb"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Combo, "checkpoint_name", display_name="checkpoint",
                      options=model_names("checkpoints"),
                      tooltip="A safetensors, .pt or .ckpt file in models/checkpoints, e.g. SVD, LTX-Video or SD 1.5."),
                field(io.Combo, "weights", options=list(WEIGHTS), default="nf4", tooltip=WEIGHTS_TOOLTIP),
                field(io.Combo, "cache", options=list(CACHES), default="off", optional=True, tooltip=CACHE_TOOLTIP),
            ],
            outputs=[
                io.Model.Output(id="model", display_name="MODEL", tooltip="Works with every node that takes a MODEL."),
                io.Clip.Output(id="clip", display_name="CLIP", tooltip="The text encoder; empty if the file has none."),
                io.Vae.Output(id="vae", display_name="VAE", tooltip="Refuses to work if the file has none."),
                io.ClipVision.Output(id="clip_vision", display_name="CLIP_VISION",
                                     tooltip="The image encoder (SVD has one); empty if the file has none."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="What was packed, what stayed and why, and which parts the file has."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint_name: str | None) -> bool | str:
        return check_name("Load Checkpoint (NF4)", "checkpoints", checkpoint_name)

    @classmethod
    def fingerprint_inputs(cls, checkpoint_name: str | None, weights: str | None, cache: str | None = None) -> tuple:
        return fingerprint("checkpoints", checkpoint_name)

    @classmethod
    def execute(cls, checkpoint_name: str, weights: str, cache: str = "off") -> io.NodeOutput:
        parts, report = load_checkpoint(
            folder_paths.get_full_path_or_raise("checkpoints", checkpoint_name), weights,
            progress=node_progress(1, cls.hidden.unique_id), embeddings=folder_paths.get_folder_paths("embeddings"),
            cache=cache == CACHES[1])
        return io.NodeOutput(parts.model, parts.clip, parts.vae, parts.clip_vision, report)


NODES = [LoadCheckpoint]
