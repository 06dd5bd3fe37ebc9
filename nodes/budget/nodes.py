"""VRAM Budget Gate: what will it cost, what is there, and what do we do about it, before anything is sampled."""

from __future__ import annotations

from dataclasses import replace

from ..common.compat import RenderPlanIO, SpatialMemoryIO, VideoMemoryIO, field, io, schema
from ..common.types import TEMPORAL_STRIDE, VideoMemory
from .answer import notes_of, plan_asked
from .bridge import is_fused, look_around, model_facts_on, records, vae_facts
from .graph import Asked
from .place import BRANCHES, NO_BRANCH, place_of
from .planner import PROFILES, budget_of, check_profile
from .report import report

_OPTIONAL = (
    field(io.Float, "cfg", default=0.0, min=0.0, max=30.0, step=0.1, round=0.01, optional=True,
          tooltip="What Clip Sampler will use. 0 = as the checkpoint's recipe says. Other than 1 a causal checkpoint "
                  "remembers twice, once for each prompt."),
    field(io.Boolean, "keep_precision", display_name="keep memory precision", default=False, optional=True,
          tooltip="On = keys and values stay as Persistent Memory says, whatever else has to be given up."),
    field(io.Boolean, "keep_placement", display_name="keep memory in VRAM", default=False, optional=True,
          tooltip="On = a memory that is in VRAM stays there."),
    field(io.Boolean, "keep_window", display_name="keep memory length", default=False, optional=True,
          tooltip="On = the window is not shortened."),
    field(io.Boolean, "keep_clip", display_name="keep clip length", default=False, optional=True,
          tooltip="On = clips are not shortened."),
    field(io.Boolean, "keep_on_card", display_name="keep the model on the card", default=False, optional=True,
          tooltip="On = no part of the model is planned to rest in RAM, which would make every step slower."),
    field(io.Boolean, "may_shrink", display_name="may lower the size", default=False, optional=True,
          tooltip="On = when all else does not help, the largest smaller size that fits is taken. Off = it is refused, "
                  "and the nearest plans that fit are named."),
    field(io.Clip, "clip", optional=True,
          tooltip="The text encoder, to count its weights too; it is not loaded for this."),
    field(SpatialMemoryIO, "spatial_memory", optional=True,
          tooltip="The place, for clips of Spatial Clip Sampler and Mirage Clip Sampler: its RAM is counted, and no "
                  "keys and values."),
    field(io.Combo, "mirage_branch", display_name="Mirage branch", options=list(BRANCHES), default=NO_BRANCH,
          optional=True,
          tooltip="For Mirage Clip Sampler: the weights of its branch, which lie on the card beside the model's."),
)


class BudgetGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "budget",
            node_id="VideoMemoryBudgetGate",
            display_name="VRAM Budget Gate",
            description="Predicts what every phase of a clip needs, chooses what fits and says what it gave up, before "
                        "anything is sampled.",
            search_aliases=["out of memory", "OOM", "VRAM", "low vram"],
            inputs=[
                field(io.Model, "model", tooltip="The model that will sample the film."),
                field(io.Vae, "vae", tooltip="The VAE that will decode it."),
                field(VideoMemoryIO, "memory",
                      tooltip="From Persistent Memory: what you would like. It comes out as what fits."),
                field(io.Int, "width", default=1280, min=16, max=8192, step=16,
                      tooltip="Pixels; lowered to the model's grid (1280x704 for 720p on Wan 2.2)."),
                field(io.Int, "height", default=704, min=16, max=8192, step=16, tooltip="Pixels; as the width."),
                field(io.Float, "clip_seconds", display_name="clip (seconds)", default=4.0, min=0.1, max=600.0,
                      step=0.1, tooltip="Length of one clip; the nearest whole number of the model's chunks is taken."),
                field(io.Float, "budget_gb", display_name="budget (GB)", default=0.0, min=0.0, max=1024.0, step=0.5,
                      tooltip="0 = what is free on this machine now. A number plans for a card of that size with a "
                              "desktop on it: the same plan on every machine, and every time the film is resumed."),
                field(io.Combo, "profile", options=list(PROFILES), default="balanced",
                      tooltip="What is given up first. balanced: memory precision, then its place in VRAM. quality: "
                              "accepts slower steps before lower precision. speed: shortens the window before it "
                              "uses RAM. minimum_vram: as little as possible."),
                *_OPTIONAL,
            ],
            outputs=[
                RenderPlanIO.Output(id="plan", display_name="plan",
                                    tooltip="For Render Short, Clip Sampler, Prompt for Clip, Save Clip, Assemble "
                                            "Short, Interpolate Frames, Compare Quantization and VRAM Report."),
                VideoMemoryIO.Output(id="fitted_memory", display_name="memory",
                                     tooltip="The memory as it fits, for Clip Sampler or Render Short."),
                io.Int.Output(id="fitted_width", display_name="width", tooltip="The width that was planned."),
                io.Int.Output(id="fitted_height", display_name="height", tooltip="The height that was planned."),
                io.Int.Output(id="length", display_name="length", tooltip="Pixel frames of the film's first clip."),
                io.String.Output(id="report", display_name="report", tooltip="Peaks per phase, and every decision."),
            ],
        )

    @classmethod
    def validate_inputs(cls, profile: str | None) -> bool | str:
        """Numbers are checked by ComfyUI, which repeats a refusal for every input that this takes.

        A choice that comes over a link is None here and is checked when the node runs.
        """
        try:
            check_profile("balanced" if profile is None else profile)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, vae, memory: VideoMemory, width: int, height: int, clip_seconds: float, budget_gb: float,
                profile: str, clip=None, spatial_memory=None, mirage_branch: str = NO_BRANCH,
                **others: float | bool) -> io.NodeOutput:
        machine = look_around(model.load_device, int(model.model_size()) + int(vae.model_size()), measure_disks=True)
        budget = budget_of(machine, budget_gb)
        is_card = machine.unified and budget_gb > 0
        facts = model_facts_on(model, is_card)
        asked = Asked(facts, vae_facts(vae, is_card, facts.family), memory.spec, bool(memory.blocks),
                      {"width": width, "height": height, "clip_seconds": clip_seconds, "profile": profile, **others},
                      int(clip.patcher.model_size()) if clip is not None else 0,
                      place=place_of(spatial_memory, facts, mirage_branch))
        plan = plan_asked(asked, budget, machine, is_card or is_fused(), records())
        return io.NodeOutput(plan, replace(memory, spec=plan.spec), plan.width, plan.height,
                             TEMPORAL_STRIDE * plan.clip_latents - 3, report(plan, machine, budget, notes_of(asked)))


NODES = [BudgetGate]
