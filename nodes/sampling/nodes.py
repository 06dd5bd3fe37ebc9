"""Clip Sampler: one clip from a model, a prompt and a memory."""

from __future__ import annotations

import time

from ..budget.watch import watched
from ..common.compat import (
    RenderPlanIO,
    VideoMemoryIO,
    available_bytes,
    field,
    io,
    model_facts,
    node_id,
    node_progress,
    other_models_bytes,
    schema,
    user_folder,
)
from ..common.errors import message
from ..common.types import TEMPORAL_STRIDE, Geometry, MemorySpec, ModelFacts, RenderPlan, VideoMemory
from .bridge_latent import sample_latent
from .bridge_rolling import sample_rolling
from .strategy import ClipRequest, choose_strategy
from .unfinished import FOLDER

SAMPLERS = {"rolling": sample_rolling, "latent": sample_latent}  # strategy -> (ClipRequest) -> ClipResult


_OPTIONAL = (
    field(io.Conditioning, "negative", optional=True,
          tooltip="What must not be seen. Of use only with cfg other than 1; Stable Video Diffusion reads no text."),
    field(io.Float, "cfg", default=0.0, min=0.0, max=30.0, step=0.1, round=0.01, optional=True,
          tooltip="How strongly the prompt is followed. 0 = as the checkpoint's recipe says, which is 1 for causal "
                  "checkpoints. Any value but 1 samples the negative prompt too: it takes twice the time, and for "
                  "causal checkpoints twice the memory."),
    field(io.Image, "start_image", optional=True,
          tooltip="The film's first frame, in its first clip; needs the VAE. With latent memory also together with "
                  "scene cut: the new scene begins with it. Another size is scaled and cut to fit."),
    field(io.Vae, "vae", optional=True, tooltip="Needed for a start image, and for checkpoints with latent memory."),
    field(io.Model, "model_low_noise", optional=True,
          tooltip="The second MODEL of a high/low noise pair (Wan 2.2 I2V 14B, also with SVI); model is then the high "
                  "noise one. Each may have LoRAs of its own."),
    field(io.Boolean, "scene_cut", default=False, optional=True,
          tooltip="A new scene begins with this clip. LongLive 2, which was trained with cuts, sees what lies before "
                  "from further away; for other causal checkpoints only what the film began with stays in view. With "
                  "latent memory the scene begins with the start image or, without one, with the film's first frame."),
    field(io.ClipVision, "clip_vision", optional=True,
          tooltip="Latent memory: shows the model the film's first frame in every clip (Wan 2.1 I2V, HunyuanVideo 1.5; "
                  "Stable Video Diffusion needs it)."),
    field(io.Sampler, "sampler", optional=True,
          tooltip="Latent memory: another sampler than the recipe's, for instance for a speed LoRA."),
    field(io.Sigmas, "sigmas", optional=True,
          tooltip="Latent memory: other noise levels than the recipe's, for instance four for a speed LoRA."),
)


class ClipSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "sampling",
            node_id="VideoMemoryClipSampler",
            display_name="Clip Sampler",
            description="Samples the next clip of a film with the memory in view, and hands on the memory after it.",
            search_aliases=["causal", "Self-Forcing", "LongLive", "rolling KV", "image to video", "I2V", "SVI"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Model, "model",
                      tooltip="The checkpoint that Persistent Memory names, from any loader: a causal Wan, or an "
                              "ordinary Wan, HunyuanVideo or Stable Video Diffusion with latent memory."),
                field(VideoMemoryIO, "memory", tooltip="What came before: an empty Persistent Memory for the first "
                                                       "clip, then the memory of the previous Clip Sampler."),
                field(io.Conditioning, "positive", tooltip="What happens in this clip, usually from Prompt for Clip."),
                field(io.Int, "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False,
                      tooltip="One seed for the whole film: every chunk or latent draws its own noise from it, so a "
                              "clip rendered again on its own is identical to the one rendered in sequence."),
                field(io.Int, "width", default=1280, min=32, max=8192, step=16,
                      tooltip="Pixels, in steps of 16 (32 for Wan 2.2 5B). The same in every clip. Ignored with a "
                              "plan."),
                field(io.Int, "height", default=704, min=32, max=8192, step=16,
                      tooltip="Pixels, in steps of 16 (32 for Wan 2.2 5B). The same in every clip. Ignored with a "
                              "plan."),
                field(io.Float, "clip_seconds", display_name="clip (seconds)", default=4.0, min=0.1, max=60.0, step=0.1,
                      tooltip="How many seconds this clip adds to the film, rounded up to whole chunks or, with latent "
                              "memory, to four frames. The first clip is 3 frames shorter. Ordinary Wan was trained "
                              "on 5 seconds, Stable Video Diffusion on 4; the report says when a clip is longer. "
                              "Ignored with a plan."),
                field(RenderPlanIO, "plan", optional=True,
                      tooltip="The plan of VRAM Budget Gate: its size and clip length are used."),
                *_OPTIONAL,
            ],
            outputs=[
                io.Latent.Output(id="samples", display_name="samples", tooltip="The clip, for Save Clip."),
                VideoMemoryIO.Output(id="memory_after", display_name="memory",
                                     tooltip="The memory after this clip, for the next Clip Sampler."),
                io.String.Output(id="report", display_name="report", tooltip="What was done, and why."),
            ],
        )

    @classmethod
    def execute(cls, model, memory: VideoMemory, positive: list, seed: int, width: int = 0, height: int = 0,
                clip_seconds: float = 0.0, plan: RenderPlan | None = None, negative: list | None = None,
                cfg: float = 0.0, start_image=None, vae=None, model_low_noise=None,
                scene_cut: bool = False, clip_vision=None, sampler=None, sigmas=None) -> io.NodeOutput:
        if memory is None:
            raise ValueError(message("Clip Sampler needs a memory", "a clip that was saved or loaded without one",
                                     "Persistent Memory, or the memory after another clip",
                                     "Switch on 'with memory' on Load Clip, or connect a memory to Save Clip."))
        started, facts = time.monotonic(), model_facts(model)
        strategy, reason = choose_strategy(memory.spec, facts)
        size = (width, height) if plan is None else (plan.width, plan.height)
        latents = (_clip_latents(memory.spec, clip_seconds) if plan is None
                   else _planned_latents(memory.spec, plan, facts))
        request = ClipRequest(
            model, memory, positive, _geometry(facts, *size), latents, seed, negative,
            cfg if strategy == "latent" else cfg or 1.0, start_image, vae, model_low_noise, scene_cut,
            node_progress(0, node_id(cls)), clip_vision, sampler, sigmas, plan.profile if plan else "balanced",
            _planned_room(plan), plan.pinned if plan else (), user_folder() / FOLDER)
        device = model.load_device
        with watched(plan, "sampling", device, user_folder(), lambda: other_models_bytes(device, model),
                     lambda: available_bytes(device)) as watch:
            watch.units = latents // memory.spec.chunk_latents
            result = SAMPLERS[strategy](request)
            watch.follows_plan = result.is_as_planned
        samples = {**result.samples, "seconds": time.monotonic() - started}
        return io.NodeOutput(samples, result.memory, f"{reason} {result.report} {watch.sentence}".strip())


def _geometry(facts: ModelFacts, width: int, height: int) -> Geometry:
    step_w, step_h = facts.spatial_stride * facts.patch[2], facts.spatial_stride * facts.patch[1]
    if width % step_w or height % step_h:
        raise ValueError(message("Clip Sampler: the size does not fit the model", f"{width}x{height}",
                                 f"widths in steps of {step_w}, heights in steps of {step_h}",
                                 "Round it, or let VRAM Budget Gate do so."))
    return Geometry(facts.latent_channels, height // facts.spatial_stride, width // facts.spatial_stride)


def _clip_latents(spec: MemorySpec, clip_seconds: float) -> int:
    chunk_s = spec.chunk_latents * TEMPORAL_STRIDE / spec.fps
    chunks = -(-(clip_seconds - 1e-6) // chunk_s)
    return int(max(1, chunks)) * spec.chunk_latents


def _planned_latents(spec: MemorySpec, plan: RenderPlan, facts: ModelFacts) -> int:
    """The plan's clip length; ValueError for a plan of another model or another memory."""
    if plan.model is not None and _shape(plan.model) != _shape(facts):
        raise ValueError(message("Clip Sampler: the plan was made for another model",
                                 f"a plan for {_in_words(plan.model)} and {_in_words(facts)}", "one model for both",
                                 "Connect the same MODEL to VRAM Budget Gate and Clip Sampler."))
    if plan.spec.preset != spec.preset:
        raise ValueError(message("Clip Sampler: plan and memory are of different checkpoints",
                                 f"a plan for {plan.spec.preset} and a memory for {spec.preset}", "one checkpoint",
                                 "Connect the plan and the memory of the same VRAM Budget Gate."))
    return plan.clip_latents


def _planned_room(plan: RenderPlan | None) -> int:
    """What the plan says that sampling takes on the card beside the weights; 0 without a plan."""
    cost = next((cost for cost in plan.phases if cost.phase == "sampling"), None) if plan else None
    return cost.vram_bytes - dict(cost.parts).get("weights", 0) if cost else 0


def _shape(facts: ModelFacts) -> tuple:
    return (facts.family, facts.kind, facts.layers, facts.dim, facts.ffn_dim, facts.patch, facts.latent_channels)


def _in_words(facts: ModelFacts) -> str:
    return f"a {facts.family} {facts.kind} of {facts.layers} layers and width {facts.dim}"


NODES = [ClipSampler]
