"""Save Spatial Memory, Load Spatial Memory, Spatial Memory Report."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..common.compat import SpatialMemoryIO, field, io, node_id, node_progress, schema, ui
from ..common.errors import message
from .cloud import require_points
from .files import load_spatial, save_spatial
from .orbit import ORBIT, orbit_of
from .picture import cloud_pictures
from .requests import require_spatial, size_line

SUBFOLDER = "videomemory/places"


class SaveSpatial(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemorySpatialSave",
            display_name="Save Spatial Memory",
            description="Write a place to a file, to come back to it in another film.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(SpatialMemoryIO, "spatial_memory", tooltip="The remembered place."),
                field(io.String, "filename_prefix", default="place",
                      tooltip="Name of the file, in output/videomemory/places."),
            ],
            outputs=[io.String.Output(id="path", display_name="path", tooltip="Where the file was written.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        """A prefix that comes over a link is None here; core refuses what leads out of the output folder."""
        parts = ["linked"] if filename_prefix is None else filename_prefix.replace("\\", "/").split("/")
        if all(part.strip() and part != ".." and len(part) <= 100 for part in parts):
            return True
        return message("Save Spatial Memory needs a name for its file", repr(filename_prefix)[:80],
                       "a name, or folder/name, of up to 100 characters each, without ..",
                       "Choose a name such as place.")

    @classmethod
    def execute(cls, spatial_memory, filename_prefix: str) -> io.NodeOutput:
        require_spatial(spatial_memory, "Save Spatial Memory")
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            f"{SUBFOLDER}/{filename_prefix}", folder_paths.get_output_directory())
        path = save_spatial(spatial_memory, os.path.join(folder, f"{name}_{counter:05}_.safetensors"))
        report = f"Wrote {path}\n{size_line(spatial_memory)}"
        node_progress(0, node_id(cls)).say(report)
        return io.NodeOutput(str(path), ui={"text": (report,)})


class LoadSpatial(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemorySpatialLoad",
            display_name="Load Spatial Memory",
            description="Read a place that Save Spatial Memory wrote.",
            hidden=[io.Hidden.unique_id],
            inputs=[field(io.Combo, "file", options=_saved_places(),
                          tooltip="A file in output/videomemory/places; press R in the editor to see new ones.")],
            outputs=[SpatialMemoryIO.Output(id="spatial_memory", display_name="spatial memory",
                                            tooltip="The remembered place."),
                     io.String.Output(id="report", display_name="report", tooltip="How many points, and their size.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """A name that comes over a link is None here and is checked when the node runs."""
        try:
            return file is None or bool(_place_path(file))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        status = os.stat(_place_path(file))
        return f"{status.st_size}-{status.st_mtime_ns}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        memory = load_spatial(_place_path(file))
        report = size_line(memory)
        node_progress(0, node_id(cls)).say(report)
        return io.NodeOutput(memory, report, ui={"text": (report,)})


class SpatialReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemorySpatialReport",
            display_name="Spatial Memory Report",
            description="Shows a remembered place as a cloud of points from three sides, and its size.",
            search_aliases=["point cloud", "preview"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[field(SpatialMemoryIO, "spatial_memory", tooltip="The remembered place.")],
            outputs=[
                io.Image.Output(id="views", display_name="views",
                                tooltip="From behind the first camera, from the right, from above; colours stand for "
                                        "likeness."),
                io.String.Output(id="report", display_name="report", tooltip="How many points, and their size."),
            ],
        )

    @classmethod
    def execute(cls, spatial_memory) -> io.NodeOutput:
        require_spatial(spatial_memory, "Spatial Memory Report")
        require_points(spatial_memory, "Spatial Memory Report")
        views, report = cloud_pictures(spatial_memory), size_line(spatial_memory)
        node_progress(0, node_id(cls)).say(report)
        shown = ui.PreviewImage(views, cls=cls).as_dict()
        return io.NodeOutput(views, report, ui={**shown, "text": (report,), ORBIT: (orbit_of(spatial_memory),)})


def _place_path(file: str) -> str:
    """Where a saved place lies; ValueError for anything that is not in the list."""
    known = _saved_places()
    if file not in known:
        raise ValueError(message("Load Spatial Memory: no such file", file, ", ".join(known) or "nothing is saved yet",
                                 "Save a place first, or press R to refresh the list."))
    return os.path.join(folder_paths.get_output_directory(), *SUBFOLDER.split("/"), *file.split("/"))


def _saved_places() -> list[str]:
    folder = Path(folder_paths.get_output_directory(), *SUBFOLDER.split("/"))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


NODES = [SaveSpatial, LoadSpatial, SpatialReport]
