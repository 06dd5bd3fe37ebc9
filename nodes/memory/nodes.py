"""Persistent Memory, Custom Checkpoint Recipe and Forget."""

from __future__ import annotations

from ..common.compat import MemoryRecipeIO, VideoMemoryIO, field, io, node_id, node_progress, schema
from ..common.types import PLACEMENTS, PRECISIONS, PROMPT_CHANGES
from ..sampling.presets import CUSTOM, MAX_CHUNK, PRESETS, custom_preset
from ..sampling.solvers import SOLVERS
from .choices import LABELS, Choices, check_recipe, ignored, spec_of
from .state import empty_memory, forget
from .words import promise

NOT_CONNECTED = "not connected"  # what validate_inputs sees of a socket without a link; with one it sees None

_REQUIRED = (
    field(io.Combo, "preset", display_name=LABELS["preset"], options=[*PRESETS, CUSTOM], default="longlive_2",
          tooltip="The checkpoint your MODEL comes from. Causal ones (toyworld to causal_forcing_framewise) remember "
                  "keys and values; it fixes their noise levels, chunk and frame rate. The others remember frames. "
                  "custom = the recipe that is connected."),
    field(io.Float, "window_seconds", display_name=LABELS["window_seconds"], default=0.0, min=0.0, max=60.0, step=0.05,
          tooltip="How many seconds just before the current moment are seen, without a gap. 0 = as the checkpoint was "
                  "trained. 8 or 16 = a plain long window: it costs VRAM, and no public checkpoint was trained with "
                  "one. To reach as far back inside the trained length, use retrieved (seconds)."),
    field(io.Float, "sink_seconds", display_name=LABELS["sink_seconds"], default=-1.0, min=-1.0, max=60.0, step=0.05,
          tooltip="How many seconds from the start of the film are remembered for ever (the sink: it holds the hero). "
                  "-1 = as the checkpoint was trained, 0 = none."),
    field(io.Combo, "precision", options=list(PRECISIONS), default="model",
          tooltip="How keys and values are stored: model = as computed (16 bits on a GPU), int8 = half of that, 4bit = "
                  "about a quarter (the first seconds stay at 8 bits)."),
    field(io.Combo, "placement", options=list(PLACEMENTS), default="vram",
          tooltip="vram = on the card. ram = in system memory, copied layer by layer: saves VRAM, costs some time, "
                  "gives the same result."),
)
_OPTIONAL = (
    field(io.Combo, "prompt_change", display_name=LABELS["prompt_change"], options=list(PROMPT_CHANGES),
          default="keep", optional=True,
          tooltip="keep = what is remembered stays as it is (Self-Forcing, Causal-Forcing, the toy world; LongLive 2 "
                  "in one shot). recache = all but the first seconds is made again under the new prompt (LongLive 1). "
                  "pin = the beginning of each shot stays in view until the next one (LongLive 2 in several shots)."),
    field(io.Float, "pinned_seconds", display_name=LABELS["pinned_seconds"], default=-1.0, min=-1.0, max=60.0,
          step=0.05, optional=True,
          tooltip="With pin: how many seconds of the current shot's beginning stay. -1 = as the checkpoint's recipe "
                  "says (LongLive 2: 1.33 s). While the window is 0 they are taken out of it, as in training."),
    field(io.Float, "retrieved_seconds", display_name=LABELS["retrieved_seconds"], default=0.0, min=0.0, max=60.0,
          step=0.05, optional=True,
          tooltip="Places for earlier chunks that come back when the prompt is like theirs: reaches back 8, 16 s and "
                  "more inside the trained length. 0 = none; begin with one chunk: 1.3 for LongLive 2, 0.7 for Wan 2.1 "
                  "1.3B checkpoints, 1.5 for the toy world. Seconds are rounded up to whole chunks. While the window "
                  "is 0 they are taken out of it. Up to 16 chunks wait in RAM or files. No checkpoint was trained with "
                  "this."),
    field(MemoryRecipeIO, "recipe", optional=True,
          tooltip="From Custom Checkpoint Recipe; set the checkpoint to custom."),
    field(io.Int, "overlap_frames", display_name=LABELS["overlap_frames"], default=0, min=0, max=13, optional=True,
          tooltip="For checkpoints that remember frames: with how many last frames of a clip the next one begins: 1, "
                  "5, 9 or 13 (1 to 4 latents), others are rounded up; 0 = as the recipe says. More keeps motion and "
                  "is outside most checkpoints' training. Causal ones ignore it."),
    field(io.Int, "reanchor_clips", display_name=LABELS["reanchor_clips"], default=0, min=0, max=100, optional=True,
          tooltip="For checkpoints that remember frames: every so many clips the film's first frame is given again, in "
                  "front of the overlap; 0 = never. VACE and SVI always have it. Causal ones ignore it."),
    field(io.Float, "colour_hold", display_name=LABELS["colour_hold"], default=-1.0, min=-1.0, max=1.0, step=0.05,
          optional=True,
          tooltip="For checkpoints that remember frames: how strongly colours of later clips are held to the first "
                  "one: 0 = off, 1 = fully, -1 = gently (0.3). Causal ones ignore it."),
)


class PersistentMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryPersistentMemory",
            display_name="Persistent Memory",
            description="An empty memory: how much of the film the model will see again, and how it is stored.",
            search_aliases=["KV cache", "rolling window", "context", "retrieval", "recache", "overlap"],
            hidden=[io.Hidden.unique_id],
            inputs=[*_REQUIRED, *_OPTIONAL],
            outputs=[
                VideoMemoryIO.Output(id="empty_memory", display_name="memory",
                                     tooltip="Pass it to VRAM Budget Gate, Clip Sampler or Render Short."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="What will be remembered, and whether the checkpoint was trained for it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None, precision: str | None, placement: str | None,
                        prompt_change: str | None = "keep", pinned_seconds: float | None = -1.0,
                        recipe: str | None = NOT_CONNECTED, overlap_frames: int | None = 0,
                        reanchor_clips: int | None = 0) -> bool | str:
        """A value that comes over a link is None here; what hangs on it is checked when the node runs."""
        try:
            if recipe is None and preset is not None:
                check_recipe(preset, has_recipe=True)
            elif None not in (preset, prompt_change, pinned_seconds):
                spec_of(Choices(preset, precision=precision or PRECISIONS[0], placement=placement or PLACEMENTS[0],
                                prompt_change=prompt_change, pinned_seconds=pinned_seconds,
                                overlap_frames=overlap_frames or 0, reanchor_clips=reanchor_clips or 0))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **inputs: object) -> io.NodeOutput:
        choices = Choices(**inputs)
        spec = spec_of(choices)
        report = promise(spec, ignored(choices))
        node_progress(0, node_id(cls)).say(report)
        return io.NodeOutput(empty_memory(spec), report, ui={"text": (report,)})


class CustomRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryCustomRecipe",
            display_name="Custom Checkpoint Recipe",
            description="How a causal Wan checkpoint that is not in Persistent Memory's list is sampled, in the "
                        "numbers of its inference configuration.",
            search_aliases=["preset", "Self-Forcing", "LongLive", "causal", "sigmas"],
            inputs=[
                field(io.String, "label", default="My checkpoint", tooltip="Its name, for the reports."),
                field(io.Float, "fps", display_name="frames per second", default=16.0, min=1.0, max=120.0, step=0.001,
                      tooltip="Of its training clips: 16 for most of Wan 2.1, 24 for Wan 2.2 TI2V-5B."),
                field(io.Int, "chunk", display_name="chunk (latents)", default=3, min=1, max=MAX_CHUNK,
                      tooltip="Latent frames denoised together (num_frame_per_block). One latent is 4 frames."),
                field(io.Int, "sink", display_name="sink (latents)", default=0, min=0, max=512,
                      tooltip="Latents kept from the start of the film (sink_size); a multiple of the chunk."),
                field(io.Int, "window", display_name="window (latents)", default=18, min=0, max=512,
                      tooltip="Latents just before the chunk; a multiple of it. Without sink and chunk themselves: "
                              "local_attn_size 21 with chunk 3 and sink 0 is 18 here."),
                field(io.String, "sigmas", default="",
                      tooltip="Noise levels of a chunk, falling from 1, for instance 1.0, 0.9375, 0.8333, 0.625; a "
                              "last 0 is added. Empty = steps and shift make them."),
                field(io.Int, "steps", default=4, min=1, max=100,
                      tooltip="Used while sigmas is empty: number of evenly spaced noise levels."),
                field(io.Float, "shift", default=5.0, min=0.01, max=100.0, step=0.01,
                      tooltip="Used while sigmas is empty: warps the even levels. Causal Wan checkpoints were "
                              "distilled with 5, whatever ComfyUI stores with the model."),
                field(io.Combo, "solver", options=list(SOLVERS), default="renoise",
                      tooltip="renoise = new noise between steps (Self-Forcing and its kin), unipc = LongLive 2, "
                              "euler = plain."),
                field(io.Boolean, "whole_timesteps", display_name="whole timesteps", default=False,
                      tooltip="The model was given 1000 x sigma cut to an integer (LongLive 2)."),
                field(io.Int, "pin", display_name="pin (latents)", default=0, min=0, max=512,
                      tooltip="Latents of a new shot's beginning that stay in view with pin; a multiple of the chunk."),
                field(io.Int, "shot_gap", display_name="gap at a cut (latents)", default=0, min=0, max=512,
                      tooltip="Distance in position that each scene cut opens (LongLive 2: 8). 0 = not trained with "
                              "cuts: a cut then leaves only the sink in view."),
            ],
            outputs=[MemoryRecipeIO.Output(id="recipe", display_name="recipe",
                                           tooltip="For Persistent Memory, with its checkpoint set to custom.")],
        )

    @classmethod
    def validate_inputs(cls, chunk: int | None, sink: int | None, window: int | None, sigmas: str | None,
                        pin: int | None) -> bool | str:
        """A value that comes over a link is None here and is checked when the node runs."""
        if None in (chunk, sink, window, sigmas, pin):
            return True
        try:
            custom_preset("", 16.0, chunk, sink, window, sigmas, pin=pin)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **inputs: object) -> io.NodeOutput:
        return io.NodeOutput(custom_preset(**inputs))


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


NODES = [PersistentMemory, CustomRecipe, Forget]
