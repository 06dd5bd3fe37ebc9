"""The bundled workflows whose clips are nodes of their own."""

from __future__ import annotations

from dataclasses import replace

from .checkpoints import CLIP_VISION, I2V_14B, UMT5, VAE_21
from .films import FINISH_NOTE, LONGLIVE_MEMORY, LONGLIVE_NOTE, TOY_LOAD, UNMEASURED, WRITE_NOTE, start_image
from .graph import Node
from .parts import LONGLIVE_FILES, TOY_FILES, finish, linked, load, negative, plan, toy_write, write

CLIPS = 8


def clip_row(index: int, run_name: str, **links: str) -> list[Node]:
    """Prompt, sampler and saved clip of one clip; the memory comes from the clip before."""
    before = f"save{index - 1}.1" if index else "gate.1"
    chain = {"clips": f"save{index - 1}.0"} if index else {}
    return [
        Node(f"prompt{index}", "VideoMemoryPromptForClip", 4, {"clip_index": index},
             {"clip": "clip.0", "timeline": "schedule.0", "plan": "gate.0"}, row=index,
             title=f"Prompt for clip {index + 1}"),
        Node(f"sample{index}", "VideoMemoryClipSampler", 4, {"seed": 7},
             {"model": "model.0", "memory": before, "positive": f"prompt{index}.0", "plan": "gate.0", **links},
             lane=1, row=index, title=f"Clip {index + 1}"),
        Node(f"save{index}", "VideoMemorySaveClip", 4, {"run_name": run_name},
             {"samples": f"sample{index}.0", "vae": "vae.0", "memory": f"sample{index}.1", "plan": "gate.0", **chain},
             lane=2, row=index, title=f"Save clip {index + 1}"),
    ]


def short_30s_720p_12gb_unrolled() -> tuple[list[Node], dict[int, str]]:
    name = "my_unrolled_short"
    rows = [replace(node, box=f"Clip {index + 1}") for index in range(CLIPS) for node in clip_row(index, name)]
    nodes = [*load(LONGLIVE_FILES, "nf4_int8"), *plan("longlive_2", (1280, 704), 4.0, 12.0, precision="4bit"),
             *write(4.0), *rows, *finish(name, 24.0, f"save{CLIPS - 1}.0"),
             Node("remembered", "VideoMemoryMemoryReport", 5, {},
                  {"memory": f"save{CLIPS - 1}.1", "vae": "vae.0", "model": "model.0"}),
             Node("sheet", "PreviewImage", 5, {}, {"images": "remembered.0"}, title="What is remembered")]
    return nodes, {
        1: LONGLIVE_NOTE, 2: LONGLIVE_MEMORY + UNMEASURED, 3: WRITE_NOTE,
        4: "The film of short_30s_720p_12gb with every clip in sight: a subgraph each, with prompt, sampler and saved "
           "clip inside. The memory goes from clip to clip.\n\n**Change**: branch it. Copy clip 4, connect clip 3's "
           "memory to both, give the copy another run name inside, and each goes its own way. The same seed in every "
           "clip: noise depends on the place in the film.",
        5: FINISH_NOTE + "\n\nThe sheet shows what is remembered after the last clip."}


def clip_14b_i2v_12gb() -> tuple[list[Node], dict[int, str]]:
    name = "my_14b_clip"
    vision = Node("vision", "CLIPVisionLoader", 1, {"clip_name": CLIP_VISION[0]}, models=linked(CLIP_VISION))
    row = clip_row(0, name, negative="negative.0", start_image="image.0", vae="vae.0", clip_vision="vision.0")
    nodes = [*load((I2V_14B, UMT5, VAE_21), "nf4"), vision, start_image(),
             *plan("wan21_i2v_14b", (832, 480), 5.0, 12.0, {"cfg": 5.0}),
             *write(5.0, 5.0, scenes="0-5: {hero} turns her head and smiles, hair moving in the wind, close-up"),
             negative(), *row, *finish(name, 24.0, "save0.0")]
    return nodes, {
        1: "**Wan 2.1 I2V 14B** in 4 bits: of its 33 GB file a quarter stays. 8 bits for some layers (nf4_int8) would "
           "be better and is predicted to leave too little of 12 GB for the activations. The editor offers all four "
           "files.\n\n**Change**: the picture.",
        2: "The whole clip goes through the model at once: its length is what costs VRAM. " + UNMEASURED,
        3: "One clip of 5 seconds, as the checkpoint was trained. The negative prompt counts (cfg 5).",
        4: "40 steps, each twice (cfg): this takes long on a small card. A speed LoRA goes between model and sampler, "
           "with its own sigmas.",
        5: "From the model's 16 frames per second to 24 by RIFE."}


def compare_quantization() -> tuple[list[Node], dict[int, str]]:
    model, *_ = TOY_FILES
    packed = Node("packed", "VideoMemoryLoadDiffusionModel", 1, {"model_name": model[0], "weights": "nf4_int8"},
                  title="The same model, packed")
    nodes = [
        *load(TOY_FILES, "original", "original"), packed, *plan("toyworld", (128, 80), 3.0, 0.0), *toy_write(1),
        Node("prompt", "VideoMemoryPromptForClip", 3, {"clip_index": 0}, {"clip": "clip.0", "timeline": "schedule.0"}),
        Node("compare", "VideoMemoryCompareQuantization", 4,
             {"seed": 7, "width": 128, "height": 80, "clip_seconds": 3.0, "name_a": "original", "name_b": "nf4_int8"},
             {"model_a": "model.0", "model_b": "packed.0", "vae": "vae.0", "memory": "gate.1", "positive": "prompt.0",
              "plan": "gate.0"}),
        Node("report", "PreviewAny", 5, {}, {"source": "compare.0"}, title="Table"),
        Node("plot", "PreviewImage", 5, {}, {"images": "compare.1"}, title="Frame by frame"),
        Node("save", "SaveVideo", 5, {"filename_prefix": "video/compare_quantization"}, {"video": "compare.2"}),
    ]
    return nodes, {
        1: TOY_LOAD + "\n\n**Change**: both loaders to your own checkpoint, one *original* (or int8), one packed.",
        2: "The same empty memory for both. For your own checkpoint choose it here, and its size at the gate.",
        3: "One clip, one prompt.",
        4: "The same seed and noise with both models. With a large checkpoint both are needed: ComfyUI moves one off "
           "the card while the other runs.",
        5: "PSNR and SSIM say how far apart two films are, not which one is better: look at the video, the original is "
           "on the left."}
