"""Render Short: the whole film as one node, expanded into one small sub-graph per clip."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_execution.graph_utils import GraphBuilder

from ..common.compat import (
    PromptTimelineIO,
    RenderPlanIO,
    VideoClipsIO,
    VideoMemoryIO,
    field,
    io,
    node_progress,
    output_places,
    schema,
)
from ..common.digest import clip_key, patcher_key, value_key
from ..common.types import MemorySpec, PromptTimeline, RenderPlan, VideoMemory
from ..prompts.timeline import re_resolve
from ..video.places import SUBFOLDER, run_path
from ..video.run_folder import RunFolder
from ..video.runs import changes
from .bridge import clip_times, open_run, show_progress
from .choice import REGENERATE, Again, Choice, choose
from .counted import counted, names
from .expansion import Film, Sources, expand
from .report import FilmClock, status

_OPTIONAL = (
    field(io.Combo, "regenerate", options=list(REGENERATE), default="none", optional=True,
          tooltip="none = make what is missing. only = make one clip again with another seed and keep the clips "
                  "after it, even though they were made from the old one. from = make it and all after it again. A "
                  "clip made again stays when you switch back to none."),
    field(io.Int, "regenerate_clip", display_name="clip to make again (1 = first)", default=1, min=1, max=9999,
          optional=True, tooltip="The number of the clip in the film; the first one is 1. Ignored with none."),
    field(io.Int, "regenerate_seed", display_name="its new seed", default=0, min=0, max=2**63 - 1,
          control_after_generate=False, optional=True,
          tooltip="Another seed is another take. The film's own seed brings the first take back. Ignored with none."),
    field(io.Conditioning, "negative", optional=True,
          tooltip="What must not be seen, in every clip. Of use only with cfg other than 1."),
    field(io.Float, "cfg", default=0.0, min=0.0, max=30.0, step=0.1, round=0.01, optional=True,
          tooltip="As on Clip Sampler: 0 = as the checkpoint's recipe says."),
    field(io.Image, "start_image", optional=True, tooltip="The first frame of the film, for its first clip."),
    field(io.Model, "model_low_noise", optional=True,
          tooltip="The second MODEL of a high/low noise pair (Wan 2.2 14B); model is then the high noise one."),
    field(io.ClipVision, "clip_vision", optional=True, tooltip="As on Clip Sampler, for every clip."),
    field(io.Sampler, "sampler", optional=True, tooltip="As on Clip Sampler, for every clip."),
    field(io.Sigmas, "sigmas", optional=True, tooltip="As on Clip Sampler, for every clip."),
)


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
                field(io.Model, "model", tooltip="The checkpoint that Persistent Memory names (causal or ordinary), "
                                                "from any loader."),
                field(io.Clip, "clip", tooltip="The checkpoint's text encoder."),
                field(io.Vae, "vae", tooltip="The checkpoint's VAE: decodes the clips, and encodes a start image."),
                field(VideoMemoryIO, "memory", tooltip="What the film starts with, from VRAM Budget Gate."),
                field(PromptTimelineIO, "timeline", tooltip="Who and what, from Re-anchor Prompt Schedule."),
                field(RenderPlanIO, "plan", tooltip="Size, clip length and decoding, from VRAM Budget Gate."),
                field(io.Int, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                      tooltip="One seed for the whole film. Another seed is another film."),
                field(io.String, "run_name", default="my_short",
                      tooltip="Name of the run folder in output/videomemory; the same name goes on with the film."),
                field(io.Boolean, "carry_memory", default=True,
                      tooltip="Off: no clip hands its memory to the next. For comparison only."),
                *_OPTIONAL,
            ],
            outputs=[
                VideoClipsIO.Output(id="clips", display_name="clips", tooltip="Finished clips, for Assemble Short."),
                VideoMemoryIO.Output(id="memory_after", display_name="memory",
                                     tooltip="The memory after the last clip, to go on from."),
                io.String.Output(id="status", display_name="status",
                                 tooltip="How many clips were used again and how many made, and what was damaged."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None) -> bool | str:
        """A name that comes over a link is None here and is checked when the node runs."""
        try:
            run_path("", "linked" if run_name is None else run_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None, **_others: object) -> int:
        """Another number after files of the folder were changed or deleted by somebody else: then look again."""
        return changes(*output_places(SUBFOLDER), run_name)

    @classmethod
    def execute(cls, model, clip, vae, memory: VideoMemory, timeline: PromptTimeline, plan: RenderPlan, seed: int,
                run_name: str, carry_memory: bool, regenerate: str = "none", regenerate_clip: int = 1,
                regenerate_seed: int = 0, **others: object) -> io.NodeOutput:
        timeline, run = re_resolve(timeline, plan.clip_s), open_run(run_name)
        film = cls.film(model, clip, vae, memory, plan, seed, carry_memory, others)
        again = Again(regenerate, regenerate_clip - 1, regenerate_seed)
        choices = choose(film.owns(timeline.clip_texts), film.start(), seed, run.fingerprints, again)
        is_there = cls.look_for(run, choices)
        to_make = [i for i, choice in enumerate(choices) if not run.finished(i, choice.keeps or choice.fingerprint)]
        chunks = plan.clip_latents // plan.spec.chunk_latents
        show_progress(cls.hidden.unique_id, FilmClock(len(choices), to_make, chunks, clip_times(run, plan)))
        graph = GraphBuilder()
        clips, after = expand(lambda kind, id, **inputs: graph.node(kind, id, **inputs).out,
                              cls.sources(others, run_name, carry_memory, memory.spec), timeline, choices)
        harm = filter(None, (run.harm(i, choice.fingerprint) for i, choice in enumerate(choices)))
        said = status(choices, is_there, again, [*run.seen.news(run.path), *harm])
        return io.NodeOutput(clips, after, said, expand=graph.finalize())

    @classmethod
    def film(cls, model, clip, vae, memory: VideoMemory, plan: RenderPlan, seed: int, carry_memory: bool,
             others: dict[str, object]) -> Film:
        """All that decides what the film looks like, as digests."""
        every, first = ({name: others[name] for name in group if others.get(name) is not None}
                        for group in names(memory.spec, carry_memory))
        counting, beginning = ({name: value_key(value) for name, value in group.items()}
                               for group in (counted(every, memory.spec, model), first))
        return Film(patcher_key(model), clip_key(clip), patcher_key(vae.patcher), memory, plan, seed,
                    carry_memory, counting, beginning)

    @classmethod
    def sources(cls, others: dict[str, object], run_name: str, carry_memory: bool, spec: MemorySpec) -> Sources:
        """What the clips are made with: links where inputs are connected, values where they are typed."""
        links = cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"]
        given = {name: links[name] for name, value in others.items() if value is not None and name in links}
        every, first = names(spec, carry_memory)
        return Sources(**{name: links[name] for name in ("model", "clip", "vae", "memory", "plan")},
                       run_name=run_name, carry_memory=carry_memory,
                       others={name: given[name] for name in every if name in given},
                       first={name: given[name] for name in first if name in given})

    @classmethod
    def look_for(cls, run: RunFolder, choices: Sequence[Choice]) -> list[bool]:
        """Per clip, whether the folder holds it; its files are compared with their checksums, once a session."""
        progress, found = node_progress(0, cls.hidden.unique_id), []
        for i, choice in enumerate(choices):
            progress.check_cancel()
            progress.say(f"looking for clip {i + 1} of {len(choices)} in the run folder")
            found.append(any(word and run.is_sampled(i, word) for word in (choice.fingerprint, choice.keeps)))
        return found


NODES = [RenderShort]
