"""Where the files of the bundled workflows come from: (file, direct link, folder below models/)."""

from __future__ import annotations

HUB = "https://huggingface.co"
WAN21 = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN22 = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"

UMT5 = ("umt5_xxl_fp16.safetensors", f"{WAN21}/text_encoders/umt5_xxl_fp16.safetensors", "text_encoders")
VAE_21 = ("wan_2.1_vae.safetensors", f"{WAN22}/vae/wan_2.1_vae.safetensors", "vae")
VAE_22 = ("wan2.2_vae.safetensors", f"{WAN22}/vae/wan2.2_vae.safetensors", "vae")
CLIP_VISION = ("clip_vision_h.safetensors", f"{WAN21}/clip_vision/clip_vision_h.safetensors", "clip_vision")
LONGLIVE_2 = ("model_bf16.pt", f"{HUB}/Efficient-Large-Model/LongLive-2.0-5B/resolve/main/model_bf16.pt",
              "diffusion_models")
SELF_FORCING = ("self_forcing_dmd.pt", f"{HUB}/gdhe17/Self-Forcing/resolve/main/checkpoints/self_forcing_dmd.pt",
                "diffusion_models")
TI2V_5B = ("wan2.2_ti2v_5B_fp16.safetensors", f"{WAN22}/diffusion_models/wan2.2_ti2v_5B_fp16.safetensors",
           "diffusion_models")
I2V_14B = ("wan2.1_i2v_480p_14B_fp16.safetensors",
           f"{WAN21}/diffusion_models/wan2.1_i2v_480p_14B_fp16.safetensors", "diffusion_models")
TOY_MODEL = ("toyworld_dit_fp16.safetensors", "", "diffusion_models")
TOY_TEXT = ("toyworld_te_fp16.safetensors", "", "text_encoders")
TOY_VAE = ("toyworld_vae_fp16.safetensors", "", "vae")
