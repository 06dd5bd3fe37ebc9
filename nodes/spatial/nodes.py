"""Lift to Spatial Memory, Read Spatial Memory, Update Spatial Memory."""

from __future__ import annotations

from ..common.compat import CameraPathIO, SpatialMemoryIO, field, io, node_id, node_progress, schema
from ..common.digest import patcher_key
from ..common.errors import message
from .bound import bound
from .cloud import read, require_points, write
from .depth import KINDS, fitted
from .picture import palette, reading_pictures
from .requests import (
    MB,
    coverage_lines,
    film_frames,
    fit_lines,
    frames_of_latent,
    make_look,
    require_path,
    require_same_vae,
    require_spatial,
    size_line,
)
from .values import empty_memory

LIFT, READ, UPDATE = "Lift to Spatial Memory", "Read Spatial Memory", "Update Spatial Memory"
PREVIEW_SCALE = 8


def _depth_fields(default: str) -> list:
    return [
        field(io.Image, "depth",
              tooltip="Depth map of the size of the camera path, from any depth node; its red channel is read."),
        field(io.Combo, "depth_kind", display_name="kind of depth", options=list(KINDS), default=default,
              tooltip="metric = distances, taken as they are. inverse = white is near, as most depth nodes give it. "
                      "relative = white is far. The last two are fitted to what the memory knows."),
    ]


def _mask_field() -> io.Input:
    return field(io.Mask, "mask", optional=True,
                 tooltip="White = not to be remembered: moving things, and sky. From any segmentation node; of the "
                         "size of the camera path.")


def _confidence_field() -> io.Input:
    return field(io.Mask, "confidence", optional=True,
                 tooltip="How much each pixel is trusted, black = least; many depth nodes give it. Where points are "
                         "merged the most trusted one is kept. Without it that is the one seen from the shortest "
                         "distance: use it in every Lift and Update of a film, or in none.")


class LiftSpatial(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemoryLiftSpatial",
            display_name=LIFT,
            description="Begins the memory of a place: a picture's latents become points in space.",
            search_aliases=["Mirage", "latent spatial memory", "point cloud", "world"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(CameraPathIO, "camera_path", tooltip="From Camera Path; its first frame saw the picture."),
                field(io.Vae, "vae", tooltip="The film's VAE: encodes the picture, and marks the memory as its own."),
                *_depth_fields("inverse"),
                field(io.Float, "near", default=1.0, min=0.001, max=100000.0, step=0.01,
                      tooltip="How far away the nearest thing is, where the depth is not metric."),
                field(io.Float, "far", default=20.0, min=0.001, max=100000.0, step=0.01,
                      tooltip="How far away the farthest thing is, where the depth is not metric."),
                field(io.Image, "image", optional=True, tooltip="The first frame, of the size of the camera path. Give "
                                                                "either this or a latent."),
                field(io.Latent, "latent", optional=True, tooltip="The first frame's latent; of a video, its first."),
                _mask_field(),
                _confidence_field(),
            ],
            outputs=[SpatialMemoryIO.Output(id="spatial_memory", display_name="spatial memory",
                                            tooltip="For Read, Update and Save Spatial Memory."),
                     io.String.Output(id="report", display_name="report", tooltip="How many points, and their size.")],
        )

    @classmethod
    def execute(cls, camera_path, vae, depth, depth_kind, near, far, image=None, latent=None,
                mask=None, confidence=None) -> io.NodeOutput:
        require_path(camera_path, LIFT)
        if (image is None) == (latent is None):
            raise ValueError(message(f"{LIFT}: image or latent", "both" if image is not None else "none of them",
                                     "exactly one", "Connect the first frame, or its latent."))
        if image is not None and image.shape[1:3] != (camera_path.height, camera_path.width):
            raise ValueError(message(f"{LIFT}: image", f"{image.shape[2]}x{image.shape[1]}",
                                     f"{camera_path.width}x{camera_path.height}, as the camera path",
                                     "Resize the image, or give the camera path its size."))
        samples = latent["samples"] if image is None else vae.encode(image[:1, :, :, :3])
        latents = frames_of_latent(samples, LIFT)[:, :1]
        memory = empty_memory(latents.shape[0], *latents.shape[2:], patcher_key(vae.patcher))
        first_mask, first_confidence = (None if one is None else one[:1] if one.ndim == 3 else one
                                        for one in (mask, confidence))
        look = make_look(latents, depth[:1], first_mask, 0, LIFT, first_confidence)
        look, _ = fitted(memory, look, camera_path, depth_kind, near, far)
        memory = write(memory, look, camera_path)
        require_points(memory, LIFT)
        return _told(cls, memory, [size_line(memory)])


class ReadSpatial(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemoryReadSpatial",
            display_name=READ,
            description="Looks at a remembered place through the cameras of the next clip: latents, and where nothing "
                        "is known.",
            search_aliases=["Mirage", "project", "warp latent"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(SpatialMemoryIO, "spatial_memory", tooltip="The remembered place."),
                field(CameraPathIO, "camera_path", tooltip="The film's whole path."),
                field(io.Int, "first_frame", display_name="first frame", default=0, min=0, max=100000,
                      tooltip="Frame of the path at which the clip begins."),
                field(io.Int, "latents", default=9, min=1, max=1000,
                      tooltip="Latent frames of the clip; each is seen from the camera of every fourth frame. 9 are 33 "
                              "frames."),
                field(io.Vae, "vae", optional=True, tooltip="Connect it to have a memory of another VAE refused."),
            ],
            outputs=[
                io.Latent.Output(id="latent", display_name="latent", tooltip="What is known; zeros in holes."),
                io.Mask.Output(id="holes", display_name="holes",
                               tooltip="White where nothing is known, one picture per latent frame, of its size."),
                io.Image.Output(id="preview", display_name="preview",
                                tooltip="One picture per latent frame: similar features get similar colours, which are "
                                        "not the film's; holes are black."),
                io.Float.Output(id="coverage", display_name="coverage", tooltip="Known part of all frames, 0 to 1."),
                io.String.Output(id="report", display_name="report", tooltip="The known part of every frame."),
            ],
        )

    @classmethod
    def execute(cls, spatial_memory, camera_path, first_frame: int, latents: int, vae=None) -> io.NodeOutput:
        require_spatial(spatial_memory, READ)
        require_path(camera_path, READ)
        require_same_vae(spatial_memory, "" if vae is None else patcher_key(vae.patcher), READ)
        frames = film_frames(first_frame, latents)
        reading = read(spatial_memory, camera_path, frames)
        preview = reading_pictures(reading, palette(spatial_memory), PREVIEW_SCALE)
        report = "\n".join(coverage_lines(reading, frames))
        node_progress(0, node_id(cls)).say(report)
        share = sum(reading.coverage) / len(frames)
        return io.NodeOutput({"samples": reading.latents[None]}, reading.holes.float(), preview, share, report,
                             ui={"text": (report,)})


class UpdateSpatial(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemoryUpdateSpatial",
            display_name=UPDATE,
            description="After a clip: what it showed of the place is remembered too, within a budget.",
            search_aliases=["Mirage", "point cloud"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(SpatialMemoryIO, "spatial_memory", tooltip="The place so far."),
                field(CameraPathIO, "camera_path", tooltip="The film's whole path."),
                field(io.Vae, "vae", tooltip="The film's VAE: a memory of another one is refused."),
                field(io.Latent, "latent", tooltip="The clip, from a sampler."),
                *_depth_fields("inverse"),
                field(io.Int, "first_frame", display_name="first frame", default=0, min=0, max=100000,
                      tooltip="Frame of the path at which the clip begins."),
                field(io.Float, "budget_mb", display_name="budget in MB", default=64.0, min=1.0, max=65536.0, step=1.0,
                      tooltip="Where the cloud is larger, points that share a cell are merged; the point seen from "
                              "the shortest distance is kept (or the most trusted). 64 MB are 588,000 points of Wan "
                              "2.2."),
                _mask_field(),
                _confidence_field(),
            ],
            outputs=[SpatialMemoryIO.Output(id="updated_memory", display_name="spatial memory",
                                            tooltip="The place with what the clip showed."),
                     io.String.Output(id="report", display_name="report",
                                      tooltip="What came in, how depth was fitted, and the size.")],
        )

    @classmethod
    def execute(cls, spatial_memory, camera_path, vae, latent, depth, depth_kind, first_frame: int, budget_mb: float,
                mask=None, confidence=None) -> io.NodeOutput:
        require_spatial(spatial_memory, UPDATE)
        require_path(camera_path, UPDATE)
        require_same_vae(spatial_memory, patcher_key(vae.patcher), UPDATE)
        if depth_kind != "metric":
            require_points(spatial_memory, UPDATE)
        look = make_look(frames_of_latent(latent["samples"], UPDATE), depth, mask, first_frame, UPDATE,
                         confidence)
        look, fits = fitted(spatial_memory, look, camera_path, depth_kind, 1.0, 2.0)
        grown = write(spatial_memory, look, camera_path)
        after = bound(grown, int(budget_mb * MB))
        lines = [f"{len(grown) - len(spatial_memory)} points came in, {len(grown) - len(after)} were merged away.",
                 size_line(after), *fit_lines(fits, look.frames)]
        return _told(cls, after, lines)


def _told(node: type, memory, lines: list[str]) -> io.NodeOutput:
    report = "\n".join(lines)
    node_progress(0, node_id(node)).say(report)
    return io.NodeOutput(memory, report, ui={"text": (report,)})


NODES = [LiftSpatial, ReadSpatial, UpdateSpatial]
