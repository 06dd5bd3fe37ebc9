"""Save Memory and Load Memory."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..common.compat import VideoMemoryIO, field, io, node_id, node_progress, schema
from ..common.saved_files import check_prefix, check_saved, saved_names, saved_path, stamp
from ..common.types import VideoMemory
from .contents import in_words, require_memory
from .files import VERSION, file_bytes, file_version, load_memory, save_memory
from .words import size

SUBFOLDER = "videomemory/memories"


class SaveMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemorySaveMemory",
            display_name="Save Memory",
            description="Write a memory to a file, to go on with the film another day or share the hero.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(VideoMemoryIO, "memory", tooltip="The memory after any clip."),
                field(io.String, "filename_prefix", default="hero",
                      tooltip="Name of the file, in output/videomemory/memories."),
                field(io.Boolean, "with_kv", display_name="with keys and values", default=True, optional=True,
                      tooltip="On = the film goes on bit-equal; hundreds of MB to several GB at 720p. Off = a few MB "
                              "of latents: keys and values are made again on first use, the same while nothing was "
                              "forgotten, else close. The report says both sizes."),
            ],
            outputs=[
                io.String.Output(id="path", display_name="path", tooltip="Where the file was written."),
                io.String.Output(id="report", display_name="report", tooltip="What was written, and how large it is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        """Core refuses what leads out of the output folder."""
        return check_prefix("Save Memory", filename_prefix, "hero")

    @classmethod
    def execute(cls, memory, filename_prefix: str, with_kv: bool = True) -> io.NodeOutput:
        require_memory(memory, "Save Memory")
        node_progress(0, node_id(cls)).say(f"writing {size(file_bytes(memory, with_kv))}")
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            f"{SUBFOLDER}/{filename_prefix}", folder_paths.get_output_directory())
        path = save_memory(memory, os.path.join(folder, f"{name}_{counter:05}_.safetensors"), with_kv)
        report = _written(memory, path, with_kv)
        node_progress(0, node_id(cls)).say(report)
        return io.NodeOutput(str(path), report, ui={"text": (report,)})


class LoadMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryLoadMemory",
            display_name="Load Memory",
            description="Read a memory that Save Memory wrote, and go on from there.",
            hidden=[io.Hidden.unique_id],
            inputs=[field(io.Combo, "file", options=saved_names(_memory_folder()),
                          tooltip="A file in output/videomemory/memories; press R in the editor to see new ones.")],
            outputs=[
                VideoMemoryIO.Output(id="memory", display_name="memory",
                                     tooltip="Continue the film with a Clip Sampler."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="What was read: clips, seconds, size, model, and whether keys and values are "
                                         "in it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return check_saved("Load Memory", _memory_folder(), file, "memory")

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return stamp(saved_path("Load Memory", _memory_folder(), file, "memory"))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        path = saved_path("Load Memory", _memory_folder(), file, "memory")
        memory = load_memory(path)
        report = "\n".join((*in_words(memory), *_hints(file_version(path))))
        node_progress(0, node_id(cls)).say(report)
        return io.NodeOutput(memory, report, ui={"text": (report,)})


def _written(memory: VideoMemory, path: Path, with_kv: bool) -> str:
    """What Save Memory did, with the size that the other choice would have had."""
    bare, whole = file_bytes(memory, with_kv=False), file_bytes(memory)
    lines = [f"Wrote {size(path.stat().st_size)}: {path}"]
    if bare == whole:
        return "\n".join((*lines, "There are no keys and values to save."))
    kept = (f"Keys and values take {size(whole - bare)} of it; without them it would be {size(bare)}, and they would "
            "be made again on first use." if with_kv else
            f"Keys and values ({size(whole - bare)}) were left out: they are made again from the latents on first use, "
            "the same while nothing was forgotten, else close.")
    return "\n".join((*lines, kept))


def _hints(version: int) -> tuple[str, ...]:
    """What the next Clip Sampler will do with a memory of a file of this version."""
    old = (f"The file has format version {version}, older than {VERSION}: what came later (archive, scene cuts, pins) "
           "was not in it and is empty.",) if version < VERSION else ()
    return (*old, "With another model, LoRA or quantisation keys and values are made again, and Clip Sampler says so; "
                  "another film size is refused.")


def _memory_folder() -> str:
    return os.path.join(folder_paths.get_output_directory(), *SUBFOLDER.split("/"))


NODES = [SaveMemory, LoadMemory]
