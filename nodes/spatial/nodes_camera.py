"""Camera Path."""

from __future__ import annotations

import os

import folder_paths

from ..common.compat import CameraPathIO, field, io, node_id, node_progress, schema
from ..common.errors import message
from .camera_files import path_from_file
from .cameras import FORMS, path_from_text


class CameraPathNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemoryCameraPath",
            display_name="Camera Path",
            description="Where the camera goes, one move per line, or from a file of COLMAP, NeRF or JSON poses.",
            search_aliases=["COLMAP", "poses", "orbit", "dolly", "pan", "crane", "intrinsics"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.String, "moves", multiline=True, default="pan 40 in 2\nback",
                      tooltip="One move per line: " + "; ".join(FORMS.values()) + ". # begins a note."),
                field(io.Int, "width", default=1280, min=16, max=8192, step=16, tooltip="Width of the film in pixels."),
                field(io.Int, "height", default=704, min=16, max=8192, step=16,
                      tooltip="Height of the film in pixels."),
                field(io.Float, "fps", display_name="frames per second", default=16.0, min=1.0, max=240.0, step=0.001,
                      tooltip="Rate of the film, as the model makes it."),
                field(io.Float, "field_of_view", display_name="field of view", default=60.0, min=1.0, max=170.0,
                      step=0.1, tooltip="Of the picture's width, in degrees; not used for a file that has it."),
                field(io.String, "file", default="", optional=True,
                      tooltip="Instead of moves: a .json, or a folder with COLMAP's cameras.txt and images.txt, in "
                              "ComfyUI's input folder. Empty = the moves."),
            ],
            outputs=[
                CameraPathIO.Output(id="camera_path", display_name="camera path", tooltip="One camera per frame."),
                io.Int.Output(id="frame_count", display_name="frames", tooltip="Frames of the path."),
                io.String.Output(id="report", display_name="report", tooltip="Length and end of the path."),
            ],
        )

    @classmethod
    def validate_inputs(cls, moves: str | None, file: str | None = "") -> bool | str:
        """What comes over a link is None here and is checked when the node runs."""
        try:
            if file:
                _input_path(file)
            elif moves is not None:
                path_from_text(moves, 16, 16, 1.0, 60.0)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str = "", **others) -> str:
        if not file:
            return repr(sorted(others.items()))
        path = _input_path(file)
        parts = [os.path.join(path, name) for name in ("cameras.txt", "images.txt")] if os.path.isdir(path) else [path]
        stamps = [os.stat(part).st_mtime_ns for part in parts if os.path.exists(part)]
        return repr((sorted(others.items()), file, stamps))

    @classmethod
    def execute(cls, moves: str, width: int, height: int, fps: float, field_of_view: float,
                file: str = "") -> io.NodeOutput:
        path = (path_from_file(_input_path(file), width, height, fps) if file
                else path_from_text(moves, width, height, fps, field_of_view))
        x, y, z = (float(value) for value in path.poses[-1, :3, 3])
        report = (f"{len(path)} frames, {(len(path) - 1) / path.fps:.2f} s at {path.fps:g} fps, {width}x{height}; ends "
                  f"at x {x:.2f}, y {y:.2f}, z {z:.2f}.")
        node_progress(0, node_id(cls)).say(report)
        return io.NodeOutput(path, len(path), report, ui={"text": (report,)})


def _input_path(file: str) -> str:
    """Where a file or folder of the input folder lies; ValueError for what is not in it."""
    root = os.path.realpath(folder_paths.get_input_directory())
    path = os.path.realpath(os.path.join(root, file))
    if os.path.commonpath((root, path)) != root or path == root or not os.path.exists(path):
        raise ValueError(message("Camera Path: file", file, "a .json or a folder in ComfyUI's input folder",
                                 "Put it there, or leave the field empty to use the moves."))
    return path


NODES = [CameraPathNode]
