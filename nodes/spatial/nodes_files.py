"""Save Spatial Memory, Load Spatial Memory, Spatial Memory Report."""

from __future__ import annotations

import os

import folder_paths

from ..common.compat import SpatialMemoryIO, field, io, node_id, node_progress, schema, ui
from ..common.saved_files import check_prefix, check_saved, saved_names, saved_path, stamp
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
        """Core refuses what leads out of the output folder."""
        return check_prefix("Save Spatial Memory", filename_prefix, "place")

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
            inputs=[field(io.Combo, "file", options=saved_names(_place_folder()),
                          tooltip="A file in output/videomemory/places; press R in the editor to see new ones.")],
            outputs=[SpatialMemoryIO.Output(id="spatial_memory", display_name="spatial memory",
                                            tooltip="The remembered place."),
                     io.String.Output(id="report", display_name="report", tooltip="How many points, and their size.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return check_saved("Load Spatial Memory", _place_folder(), file, "place")

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        return stamp(saved_path("Load Spatial Memory", _place_folder(), file, "place"))

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        memory = load_spatial(saved_path("Load Spatial Memory", _place_folder(), file, "place"))
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
                                tooltip="From behind the first camera, from the right, from above. Similar features "
                                        "get similar colours; they are not the film's colours."),
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


def _place_folder() -> str:
    return os.path.join(folder_paths.get_output_directory(), *SUBFOLDER.split("/"))


NODES = [SaveSpatial, LoadSpatial, SpatialReport]
