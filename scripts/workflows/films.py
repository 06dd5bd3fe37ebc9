"""The bundled workflows that make a film with Render Short."""

from __future__ import annotations

from .checkpoints import SELF_FORCING, TI2V_5B, UMT5, VAE_21, VAE_22
from .graph import Node
from .parts import LONGLIVE_FILES, TOY_FILES, finish, load, negative, plan, render, toy_write, write

UNMEASURED = ("The gate says before the first step what each phase will need: that is a prediction from shapes. No "
              "time "
              "and no VRAM of this workflow has been measured on a card yet.")
LONGLIVE_NOTE = ("**LongLive 2.0 5B** (causal Wan 2.2), packed while it loads: 4 bits, and 8 bits for the layers that "
                 "suffer most. Files: `model_bf16.pt` in models/diffusion_models (the editor offers only safetensors; "
                 "its link is huggingface.co/Efficient-Large-Model/LongLive-2.0-5B), `umt5_xxl_fp16.safetensors` in "
                 "models/text_encoders, `wan2.2_vae.safetensors` in models/vae.\n\nSet *cache* to keep, and the next "
                 "start reads the packed file.")
WRITE_NOTE = ("**Change**: who the hero is (once, in full), and what happens when. `{hero}` stands for the hero; "
              "every 8 "
              "seconds the full description is named again. Connect a preview to see what each clip is told.")
RENDER_NOTE = ("One clip after the other; each is on disk before the next begins. Stop whenever you like and queue "
               "again: finished clips are used again.\n\n**Change**: clip 5 alone with regenerate = only, clip to make "
               "again = 5 and a new seed.")
FINISH_NOTE = ("Joins are evened out by RIFE (its weights come with the pack). The model makes 24 frames per second; "
               "raise frames per second to 48 for smoother motion. The video file brings this workflow along.")
LONGLIVE_MEMORY = ("Four seconds of memory, as the checkpoint was trained: the first 1.3 s of the film and the last "
                   "2.7 s."
                   "\n\n**Change**: budget (GB) is the size of the card to plan for; 0 uses what is free here. ")
TOY_LOAD = ("The demo checkpoint comes with the pack (demo/toyworld): a real, tiny Wan-architecture model that runs on "
            "any computer. Nothing to download: copy its three files to models/diffusion_models, models/text_encoders "
            "and models/vae, or add the folder to extra_model_paths.yaml.")
TOY_PLAN = ("The memory keeps the first 1.5 s of the film and the last 3 s. The gate checks that everything fits and "
            "says "
            "what it chose. No card is needed.")


def start_image(group: int = 1) -> Node:
    return Node("image", "LoadImage", group, {"image": "example.png"}, title="First frame")


def longlive(name: str, size: tuple[int, int], budget_gb: float, weights: str = "nf4_int8", **memory: object) -> list:
    return [*load(LONGLIVE_FILES, weights), *plan("longlive_2", size, 4.0, budget_gb, **memory), *write(4.0),
            *render(name), *finish(name, 24.0)]


def demo_toyworld() -> tuple[list[Node], dict[int, str]]:
    nodes = [*load(TOY_FILES, "original", "original"), *plan("toyworld", (128, 80), 3.0, 0.0), *toy_write(),
             *render("demo_toyworld")[:1], *finish("demo_toyworld", 24.0, enlarge=5)]
    return nodes, {
        1: TOY_LOAD, 2: TOY_PLAN,
        3: "One line per scene. Words the checkpoint knows: walks left, walks right, jumps, waves; in the forest, "
           "desert, city, snow, cave, by the sea.\n\n**Try**: change the text of clip 5 and queue again. Clips 1 to 4 "
           "are not made again.",
        4: "One clip after the other; each is on disk before the next begins (output/videomemory/demo_toyworld).\n\n"
           "**Try**: carry memory off, and watch the hero change.",
        5: "RIFE from 8 to 24 frames per second, enlarged five times for viewing."}


def resume_and_reroll() -> tuple[list[Node], dict[int, str]]:
    nodes = [*load(TOY_FILES, "original", "original"), *plan("toyworld", (128, 80), 3.0, 0.0), *toy_write(5),
             *render("resume_and_reroll", {"regenerate": "none", "regenerate_clip": 3, "regenerate_seed": 11}),
             *finish("resume_and_reroll", 24.0, enlarge=5)]
    return nodes, {
        1: TOY_LOAD, 2: TOY_PLAN,
        3: "Five clips of 3 seconds.\n\n**Try**: change one line and queue again: that clip and the clips after "
           "it, which were made from it, are made again.",
        4: "1. Queue. 2. Press Cancel in the middle, and queue again: it goes on with the first missing clip. 3. Set "
           "regenerate to only and queue: clip 3 gets another take, and the status says \"4 reused, 1 generated\". "
           "4. Set it back to none: nothing is made again, the new take stays.",
        5: "The same folder, the same file names: each queue writes a new film beside the old one."}


def short_30s_720p_12gb() -> tuple[list[Node], dict[int, str]]:
    return longlive("my_short", (1280, 704), 12.0, precision="4bit"), {
        1: LONGLIVE_NOTE, 2: LONGLIVE_MEMORY + UNMEASURED, 3: WRITE_NOTE,
        4: "Eight clips of 4 seconds. " + RENDER_NOTE, 5: FINISH_NOTE}


def short_30s_i2v_character_12gb() -> tuple[list[Node], dict[int, str]]:
    nodes = [*load(LONGLIVE_FILES, "nf4_int8"), start_image(),
             *plan("longlive_2", (1280, 704), 4.0, 12.0, precision="4bit"), *write(4.0),
             *render("my_character", start_image="image.0"), *finish("my_character", 24.0)]
    return nodes, {
        1: LONGLIVE_NOTE + "\n\n**Change**: the picture of your character; it becomes the first frame. Another size is "
                           "scaled and cut to fit.",
        2: LONGLIVE_MEMORY + "The picture lies in the first chunk, which is never forgotten. " + UNMEASURED,
        3: WRITE_NOTE + " Describe the person in the picture as you see them: words and picture must agree.",
        4: "Eight clips of 4 seconds. " + RENDER_NOTE, 5: FINISH_NOTE}


def short_30s_wan22_ti2v_latent_memory_12gb() -> tuple[list[Node], dict[int, str]]:
    name = "my_latent_short"
    nodes = [*load((TI2V_5B, UMT5, VAE_22), "nf4_int8"),
             *plan("wan22_ti2v_5b", (1280, 704), 5.0, 12.0, {"cfg": 5.0}, reanchor_clips=2), *write(5.0), negative(),
             *render(name, negative="negative.0"), *finish(name, 24.0)]
    return nodes, {
        1: "**Wan 2.2 TI2V-5B**, an ordinary checkpoint, packed while it loads. The editor offers the three files.",
        2: "This checkpoint remembers frames: each clip begins with the last frame of the one before, and every second "
           "clip gets the film's first frame again.\n\n**Change**: overlap (frames) 5 keeps more motion. " + UNMEASURED,
        3: WRITE_NOTE + " The negative prompt counts here, because this checkpoint is sampled with cfg 5.",
        4: "Six clips of 5 seconds, 50 steps each, every step twice (cfg): much slower than the causal workflows. "
           + RENDER_NOTE, 5: FINISH_NOTE}


def short_30s_wan21_13b_causal_8gb() -> tuple[list[Node], dict[int, str]]:
    name = "my_small_short"
    nodes = [*load((SELF_FORCING, UMT5, VAE_21), "nf4_int8"),
             *plan("self_forcing", (832, 480), 4.0, 8.0, precision="int8"), *write(4.0), *render(name),
             *finish(name, 24.0)]
    return nodes, {
        1: "**Self-Forcing** (causal Wan 2.1 1.3B): `self_forcing_dmd.pt` from huggingface.co/gdhe17/Self-Forcing in "
           "models/diffusion_models; the editor offers the other two files.\n\n**LongLive 1**: choose "
           "`longlive_base.pt` here, put *Load LoRA (coverage)* with `lora.pt` behind this loader (both from "
           "huggingface.co/Efficient-Large-Model/LongLive-1.3B), and choose longlive_1 as checkpoint.",
        2: "5.25 s in view, the current chunk included, as trained; no first seconds are kept.\n\n**Change**: first "
           "seconds kept to 0.75 holds the hero better in long films, and is outside this checkpoint's training. "
           + UNMEASURED,
        3: WRITE_NOTE, 4: "480p, clips of about 4 seconds. " + RENDER_NOTE,
        5: "From the model's 16 frames per second to 24 by RIFE."}


def short_1080p_16gb() -> tuple[list[Node], dict[int, str]]:
    return longlive("my_1080p_short", (1920, 1088), 16.0, precision="4bit"), {
        1: LONGLIVE_NOTE,
        2: "1920x1088 has 2.3 times the pixels of 720p, and the memory grows with them. The checkpoint was trained at "
           "720p: compare with an enlarged 720p film before you spend the time.\n\nDecoding goes in tiles that equal "
           "the whole frame: no seams. " + UNMEASURED,
        3: WRITE_NOTE, 4: "Eight clips of 4 seconds. " + RENDER_NOTE, 5: FINISH_NOTE}


def short_30s_24gb_long_memory() -> tuple[list[Node], dict[int, str]]:
    name = "my_long_memory"
    return longlive(name, (1280, 704), 24.0, weights="int8", window_seconds=8.0, precision="int8"), {
        1: LONGLIVE_NOTE.replace("4 bits, and 8 bits for the layers that suffer most", "8 bits"),
        2: "Eight seconds just before the current moment, and the first 1.3 s of the film, in 8 bits.\n\n**Expect**: "
           "no "
           "public checkpoint was trained with so long a window; it may look worse. To reach back inside the trained "
           "length, set window (seconds) to 0 and retrieved (seconds) to 1.3. " + UNMEASURED,
        3: WRITE_NOTE, 4: "Eight clips of 4 seconds. " + RENDER_NOTE, 5: FINISH_NOTE}
