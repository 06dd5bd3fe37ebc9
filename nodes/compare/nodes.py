"""Compare Frames, and Compare Quantization: one clip through two MODELs, and what differs."""

from __future__ import annotations

from fractions import Fraction

import torch
from comfy_api.latest import InputImpl, Types
from comfy_execution.graph_utils import GraphBuilder

from ..common.compat import RenderPlanIO, VideoMemoryIO, field, io, node_id, node_progress, schema
from ..common.errors import message
from ..common.types import RenderPlan, VideoMemory
from .plot import draw_plot, side_by_side
from .quality import compare, require_comparable, table


def _outputs() -> list:
    return [
        io.String.Output(id="report", display_name="report", tooltip="PSNR, SSIM, flicker: averages, then per frame."),
        io.Image.Output(id="plot", display_name="plot", tooltip="The three measures over the frames, as an image."),
        io.Video.Output(id="video", display_name="video", tooltip="Both videos side by side, for Save Video."),
    ]


class CompareFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "compare",
            node_id="VideoMemoryCompareFrames",
            display_name="Compare Frames",
            description="How far one video is from another, frame by frame: PSNR, SSIM, flicker, a plot, and both side "
                        "by side.",
            search_aliases=["PSNR", "SSIM", "difference", "quality"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Image, "frames_a", tooltip="The frames to compare with, for example of unquantised weights."),
                field(io.Image, "frames_b", tooltip="The frames to judge; as many and as large as the others."),
                field(io.Float, "fps", display_name="frames per second", default=24.0, min=0.001, max=1000.0,
                      step=0.001, tooltip="Rate of the side-by-side video."),
                field(io.String, "name_a", default="a", tooltip="Label of the first video."),
                field(io.String, "name_b", default="b", tooltip="Label of the second video."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, frames_a: torch.Tensor, frames_b: torch.Tensor, fps: float, name_a: str,
                name_b: str) -> io.NodeOutput:
        require_comparable(frames_a, frames_b)
        names = (name_a, name_b)
        quality = compare(frames_a, frames_b, node_progress(len(frames_a), node_id(cls)))
        video = InputImpl.VideoFromComponents(Types.VideoComponents(
            images=side_by_side(frames_a, frames_b, names), frame_rate=Fraction(fps).limit_denominator(1001)))
        return io.NodeOutput(table(quality, names), draw_plot(quality, names), video)


class CompareQuantization(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "compare",
            node_id="VideoMemoryCompareQuantization",
            display_name="Compare Quantization",
            description="Samples one clip with two MODELs from one seed, prompt and memory, and shows what differs.",
            search_aliases=["NF4", "int8", "GGUF", "PSNR", "SSIM", "quality"],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
            inputs=[
                field(io.Model, "model_a", tooltip="The MODEL to compare with, for example with its original weights."),
                field(io.Model, "model_b", tooltip="The MODEL to judge: the same checkpoint in fewer bits."),
                field(io.Vae, "vae", tooltip="The checkpoint's VAE."),
                field(VideoMemoryIO, "memory", tooltip="What came before; an empty Persistent Memory will do."),
                field(io.Conditioning, "positive", tooltip="What happens in the clip."),
                field(io.Int, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                      tooltip="The same noise goes through both."),
                field(io.Int, "width", default=832, min=32, max=8192, step=32, tooltip="Pixels. Ignored with a plan."),
                field(io.Int, "height", default=480, min=32, max=8192, step=32, tooltip="Pixels. Ignored with a plan."),
                field(io.Float, "clip_seconds", display_name="clip (seconds)", default=2.0, min=0.1, max=10.0, step=0.1,
                      tooltip="All frames of both clips are in RAM at once. Ignored with a plan."),
                field(io.String, "name_a", default="original", tooltip="Label of the first MODEL."),
                field(io.String, "name_b", default="quantised", tooltip="Label of the second MODEL."),
                field(RenderPlanIO, "plan", optional=True,
                      tooltip="The plan of VRAM Budget Gate: its size and clip length are used."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model_a, model_b, vae, memory: VideoMemory, positive: list, seed: int, width: int, height: int,
                clip_seconds: float, name_a: str, name_b: str, plan: RenderPlan | None = None) -> io.NodeOutput:
        if memory is None:
            raise ValueError(message("Compare Quantization needs a memory", "a clip that was saved without one",
                                     "Persistent Memory, or the memory after a clip", "Connect one of them."))
        links = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]
        shared = {name: links[name] for name in ("memory", "positive")}
        shared |= {"seed": seed, "width": width, "height": height, "clip_seconds": clip_seconds}
        if plan is not None:
            shared["plan"] = links["plan"]
        graph, frames = GraphBuilder(), {}
        for side in "ab":
            clip = graph.node("VideoMemoryClipSampler", f"sample_{side}", model=links[f"model_{side}"], **shared)
            decoded = graph.node("VAEDecode", f"decode_{side}", samples=clip.out(0), vae=links["vae"])
            frames[f"frames_{side}"] = decoded.out(0)
        result = graph.node("VideoMemoryCompareFrames", "compare", fps=memory.spec.fps, name_a=name_a, name_b=name_b,
                            **frames)
        return io.NodeOutput(result.out(0), result.out(1), result.out(2), expand=graph.finalize())


NODES = [CompareFrames, CompareQuantization]
