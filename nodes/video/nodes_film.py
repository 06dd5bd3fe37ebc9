"""Assemble Short: the clips of a film become one video file."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl

from ..budget.watch import Watch, watched
from ..common.compat import (
    RenderPlanIO,
    RifeModelIO,
    VideoClipsIO,
    field,
    io,
    node_id,
    node_progress,
    other_models_bytes,
    schema,
    ui,
    user_folder,
)
from ..common.disk import can_be_written
from ..common.errors import message
from ..common.types import RenderPlan, VideoClips
from .bridge import disk_errors
from .codecs import CODECS, require_encoder
from .encode import write_mp4
from .intermediates import INTERMEDIATES, located, settle
from .stream import SEAMS, FilmPlan, Tally, film_frames, film_report, plan_film

FILE_NAME_BYTES = 200  # file systems take 255; a number and an ending are added


class AssembleShort(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "video",
            node_id="VideoMemoryAssembleShort",
            display_name="Assemble Short",
            description="Joins the clips into one film: smooths the joins, interpolates to the target frame rate and "
                        "can enlarge. H.264, H.265 or AV1 video.",
            search_aliases=["save video", "concatenate clips", "export mp4", "h265", "hevc", "av1", "seam"],
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
                      tooltip="On H.264's scale, whatever the codec: lower is better and larger; 18 looks like the "
                              "original. 0 is lossless for H.264, which browsers do not play."),
                field(io.String, "filename_prefix", display_name="file name", default="video/short",
                      tooltip="Folder and start of the name inside ComfyUI's output folder."),
                field(io.Audio, "audio", optional=True, tooltip="Sound for the film; cut at its end."),
                field(RenderPlanIO, "plan", optional=True,
                      tooltip="From VRAM Budget Gate: how many frames RIFE makes at once. Without it, one frame at "
                              "720p, or several smaller frames with the same total number of pixels."),
                field(io.Combo, "codec", options=list(CODECS), default="h264", optional=True,
                      tooltip="H.264 plays everywhere. H.265 and AV1 are smaller at the same quality where there is "
                              "little noise, and slower to make. All are MP4, and all bring the workflow along."),
                field(io.Combo, "seams", options=list(SEAMS), default="smooth", optional=True,
                      tooltip="Smooth: where two clips join with a repeated frame or a jump, RIFE evens out the motion "
                              "around it, if that measures better. Crossfade: blend four frames on each side. Off: "
                              "leave the joins alone. Hard cuts stay as they are."),
                field(io.Combo, "intermediates", display_name="clips afterwards", options=list(INTERMEDIATES),
                      default="keep", optional=True,
                      tooltip="What becomes of the clips' lossless frames once the film is finished: keep them, "
                              "compress them to about half, or delete them. Latents and memories stay, so that deleted "
                              "frames can be decoded again."),
            ],
            outputs=[
                io.Video.Output(id="video", display_name="video", tooltip="The finished film, for any video node."),
                io.String.Output(id="path", display_name="path", tooltip="Where the file lies."),
                io.String.Output(id="report", display_name="report", tooltip="What the film was made of."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None, codec: str | None = "h264") -> bool | str:
        """Known before the film is rendered; what comes over a link is None here."""
        try:
            require_encoder(codec or "h264")
        except ValueError as error:
            return str(error)
        return _check_prefix(filename_prefix)

    @classmethod
    def execute(cls, clips: VideoClips, target_fps: float, enlarge: int, crf: int, filename_prefix: str, rife=None,
                audio=None, plan: RenderPlan | None = None, codec: str = "h264", seams: str = "smooth",
                intermediates: str = "keep") -> io.NodeOutput:
        records = located(clips.records)
        film, tally = plan_film(records, target_fps, enlarge), Tally()
        output, progress = folder_paths.get_output_directory(), node_progress(film.frames, node_id(cls))
        size, batch = (records[0].width, records[0].height), plan.interpolation_batch if plan else 0
        with disk_errors("Assemble Short", output):
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                filename_prefix, output, film.width, film.height)
            path = Path(folder) / f"{name}_{counter:05}_.mp4"
            frames = film_frames(film, rife and rife.stream(*size, batch), progress, tally, seams)
            with _watched(plan, rife, film) as watch:
                write_mp4(path, frames, film.target_fps, crf, audio, cls.workflow_text(), codec)
        report = " ".join(filter(None, (
            film_report(film, tally, rife is not None) + settle(records, intermediates, progress), watch.sentence)))
        preview = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), str(path), report, ui=preview)

    @classmethod
    def workflow_text(cls) -> dict[str, str]:
        """The workflow for the file's metadata, as core's Save Video writes it, unless the user switched that off."""
        if cls.hidden is None or args.disable_metadata:
            return {}
        found = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {name: json.dumps(value) for name, value in found.items() if value is not None}


def _watched(plan: RenderPlan | None, rife, film: FilmPlan) -> AbstractContextManager[Watch]:
    """RIFE and the encoder work at once; a plan speaks of frames of its own size."""
    fits = plan is not None and (film.width, film.height) == (plan.width, plan.height)
    device = torch.device("cpu") if rife is None else rife.patcher.load_device
    others = (lambda: 0) if rife is None else partial(other_models_bytes, device, rife.patcher)
    return watched(plan if fits else None, ("encode",) if rife is None else ("interpolation", "encode"), device,
                   user_folder(), others)


def _check_prefix(filename_prefix: str | None) -> bool | str:
    """A name that comes over a link is None here and is checked by ComfyUI when it is used."""
    path, output = os.path.normpath(filename_prefix or ""), os.path.abspath(folder_paths.get_output_directory())
    full = os.path.abspath(os.path.join(output, os.path.dirname(path)))
    is_inside = Path(full).is_relative_to(output) and len(os.path.basename(path).encode()) <= FILE_NAME_BYTES
    if is_inside and all(map(can_be_written, (filename_prefix or "").replace("\\", "/").split("/"))):
        return True
    return message("Assemble Short needs a file name inside ComfyUI's output folder", filename_prefix,
                   f"folders below {output} and a name of at most {FILE_NAME_BYTES} bytes, without < > : \" | ? *",
                   'Choose a name such as "video/short".')


NODES = [AssembleShort]
