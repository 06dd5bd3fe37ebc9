"""Save Clip, Load Clip, Assemble Short: where a film leaves the graph and becomes files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl

from ..common.compat import (
    RenderPlanIO,
    RifeModelIO,
    VideoClipsIO,
    VideoMemoryIO,
    field,
    io,
    node_id,
    node_progress,
    schema,
    ui,
)
from ..common.errors import message
from ..common.types import VideoClips
from ..memory.state import placed
from .bridge import disk_errors, load_clip, open_run, save_clip
from .encode import write_mp4
from .run_folder import run_path
from .stream import Tally, film_frames, film_report, plan_film

RUN_TIP = "The film's folder inside output/videomemory. Clips already finished there are not decoded again."
FILE_NAME_BYTES = 200  # file systems take 255; a number and an ending are added


def _check_run_name(run_name: str | None) -> bool | str:
    """A name that comes over a link is None here and is checked when the node runs."""
    try:
        run_path("", "linked" if run_name is None else run_name)
    except ValueError as error:
        return str(error)
    return True


def _check_prefix(filename_prefix: str | None) -> bool | str:
    """Known before the film is rendered; a name that comes over a link is None here and is checked by ComfyUI."""
    path, output = os.path.normpath(filename_prefix or ""), os.path.abspath(folder_paths.get_output_directory())
    full = os.path.abspath(os.path.join(output, os.path.dirname(path)))
    if Path(full).is_relative_to(output) and len(os.path.basename(path).encode()) <= FILE_NAME_BYTES:
        return True
    return message("Assemble Short needs a file name inside ComfyUI's output folder", filename_prefix,
                   f"folders below {output} and a name of at most {FILE_NAME_BYTES} bytes",
                   'Choose a name such as "video/short".')


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
                      tooltip="From VRAM Budget Gate: says whether the decode must be tiled. Without it, it is not."),
                field(VideoClipsIO, "clips", optional=True,
                      tooltip="The clips before this one, from the previous Save Clip; their count is its number."),
                field(io.String, "fingerprint", optional=True, default="",
                      tooltip="What the clip was made from, in one word; Render Short fills it. A clip that the folder "
                              "holds with this word is not sampled again. Empty = always sampled."),
                field(io.String, "note", optional=True, default="",
                      tooltip="A line for people in the folder's manifest; Render Short writes the clip's prompt."),
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
    def check_lazy_status(cls, run_name: str, clips=None, fingerprint: str = "", **inputs: object) -> list[str]:
        """A clip that is safe in the folder needs no sampler: its latents and its memory are read from there."""
        index = len(clips.records) if clips else 0
        if fingerprint and open_run(run_name).is_sampled(index, fingerprint):
            return []
        open_run(run_name).require_writable()
        return [name for name in ("samples", "memory") if name in inputs and inputs[name] is None]

    @classmethod
    def execute(cls, vae: object, run_name: str, samples: dict | None = None, memory=None, plan=None, clips=None,
                fingerprint: str = "", note: str = "") -> io.NodeOutput:
        run, before = open_run(run_name), clips.records if clips else ()
        if samples is None:
            samples, memory = load_clip(run, len(before), True, fingerprint)
            memory = memory if plan is None else placed(memory, plan.spec.placement)
        with disk_errors("Save Clip", run.path):
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
                field(io.Int, "clip_index", display_name="clip", default=0, min=0, max=9999,
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
    def fingerprint_inputs(cls, run_name: str, clip_index: int, **_others: object) -> str:
        take = open_run(run_name).newest(clip_index)
        return f"{take.digest} {sorted(take.files)}" if take else ""

    @classmethod
    def execute(cls, run_name: str, clip_index: int, with_memory: bool) -> io.NodeOutput:
        return io.NodeOutput(*load_clip(open_run(run_name), clip_index, with_memory))


class AssembleShort(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "video",
            node_id="VideoMemoryAssembleShort",
            display_name="Assemble Short",
            description="Joins the clips into one film: smooth to the target frame rate, enlarged, as H.264 video.",
            search_aliases=["save video", "concatenate clips", "export mp4"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(VideoClipsIO, "clips", tooltip="From the last Save Clip, or from Render Short."),
                field(RifeModelIO, "rife", optional=True,
                      tooltip="Makes the frames between the frames, across the joins too, but never across a hard cut. "
                              "Without it frames are repeated."),
                field(io.Float, "target_fps", display_name="frames per second", default=24.0, min=0.0, max=240.0,
                      step=0.001, tooltip="The film's frame rate. 0 = as the clips."),
                field(io.Int, "enlarge", default=1, min=1, max=8,
                      tooltip="Multiply width and height by this, smoothly. 1 = as the clips."),
                field(io.Int, "crf", display_name="quality (crf)", default=18, min=0, max=51,
                      tooltip="H.264 quality: lower is better and larger; 18 looks like the original, 0 is lossless, "
                              "which browsers do not play."),
                field(io.String, "filename_prefix", display_name="file name", default="video/short",
                      tooltip="Folder and start of the name inside ComfyUI's output folder."),
                field(io.Audio, "audio", optional=True, tooltip="Sound for the film; cut at its end."),
            ],
            outputs=[
                io.Video.Output(id="video", display_name="video", tooltip="The finished film, for any video node."),
                io.String.Output(id="path", display_name="path", tooltip="Where the file lies."),
                io.String.Output(id="report", display_name="report", tooltip="What the film was made of."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        return _check_prefix(filename_prefix)

    @classmethod
    def execute(cls, clips: VideoClips, target_fps: float, enlarge: int, crf: int, filename_prefix: str, rife=None,
                audio=None) -> io.NodeOutput:
        plan, tally = plan_film(clips.records, target_fps, enlarge), Tally()
        output = folder_paths.get_output_directory()
        with disk_errors("Assemble Short", output):
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, output, plan.width, plan.height)
            path = Path(folder) / f"{name}_{counter:05}_.mp4"
            frames = film_frames(plan, rife, node_progress(plan.frames, node_id(cls)), tally)
            write_mp4(path, frames, plan.target_fps, crf, audio, cls.workflow_text())
        preview = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), str(path),
                             film_report(plan, tally, rife is not None), ui=preview)

    @classmethod
    def workflow_text(cls) -> dict[str, str]:
        """The workflow for the file's metadata, as core's Save Video writes it, unless the user switched that off."""
        if cls.hidden is None or args.disable_metadata:
            return {}
        found = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {name: json.dumps(value) for name, value in found.items() if value is not None}


NODES = [SaveClip, LoadClip, AssembleShort]
