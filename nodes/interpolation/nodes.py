"""Load Frame Interpolation Model (RIFE) and Interpolate Frames (RIFE)."""

from __future__ import annotations

from functools import partial

import torch

from ..budget.watch import watched
from ..common.compat import (
    RenderPlanIO,
    RifeModelIO,
    field,
    io,
    node_id,
    node_progress,
    other_models_bytes,
    schema,
    user_folder,
)
from ..common.types import RenderPlan
from .between import FLOW_SCALES
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
            description="A RIFE network, which makes frames between frames. The weights of version 4.26 come with the "
                        "pack.",
            search_aliases=["vfi", "smooth", "frame rate", "slow motion"],
            inputs=[
                field(io.Combo, "model_name", display_name="model", options=list_weights(weight_folders()),
                      default=BUNDLED,
                      tooltip="The weights that come with the pack, or a file of RIFE 4.5 to 4.26 in "
                              "models/frame_interpolation or models/rife."),
                field(io.Combo, "flow_scale", display_name="flow scale", options=list(FLOW_SCALES), default="auto",
                      optional=True,
                      tooltip="Resolution at which motion is estimated. Auto: full up to 2560 pixels, half up to 5120, "
                              "above that a quarter. Lower finds larger movements and is faster; the frames "
                              "themselves stay at full size."),
            ],
            outputs=[RifeModelIO.Output(id="rife", display_name="RIFE",
                                        tooltip="For Interpolate Frames (RIFE) and Assemble Short.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool | str:
        """A name that comes over a link is None here and is checked when it is used."""
        if model_name is None:
            return True
        try:
            find_weights(model_name, weight_folders())
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model_name: str, flow_scale: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(load_interpolator(model_name, flow_scale))


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
                field(RenderPlanIO, "plan", optional=True,
                      tooltip="From VRAM Budget Gate: how many frames to make at once. Without it, one "
                              "frame at 720p, or several smaller frames with the same total number of pixels."),
            ],
            outputs=[
                io.Image.Output(id="smooth_images", display_name="images", tooltip="The frames at the wanted rate."),
                io.Float.Output(id="fps", display_name="frames per second",
                                tooltip="The wanted rate, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, rife: RifeInterpolator, source_fps: float, target_fps: float,
                plan: RenderPlan | None = None) -> io.NodeOutput:
        require_room(images, source_fps, target_fps)
        progress = node_progress(1, node_id(cls))
        stream = rife.stream(images.shape[2], images.shape[1], plan.interpolation_batch if plan else 0)
        device = rife.patcher.load_device
        with watched(plan, "interpolation", device, user_folder(), partial(other_models_bytes, device, rife.patcher)):
            made = retime_images(images, source_fps, target_fps, stream, progress)
        return io.NodeOutput(made, target_fps)


NODES = [LoadRife, InterpolateFrames]
