"""The bundled workflow of a hero in a remembered place."""

from __future__ import annotations

from .checkpoints import TI2V_5B, UMT5, VAE_22
from .films import FINISH_NOTE, UNMEASURED
from .graph import Node
from .parts import finish, load, negative, plan, write

SIZE, FPS, LATENTS = (1280, 704), 24.0, 31  # latents of a clip: 121 frames, 120 of them new in the second
STEP = 4 * (LATENTS - 1)
WALK = "truck 0.5 in 2.5\npan 25 in 2.5\nback"
SCENES = ("0-5: {hero} walks slowly along the stone wall of an old courtyard, looking up at the windows\n"
          "5-10: {hero} turns around and walks back the way she came")


def pictures() -> list[Node]:
    """The first frame and its depth, both of the film's size."""
    nodes = []
    for key, title in (("image", "First frame"), ("depth", "Depth of the first frame, white = near")):
        nodes += [
            Node(key, "LoadImage", 1, {"image": "example.png"}, title=title, lane=1),
            Node(f"{key}_scaled", "ImageScale", 1,
                 {"upscale_method": "lanczos", "width": SIZE[0], "height": SIZE[1], "crop": "center"},
                 {"image": f"{key}.0"}, lane=1),
        ]
    return nodes


def place() -> list[Node]:
    """Where the camera goes, and what its first frame knows of the place."""
    return [
        Node("path", "VideoMemoryCameraPath", 2,
             {"moves": WALK, "width": SIZE[0], "height": SIZE[1], "fps": FPS}, lane=1),
        Node("lift", "VideoMemoryLiftSpatial", 2, {},
             {"camera_path": "path.0", "vae": "vae.0", "depth": "depth_scaled.0", "image": "image_scaled.0"}, lane=1),
    ]


def clip_row(index: int, row: int, run_name: str, place_from: str, **links: str) -> list[Node]:
    """Prompt, sampler and saved clip of one stretch of the path."""
    chain = {"clips": f"save{index - 1}.0"} if index else {}
    return [
        Node(f"prompt{index}", "VideoMemoryPromptForClip", 4, {"clip_index": index},
             {"clip": "clip.0", "timeline": "schedule.0", "plan": "gate.0"}, row=row,
             title=f"Prompt for clip {index + 1}"),
        Node(f"walk{index}", "VideoMemorySpatialClipSampler", 4,
             {"seed": 7 + index, "first_frame": index * STEP, "latents": LATENTS},
             {"model": "model.0", "vae": "vae.0", "positive": f"prompt{index}.0", "negative": "negative.0",
              "spatial_memory": place_from, "camera_path": "path.0", **links},
             lane=1, row=row, title=f"Clip {index + 1}"),
        Node(f"save{index}", "VideoMemorySaveClip", 4, {"run_name": run_name},
             {"samples": f"walk{index}.0", "vae": "vae.0", "memory": f"walk{index}.3", "plan": "gate.0", **chain},
             lane=2, row=row, title=f"Save clip {index + 1}"),
    ]


def update_row() -> list[Node]:
    """What clip 1 showed goes into the place; bypassed until somebody connects a depth node."""
    return [
        Node("frames", "VAEDecodeTiled", 4, {}, {"samples": "walk0.0", "vae": "vae.0"}, row=1,
             title="Frames of clip 1, for a depth node"),
        Node("update", "VideoMemoryUpdateSpatial", 4, {},
             {"spatial_memory": "lift.0", "camera_path": "path.0", "vae": "vae.0", "latent": "walk0.0",
              "first_frame": "walk0.4"},
             lane=1, row=1, title="Remember what clip 1 showed", is_bypassed=True),
    ]


def world_walk_720p_12gb() -> tuple[list[Node], dict[int, str]]:
    name = "my_world_walk"
    nodes = [*load((TI2V_5B, UMT5, VAE_22), "nf4_int8"), *pictures(),
             *plan("wan22_ti2v_5b", SIZE, 5.0, 12.0, {"cfg": 5.0}, "lift.0", reanchor_clips=2), *place(),
             *write(5.0, 10.0, scenes=SCENES), negative(),
             *clip_row(0, 0, name, "lift.0", start_image="image_scaled.0", video_memory="gate.1"), *update_row(),
             *clip_row(1, 2, name, "update.0", video_memory="save0.1"), *finish(name, FPS, "save1.0"),
             Node("report", "VideoMemorySpatialReport", 5, {}, {"spatial_memory": "update.0"},
                  title="What is remembered of the place")]
    return nodes, {
        1: "**Wan 2.2 TI2V-5B**, packed while it loads; the editor offers the three files. Two pictures: the film's "
           "first frame, and its depth (white is near).\n\n**Depth**: ComfyUI 0.3 has no depth node of its own. Make "
           "the depth picture with a community node, for instance Depth Anything V2 of ComfyUI-DepthAnythingV2, or "
           "one of comfyui_controlnet_aux, between *First frame* and *Lift to Spatial Memory*.\n\nWhat moves, and sky, "
           "must not be remembered: connect a mask of a segmentation node to Lift.",
        2: "Two memories: the **hero** (frames; *Persistent Memory*) and the **place** (a cloud of latent points; "
           "*Lift*). The camera goes to the right, turns, and comes back by the same way.\n\n**Change**: the moves; "
           "near and far of the depth. " + UNMEASURED + " The place takes RAM alone.",
        3: "Two clips of 5 seconds, one out, one back. The negative prompt counts (cfg 5).",
        4: "Clip 2 begins at frame 120, the last one of clip 1, and is shown what its cameras know of the place; what "
           "nobody has seen is made.\n\n**To remember clip 1 too**: connect *Frames of clip 1* to a depth node for "
           "videos (Depth Anything V2, DepthCrafter), its pictures to *depth* of *Update Spatial Memory*, and switch "
           "that node on (Ctrl+B). Until then it is bypassed, and clip 2 knows the first frame alone.\n\nWhat a place "
           "does to the picture was not measured with trained weights; **trust** below 1 lets the model change it.",
        5: FINISH_NOTE}
