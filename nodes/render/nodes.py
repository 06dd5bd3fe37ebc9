"""Render Short: the whole film as one node, expanded into one small sub-graph per clip."""

from __future__ import annotations

import os

import folder_paths
from comfy_execution.graph_utils import GraphBuilder

from ..common.compat import (
    PromptTimelineIO,
    RenderPlanIO,
    VideoClipsIO,
    VideoMemoryIO,
    field,
    io,
    patcher_key,
    schema,
)
from ..common.types import PromptTimeline, RenderPlan, VideoMemory
from ..prompts.timeline import re_resolve
from ..video.run_folder import RunFolder, run_path
from .expansion import Film, Sources, count_reused, expand, fingerprints, status


class RenderShort(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "render",
            node_id="VideoMemoryRenderShort",
            display_name="Render Short",
            description="Makes every clip of a film, one after the other, each saved before the next begins. What is "
                        "finished is used again, also after a crash or a restart.",
            search_aliases=["long video", "film", "story"],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
            inputs=[
                field(io.Model, "model", tooltip="A causal Wan checkpoint, from any loader."),
                field(io.Clip, "clip", tooltip="The checkpoint's text encoder."),
                field(io.Vae, "vae", tooltip="The checkpoint's VAE."),
                field(VideoMemoryIO, "memory", tooltip="What the film starts with, from VRAM Budget Gate."),
                field(PromptTimelineIO, "timeline", tooltip="Who and what, from Re-anchor Prompt Schedule."),
                field(RenderPlanIO, "plan", tooltip="Size, clip length and decoding, from VRAM Budget Gate."),
                field(io.Int, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                      tooltip="One seed for the whole film. Another seed is another film."),
                field(io.String, "run_name", default="my_short",
                      tooltip="Name of the run folder in output/videomemory; the same name goes on with the film."),
                field(io.Boolean, "carry_memory", default=True,
                      tooltip="Off: no clip hands its memory to the next. For comparison only."),
            ],
            outputs=[
                VideoClipsIO.Output(id="clips", display_name="clips", tooltip="Finished clips, for Assemble Short."),
                VideoMemoryIO.Output(id="memory_after", display_name="memory",
                                     tooltip="The memory after the last clip, to go on from."),
                io.String.Output(id="status", display_name="status", tooltip="How many clips were made or used again."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None) -> bool | str:
        """A name that comes over a link is None here and is checked when the node runs."""
        try:
            _run_folder("linked" if run_name is None else run_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, clip, vae, memory: VideoMemory, timeline: PromptTimeline, plan: RenderPlan, seed: int,
                run_name: str, carry_memory: bool) -> io.NodeOutput:
        timeline = re_resolve(timeline, plan.clip_s)
        film = Film(patcher_key(model), patcher_key(clip.patcher), patcher_key(vae.patcher), memory, plan, seed,
                    carry_memory)
        prints = fingerprints(film, timeline.clip_texts)
        folder = _run_folder(run_name)
        links = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]
        sources = Sources(**{name: links[name] for name in ("model", "clip", "vae", "memory", "plan")}, seed=seed,
                          run_name=run_name, carry_memory=carry_memory)
        graph = GraphBuilder()

        def is_sampled(i: int) -> bool:
            return folder.is_sampled(i, prints[i])

        clips, after = expand(lambda kind, id, **inputs: graph.node(kind, id, **inputs).out, sources, timeline, prints)
        total = len(prints)
        return io.NodeOutput(clips, after, status(total, count_reused(is_sampled, total)), expand=graph.finalize())


def _run_folder(run_name: str) -> RunFolder:
    return RunFolder(run_path(os.path.join(folder_paths.get_output_directory(), "videomemory"), run_name))


NODES = [RenderShort]
