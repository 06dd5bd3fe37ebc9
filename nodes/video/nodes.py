"""Save Clip and Load Clip: where a film leaves the graph and becomes files."""

from __future__ import annotations

from ..common.compat import (
    RenderPlanIO,
    VideoClipsIO,
    VideoMemoryIO,
    field,
    io,
    node_id,
    node_progress,
    output_places,
    schema,
)
from ..common.types import VideoClips
from .bridge import disk_errors, load_clip, open_run, reserve_clip, resume_clip, save_clip
from .places import SUBFOLDER, run_path
from .runs import changes, saved_takes

RUN_TIP = "The film's folder inside output/videomemory. Clips already finished there are not decoded again."


def _check_run_name(run_name: str | None) -> bool | str:
    """A name that comes over a link is None here and is checked when the node runs."""
    try:
        run_path("", "linked" if run_name is None else run_name)
    except ValueError as error:
        return str(error)
    return True


class SaveClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "video",
            node_id="VideoMemorySaveClip",
            display_name="Save Clip",
            description="Puts one clip into the film's folder: latents first, then the memory, then its frames.",
            search_aliases=["checkpoint", "resume", "vae decode", "save video"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Latent, "samples", lazy=True, tooltip="The clip from Clip Sampler, or any video latents."),
                field(io.Vae, "vae", tooltip="The VAE of the checkpoint. Wan's decode a few frames at a time."),
                field(io.String, "run_name", display_name="run name", default="my_short", tooltip=RUN_TIP),
                field(VideoMemoryIO, "memory", optional=True, lazy=True,
                      tooltip="The memory after this clip: saved with it, so that the film can go on from here."),
                field(RenderPlanIO, "plan", optional=True,
                      tooltip="From VRAM Budget Gate: says whether the decode must be tiled. Without it a Wan VAE "
                              "decodes whole frames and any other what fits; smaller tiles when memory runs out."),
                field(VideoClipsIO, "clips", optional=True,
                      tooltip="The clips before this one, from the previous Save Clip; their count is its number."),
                field(io.String, "fingerprint", optional=True, default="",
                      tooltip="What the clip was made from, in one word; Render Short fills it. A clip that the folder "
                              "holds with this word is not sampled again. Empty = always sampled."),
                field(io.String, "note", optional=True, default="",
                      tooltip="A human-readable note stored in manifest.json; Render Short writes the clip's prompt."),
                field(io.String, "keeps", optional=True, default="",
                      tooltip="Another fingerprint under which the folder may hold the clip: then it is kept as it is, "
                              "under the new one. Render Short fills it where only an earlier clip is made again."),
            ],
            outputs=[
                VideoClipsIO.Output(id="saved_clips", display_name="clips",
                                    tooltip="All clips so far, for the next Save Clip or for Assemble Short."),
                VideoMemoryIO.Output(id="memory_after", display_name="memory",
                                     tooltip="The memory after this clip, for the next Clip Sampler."),
                io.String.Output(id="report", display_name="report", tooltip="What was saved, and where."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None) -> bool | str:
        return _check_run_name(run_name)

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None, **_others: object) -> int:
        """Another number after files of the folder were changed or deleted by somebody else: then look again."""
        return changes(*output_places(SUBFOLDER), run_name)

    @classmethod
    def check_lazy_status(cls, run_name: str, clips=None, fingerprint: str = "", keeps: str = "",
                          **inputs: object) -> list[str]:
        """A clip that is safe in the folder needs no sampler: its latents and a connected memory are read there."""
        index, run = len(clips.records) if clips else 0, open_run(run_name)
        if any(word and run.is_sampled(index, word, "memory" in inputs) for word in (fingerprint, keeps)):
            return []
        reserve_clip(run, index, node_id(cls), fingerprint)
        return [name for name in ("samples", "memory") if name in inputs and inputs[name] is None]

    @classmethod
    def execute(cls, vae: object, run_name: str, samples: dict | None = None, memory=None, plan=None, clips=None,
                fingerprint: str = "", note: str = "", keeps: str = "") -> io.NodeOutput:
        run, before = open_run(run_name), clips.records if clips else ()
        with disk_errors("Save Clip", run.path):
            if samples is None:
                samples, memory = resume_clip(run, len(before), fingerprint, keeps, plan)
            record, report = save_clip(run, len(before), samples, vae, memory, plan, fingerprint,
                                       node_progress(1, node_id(cls)), note)
        return io.NodeOutput(VideoClips((*before, record)), memory, report)


class LoadClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "video",
            node_id="VideoMemoryLoadClip",
            display_name="Load Clip",
            description="A saved clip's latents, and the memory after it, out of a film's folder.",
            search_aliases=["resume", "continue film"],
            inputs=[
                field(io.String, "run_name", display_name="run name", default="my_short",
                      tooltip="The film's folder inside output/videomemory."),
                field(io.Int, "clip_index", display_name="clip number", default=0, min=0, max=9999,
                      tooltip="The clip's number; the first is 0. The newest take of it is loaded."),
                field(io.Boolean, "with_memory", display_name="with memory", default=True,
                      tooltip="Also load the memory after the clip, to go on with the film from here."),
            ],
            outputs=[
                io.Latent.Output(id="samples", display_name="latent",
                                 tooltip="The clip's latents, for Save Clip or any VAE decode."),
                VideoMemoryIO.Output(id="memory", display_name="memory",
                                     tooltip="The memory after the clip, for the next Clip Sampler, if asked for."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None) -> bool | str:
        return _check_run_name(run_name)

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None, clip_index: int | None, **_others: object) -> str:
        """What lies in the folder for this clip; of what comes over a link, all that it could mean."""
        places = output_places(SUBFOLDER)
        return f"{changes(*places, run_name)} {saved_takes(*places, run_name, clip_index)}"

    @classmethod
    def execute(cls, run_name: str, clip_index: int, with_memory: bool) -> io.NodeOutput:
        return io.NodeOutput(*load_clip(open_run(run_name), clip_index, with_memory))


NODES = [SaveClip, LoadClip]
