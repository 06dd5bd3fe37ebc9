"""Spatial Clip Sampler."""

from __future__ import annotations

from ..common.compat import CameraPathIO, SpatialMemoryIO, VideoMemoryIO, field, io, node_id, node_progress, schema
from .bridge import SpatialRequest, sample_in_place
from .requests import coverage_lines, film_frames


class SpatialClipSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "spatial",
            node_id="VideoMemorySpatialClipSampler",
            display_name="Spatial Clip Sampler",
            description="One clip in a remembered place: what the cameras see of it is given to Wan VACE or Wan 2.2 "
                        "TI2V-5B, the holes are made.",
            search_aliases=["Mirage", "latent spatial memory", "camera control"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Model, "model", tooltip="Wan 2.1 VACE 1.3B or 14B, or Wan 2.2 TI2V-5B, from any loader."),
                field(io.Vae, "vae", tooltip="The VAE that the place was lifted with."),
                field(io.Conditioning, "positive", tooltip="What happens in the clip."),
                field(SpatialMemoryIO, "spatial_memory", tooltip="The place as it was before this clip."),
                field(CameraPathIO, "camera_path", tooltip="The film's whole path."),
                field(io.Int, "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                      tooltip="Another seed, other noise."),
                field(io.Int, "first_frame", display_name="first frame", default=0, min=0, max=100000,
                      tooltip="Frame of the path at which the clip begins."),
                field(io.Int, "latents", default=9, min=1, max=1000, tooltip="Latent frames of the clip; 9 are 33 "
                                                                             "frames."),
                field(io.Float, "trust", default=1.0, min=0.0, max=1.0, step=0.05,
                      tooltip="How much the place holds. VACE: its strength. For TI2V, at 1 known parts are kept "
                              "exactly; below 1 the model may change them."),
                field(io.Int, "steps", default=0, min=0, max=200, tooltip="0 = the published recipe's: 50."),
                field(io.Float, "cfg", default=0.0, min=0.0, max=30.0, step=0.1,
                      tooltip="0 = the published recipe's: 5. 1 needs no negative prompt."),
                field(io.Conditioning, "negative", optional=True, tooltip="Needed unless cfg is 1."),
                field(io.Image, "start_image", optional=True,
                      tooltip="The clip's first frame: the film's picture, or the last frame of the clip before. With "
                              "a video memory only in the film's first clip."),
                field(VideoMemoryIO, "video_memory", optional=True,
                      tooltip="The hero: a Persistent Memory for the model, then the memory after the clip before. It "
                              "brings the film's first frame and the clip's first ones; then set first frame to the "
                              "number of the last frame of the clip before (32, 64, ...). The camera path needs the "
                              "memory's frame rate. A rolling memory goes on as one of frames."),
            ],
            outputs=[
                io.Latent.Output(id="latent", display_name="latent", tooltip="The clip, for Update Spatial Memory and "
                                                                             "VAE Decode."),
                io.Float.Output(id="coverage", display_name="coverage", tooltip="Known part of the clip, 0 to 1."),
                io.String.Output(id="report", display_name="report", tooltip="The known part of every frame, and what "
                                                                               "the hero's memory gave."),
                VideoMemoryIO.Output(id="memory_after", display_name="video memory",
                                     tooltip="The hero's memory after this clip, for the next one and for Save Clip."),
                io.Int.Output(id="clip_frame", display_name="first frame",
                              tooltip="Frame of the path of the latent's first one, for Update Spatial Memory: with a "
                                      "video memory what the film has already is left out."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, positive, spatial_memory, camera_path, seed: int, first_frame: int, latents: int,
                trust: float, steps: int, cfg: float, negative=None, start_image=None,
                video_memory=None) -> io.NodeOutput:
        progress = node_progress(0, node_id(cls))
        clip = sample_in_place(SpatialRequest(
            model, vae, positive, negative, spatial_memory, camera_path, seed, first_frame, latents, start_image, trust,
            steps, cfg, progress, video_memory))
        report = "\n".join((*clip.lines, *coverage_lines(clip.reading, film_frames(first_frame, latents))))
        progress.say(report)
        return io.NodeOutput(clip.samples, sum(clip.reading.coverage) / latents, report, clip.hero, clip.first_frame,
                             ui={"text": (report,)})


NODES = [SpatialClipSampler]
