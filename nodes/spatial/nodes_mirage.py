"""Mirage Clip Sampler."""

from __future__ import annotations

import comfy.utils
import folder_paths
import torch

from ..common.compat import (
    CameraPathIO,
    SpatialMemoryIO,
    field,
    io,
    model_facts,
    node_id,
    node_progress,
    schema,
)
from ..common.digest import patcher_key
from ..common.errors import message
from ..loading.codecs import WEIGHTS
from .bridge_branch import branch_of
from .bridge_mirage_clip import ChunkRequest, sample_chunk
from .requests import coverage_lines, film_frames, frames_of_latent, require_path, require_same_vae, require_spatial

ASKED = "Mirage Clip Sampler"


class MirageClipSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemorySpatialMirage",
            display_name=ASKED,
            description="The next chunk of a film in a remembered place, with a VACE branch that Mirage's public code "
                        "has trained on Wan 2.2 TI2V-5B.",
            search_aliases=["Mirage", "latent spatial memory"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Model, "model", tooltip="Wan 2.2 TI2V-5B, with the LoRA of the same training on it."),
                field(io.Combo, "branch", options=folder_paths.get_filename_list("diffusion_models"),
                      tooltip="The trained branch (vace.safetensors) in models/diffusion_models; read once for all "
                              "chunks of a MODEL."),
                field(io.Vae, "vae", tooltip="Wan 2.2's VAE, with which the place was lifted."),
                field(io.Conditioning, "positive", tooltip="What happens in the chunk; there is no guidance."),
                field(SpatialMemoryIO, "spatial_memory", tooltip="The place as it was before this chunk."),
                field(CameraPathIO, "camera_path", tooltip="The film's whole path."),
                field(io.Int, "seed", default=42, min=0, max=2**64 - 1, control_after_generate=True,
                      tooltip="Another seed, other noise."),
                field(io.Int, "latents", default=9, min=2, max=257,
                      tooltip="Latents of a chunk, the same for the whole film; 9 (33 frames) is what was trained."),
                field(io.Int, "steps", default=20, min=1, max=200, tooltip="Of UniPC; 20 is the authors'."),
                field(io.Image, "start_image", optional=True, tooltip="The film's first frame, for the first chunk."),
                field(io.Latent, "film", optional=True, tooltip="All latents so far, for every later chunk."),
                field(io.Combo, "branch_weights", display_name="weights of the branch", options=list(WEIGHTS),
                      default="original", optional=True,
                      tooltip="original = as in the file (5.2 GB in 16 bits). nf4, int8, nf4_int8 = packed while it is "
                              "read; needs a MODEL of Load Diffusion Model (NF4) that is packed too."),
            ],
            outputs=[
                io.Latent.Output(id="film_after", display_name="film", tooltip="All latents with the new ones."),
                io.Latent.Output(id="clip", display_name="new clip",
                                 tooltip="The new latents, for Update Spatial Memory."),
                io.Int.Output(id="clip_frame", display_name="first frame",
                              tooltip="Frame of the path of the first new latent, for Update Spatial Memory."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="The references, and the known part of every frame."),
            ],
        )

    @classmethod
    def execute(cls, model, branch: str, vae, positive, spatial_memory, camera_path, seed: int, latents: int,
                steps: int, start_image=None, film=None, branch_weights: str = "original") -> io.NodeOutput:
        progress = node_progress(0, node_id(cls))
        _check(model, vae, spatial_memory, camera_path, start_image, film)
        path = folder_paths.get_full_path_or_raise("diffusion_models", branch)
        loaded, told = branch_of(path, model, branch_weights, progress=progress)
        start, so_far = _beginning(vae, camera_path, start_image, film)
        request = ChunkRequest(model, loaded, vae, positive, spatial_memory, camera_path, start, so_far, seed, latents,
                               steps, progress)
        chunk, reading, chosen = sample_chunk(request)
        new = chunk if film is None else chunk[:, :, 1:]
        frame = 0 if film is None else request.first_frame + 4
        named = ", ".join(str(4 * j) for j in chosen) or "none"
        report = "\n".join((f"References: frames {named}.", told,
                            *coverage_lines(reading, film_frames(request.first_frame, latents))))
        progress.say(report)
        return io.NodeOutput({"samples": torch.cat((so_far, new), 2)}, {"samples": new}, frame, report,
                             ui={"text": (report,)})


def _check(model, vae, memory, path, start_image, film) -> None:
    """Raise ValueError for what does not fit together, before anything is loaded."""
    require_spatial(memory, ASKED)
    require_path(path, ASKED)
    require_same_vae(memory, patcher_key(vae.patcher), ASKED)
    facts = model_facts(model)
    if facts.kind != "ti2v":
        raise ValueError(message(f"{ASKED}: model", f"a {facts.family} {facts.kind} model", "Wan 2.2 TI2V-5B",
                                 "Load that one; Spatial Clip Sampler takes Wan VACE too."))
    if (start_image is None) == (film is None):
        raise ValueError(message(f"{ASKED}: start_image or film", "both" if film is not None else "none of them",
                                 "start_image in the first chunk, film in every later one", "Connect one of them."))
    size = memory.width * facts.spatial_stride, memory.height * facts.spatial_stride
    if (path.width, path.height) != size or memory.channels != facts.latent_channels:
        raise ValueError(message(f"{ASKED}: spatial_memory", f"{memory.channels} channels for {size[0]}x{size[1]}",
                                 f"{facts.latent_channels} channels for {path.width}x{path.height}, the camera path's",
                                 "Lift the place with Wan 2.2's VAE, on this camera path."))
    so_far = None if film is None else frames_of_latent(film["samples"], ASKED)
    if so_far is not None and (len(so_far), *so_far.shape[2:]) != (memory.channels, memory.height, memory.width):
        raise ValueError(message(f"{ASKED}: film", f"latents of {tuple(so_far.shape)}",
                                 f"{memory.channels} channels, {memory.height}x{memory.width}, as the memory",
                                 "Connect the film output of the chunk before."))


def _beginning(vae, path, start_image, film) -> tuple[torch.Tensor, torch.Tensor]:
    """(the chunk's first latent [1, C, 1, h, w], the film so far [1, C, N, h, w])"""
    if film is None:
        picture = comfy.utils.common_upscale(start_image[:1, :, :, :3].movedim(-1, 1), path.width, path.height,
                                             "bilinear", "center").movedim(1, -1)
        start = vae.encode(picture).to("cpu", torch.float32)
        return start, start[:, :, :0]
    so_far = frames_of_latent(film["samples"], ASKED)[None]
    return so_far[:, :, -1:], so_far


NODES = [MirageClipSampler]
