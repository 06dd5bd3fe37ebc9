"""Re-anchor Prompt Schedule and Prompt for Clip: texts in seconds to one conditioning per clip."""

from __future__ import annotations

from functools import partial

from ..budget.watch import watched
from ..common.compat import PromptTimelineIO, RenderPlanIO, field, io, models_bytes, schema, user_folder
from ..common.errors import message
from ..common.types import PromptTimeline, RenderPlan
from .timeline import check_seconds, clip_text, parse_scenes, preview, resolve

DEFAULT_IDENTITY = "a blue circle hero with a green hat"
DEFAULT_SCENES = """0-6: {hero} walks right in the forest
6-12: {hero} waves by the sea
12-18: {hero} jumps in the city
18-24: {hero} walks left in the snow
24: {hero} waves in the desert"""


class PromptSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "prompts",
            node_id="VideoMemoryPromptSchedule",
            display_name="Re-anchor Prompt Schedule",
            description="Who the film is about and what happens when, in seconds; names the hero again now and then.",
            search_aliases=["prompt travel", "timeline", "scenes", "storyboard"],
            inputs=[
                field(io.String, "identity", multiline=True, default=DEFAULT_IDENTITY,
                      tooltip="The full description of the hero: shape, colours, clothes. Used in re-anchored clips."),
                field(io.String, "hero", default="the hero",
                      tooltip="The short name used in the clips between: the memory knows who is meant."),
                field(io.String, "scenes", multiline=True, default=DEFAULT_SCENES,
                      tooltip="One scene per line, in seconds: '0-3: {hero} walks in the forest', or '3: ...' to last "
                              "until the next line. 1:05 means 65 s. Lines that start with # are notes."),
                field(io.Float, "reanchor_seconds", display_name="re-anchor every (seconds)", default=8.0, min=0.0,
                      max=3600.0, step=0.1,
                      tooltip="The full identity is named again in the first clip that starts at or after each "
                              "multiple of this. 0 = only in the first clip."),
                field(io.Float, "clip_seconds", display_name="clip (seconds)", default=4.0, min=0.1, max=600.0,
                      step=0.01, tooltip="Length of one clip. Render Short cuts the film anew if the plan changed it."),
                field(io.Float, "film_seconds", display_name="film (seconds)", default=30.0, min=0.1, max=36000.0,
                      step=0.1, tooltip="Length of the whole film; the last clip may run a little over."),
            ],
            outputs=[
                PromptTimelineIO.Output(id="timeline", display_name="timeline",
                                        tooltip="For Render Short or Prompt for Clip."),
                io.Int.Output(id="clip_count", display_name="clips", tooltip="How many clips the film has."),
                io.String.Output(id="preview", display_name="preview",
                                 tooltip="Every clip with its seconds and its prompt; * names the identity."),
            ],
        )

    @classmethod
    def validate_inputs(cls, identity: str | None, hero: str | None, scenes: str | None,
                        reanchor_seconds: float | None, clip_seconds: float | None,
                        film_seconds: float | None) -> bool | str:
        """A value that comes over a link is None here and is checked when the node runs."""
        seconds = (reanchor_seconds, clip_seconds, film_seconds)
        try:
            check_seconds(*(1.0 if value is None else value for value in seconds))
            if scenes is not None and film_seconds is not None:
                parse_scenes(scenes, film_seconds)
            if None not in (identity, hero, scenes, *seconds):
                resolve(identity, hero, scenes, *seconds)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, identity: str, hero: str, scenes: str, reanchor_seconds: float, clip_seconds: float,
                film_seconds: float) -> io.NodeOutput:
        timeline = resolve(identity, hero, scenes, reanchor_seconds, clip_seconds, film_seconds)
        return io.NodeOutput(timeline, timeline.clip_count, preview(timeline))


class PromptForClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "prompts",
            node_id="VideoMemoryPromptForClip",
            display_name="Prompt for Clip",
            description="Encodes the prompt of one clip of a Re-anchor Prompt Schedule.",
            inputs=[
                field(io.Clip, "clip", tooltip="The text encoder, from any loader."),
                field(PromptTimelineIO, "timeline", tooltip="From Re-anchor Prompt Schedule."),
                field(io.Int, "clip_index", default=0, min=0, max=9999,
                      tooltip="Which clip of the film; the first one is 0."),
                field(RenderPlanIO, "plan", optional=True,
                      tooltip="From VRAM Budget Gate: what encoding the text takes is then measured beside it."),
            ],
            outputs=[
                io.Conditioning.Output(id="positive", display_name="positive",
                                       tooltip="The clip's prompt, for Clip Sampler."),
                io.String.Output(id="text", display_name="text", tooltip="The prompt that was encoded."),
            ],
        )

    @classmethod
    def execute(cls, clip, timeline: PromptTimeline, clip_index: int, plan: RenderPlan | None = None) -> io.NodeOutput:
        text = clip_text(timeline, clip_index)
        if clip is None:
            raise ValueError(message("Prompt for Clip needs a text encoder", clip, "a CLIP from a text encoder loader",
                                     "Connect Load Text Encoder (NF4); this checkpoint may not contain one."))
        device = clip.patcher.load_device
        clip.load_model()  # what it pushes off the card is no part of the encoding
        with watched(plan, "text", device, user_folder(), partial(models_bytes, device)):
            encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return io.NodeOutput([[tokens, {**extra, "videomemory_text": text}] for tokens, extra in encoded], text)


NODES = [PromptSchedule, PromptForClip]
