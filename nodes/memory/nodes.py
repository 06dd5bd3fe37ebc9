"""Persistent Memory, Forget, Save Memory and Load Memory."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..common.compat import VideoMemoryIO, field, io, schema
from ..common.errors import message
from ..common.types import PLACEMENTS, PRECISIONS
from ..sampling.presets import PRESETS, memory_spec
from .files import load_memory, save_memory
from .state import empty_memory, forget

SUBFOLDER = "videomemory/memories"


class PersistentMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryPersistentMemory",
            display_name="Persistent Memory",
            description="An empty memory: how much of the film the model will see again, and how it is stored.",
            search_aliases=["KV cache", "rolling window", "context"],
            inputs=[
                field(io.Combo, "preset", display_name="checkpoint", options=list(PRESETS), default="longlive_2",
                      tooltip="The causal checkpoint your MODEL comes from: it fixes the noise levels, the chunk and "
                              "the frame rate."),
                field(io.Float, "window_seconds", display_name="window (seconds)", default=0.0, min=0.0, max=60.0,
                      step=0.1, tooltip="How many seconds just before the current moment are remembered. 0 = as the "
                                        "checkpoint was trained. Longer costs VRAM and is outside its training."),
                field(io.Float, "sink_seconds", display_name="first seconds kept", default=-1.0, min=-1.0, max=60.0,
                      step=0.1, tooltip="How many seconds from the start of the film are remembered for ever (the "
                                        "sink: it holds the hero). -1 = as the checkpoint was trained, 0 = none."),
                field(io.Combo, "precision", options=list(PRECISIONS), default="model",
                      tooltip="How keys and values are stored: model = as computed (16 bits on a GPU), int8 = half of "
                              "that, 4bit = about a quarter (the first seconds stay at 8 bits)."),
                field(io.Combo, "placement", options=list(PLACEMENTS), default="vram",
                      tooltip="vram = on the card. ram = in system memory, copied layer by layer: saves VRAM, costs "
                              "some time, gives the same result."),
            ],
            outputs=[VideoMemoryIO.Output(id="empty_memory", display_name="memory",
                                          tooltip="Pass it to VRAM Budget Gate, Clip Sampler or Render Short.")],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, precision: str | None, placement: str | None) -> bool | str:
        """A value that comes over a link is None here and is checked when the node runs."""
        try:
            empty_memory(memory_spec(preset or next(iter(PRESETS)), precision=precision or PRECISIONS[0],
                                     placement=placement or PLACEMENTS[0]))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, preset: str, window_seconds: float, sink_seconds: float, precision: str,
                placement: str) -> io.NodeOutput:
        return io.NodeOutput(empty_memory(memory_spec(preset, window_seconds, sink_seconds, precision, placement)))


class Forget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryForget",
            display_name="Forget",
            description="The same place in the film with nothing remembered: for a new hero, or to compare.",
            search_aliases=["reset memory", "cut"],
            inputs=[field(VideoMemoryIO, "memory", tooltip="The memory after any clip.")],
            outputs=[VideoMemoryIO.Output(id="forgotten", display_name="memory",
                                          tooltip="Empty, but it knows the film's length, so the noise goes on.")],
        )

    @classmethod
    def execute(cls, memory) -> io.NodeOutput:
        return io.NodeOutput(forget(memory))


class SaveMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemorySaveMemory",
            display_name="Save Memory",
            description="Write a memory to a file, to go on with the film another day or share the hero.",
            is_output_node=True,
            inputs=[
                field(VideoMemoryIO, "memory", tooltip="The memory after any clip."),
                field(io.String, "filename_prefix", default="hero",
                      tooltip="Name of the file, in output/videomemory/memories."),
            ],
            outputs=[io.String.Output(id="path", display_name="path", tooltip="Where the file was written.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        """A prefix that comes over a link is None here; core refuses what leads out of the output folder."""
        parts = ["linked"] if filename_prefix is None else filename_prefix.replace("\\", "/").split("/")
        if all(part.strip() and part != ".." and len(part) <= 100 for part in parts):
            return True
        return message("Save Memory needs a name for its file", repr(filename_prefix)[:80],
                       "a name, or folder/name, of up to 100 characters each, without ..",
                       "Choose a name such as hero.")

    @classmethod
    def execute(cls, memory, filename_prefix: str) -> io.NodeOutput:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            f"{SUBFOLDER}/{filename_prefix}", folder_paths.get_output_directory())
        path = save_memory(memory, os.path.join(folder, f"{name}_{counter:05}_.safetensors"))
        return io.NodeOutput(str(path), ui={"text": (str(path),)})


class LoadMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryLoadMemory",
            display_name="Load Memory",
            description="Read a memory that Save Memory wrote, and go on from there.",
            inputs=[field(io.Combo, "file", options=_saved_memories(),
                          tooltip="A file in output/videomemory/memories; press R in the editor to see new ones.")],
            outputs=[VideoMemoryIO.Output(id="memory", display_name="memory",
                                          tooltip="Continue the film with a Clip Sampler.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """A name that comes over a link is None here and is checked when the node runs."""
        try:
            return file is None or bool(_memory_path(file))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        status = os.stat(_memory_path(file))
        return f"{status.st_size}-{status.st_mtime_ns}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_memory(_memory_path(file)))


def _memory_folder() -> str:
    return os.path.join(folder_paths.get_output_directory(), *SUBFOLDER.split("/"))


def _memory_path(file: str) -> str:
    """Where a saved memory lies; ValueError for anything that is not in the list."""
    known = _saved_memories()
    if file not in known:
        raise ValueError(message("Load Memory: no such file", file, ", ".join(known) or "nothing is saved yet",
                                 "Save a memory first, or press R to refresh the list."))
    return os.path.join(_memory_folder(), *file.split("/"))


def _saved_memories() -> list[str]:
    """Names below the memories' folder; Save Memory makes sub-folders of a prefix such as heroes/anna."""
    folder = Path(_memory_folder())
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


NODES = [PersistentMemory, Forget, SaveMemory, LoadMemory]
