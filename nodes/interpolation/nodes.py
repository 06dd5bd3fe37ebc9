"""Load Frame Interpolation Model (RIFE) and Interpolate Frames (RIFE)."""

from __future__ import annotations

import torch

from ..common.compat import RifeModelIO, field, io, node_id, node_progress, schema
from .bridge import RifeInterpolator, load_interpolator, require_room, weight_folders
from .retime import retime_images
from .weights import BUNDLED, find_weights, list_weights


class LoadRife(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "interpolation",
            node_id="VideoMemoryLoadRife",
            display_name="Load Frame Interpolation Model (RIFE)",
            description="The RIFE v4.26 network, which makes frames between frames; its weights come with the pack.",
            search_aliases=["vfi", "smooth", "frame rate", "slow motion"],
            inputs=[
                field(io.Combo, "model_name", display_name="model", options=list_weights(weight_folders()),
                      default=BUNDLED,
                      tooltip="The weights that come with the pack, or a RIFE v4.26 file in "
                              "models/frame_interpolation."),
            ],
            outputs=[RifeModelIO.Output(id="rife", display_name="RIFE",
                                        tooltip="For Interpolate Frames (RIFE) and Assemble Short.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        try:
            find_weights(model_name, weight_folders())
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_interpolator(model_name))


class InterpolateFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "interpolation",
            node_id="VideoMemoryInterpolateFrames",
            display_name="Interpolate Frames (RIFE)",
            description="Brings a batch of images to another frame rate, with new frames in between; cuts stay cuts.",
            search_aliases=["vfi", "smooth", "frame rate", "slow motion", "fps"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Image, "images", tooltip="The video's frames in order. All of them are in memory here: for a "
                                                  "long film use Assemble Short, which streams."),
                field(RifeModelIO, "rife", tooltip="From Load Frame Interpolation Model (RIFE)."),
                field(io.Float, "source_fps", display_name="frames per second now", default=16.0, min=0.001, max=1000.0,
                      step=0.001, tooltip="The rate that the images were made for."),
                field(io.Float, "target_fps", display_name="frames per second wanted", default=24.0, min=0.001,
                      max=1000.0, step=0.001, tooltip="Any rate, not only multiples; the duration stays the same."),
            ],
            outputs=[
                io.Image.Output(id="smooth_images", display_name="images", tooltip="The frames at the wanted rate."),
                io.Float.Output(id="fps", display_name="frames per second",
                                tooltip="The wanted rate, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, rife: RifeInterpolator, source_fps: float,
                target_fps: float) -> io.NodeOutput:
        require_room(images, source_fps, target_fps)
        progress = node_progress(1, node_id(cls))
        return io.NodeOutput(retime_images(images, source_fps, target_fps, rife, progress), target_fps)


NODES = [LoadRife, InterpolateFrames]
