"""The machine and the VAE as ComfyUI sees them, added to what the driver tells."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import folder_paths
import torch

from ..common.errors import message
from ..video.decode import wan_decoder_traits
from .cost_model import VaeFacts
from .probe import Machine, see_card, see_disk, see_ram

WAN22_CHANNELS = 48


def vae_facts(vae: Any) -> VaeFacts:
    """What decoding with this VAE costs depends on; ValueError for anything but a Wan VAE."""
    module = vae.first_stage_model
    if wan_decoder_traits(module) is None:
        raise ValueError(message("VRAM Budget Gate cannot predict this VAE", type(module).__name__,
                                 "the Wan 2.1 and Wan 2.2 VAEs", "Load the VAE that belongs to the checkpoint."))
    kind = "wan22" if vae.latent_channels == WAN22_CHANNELS else "wan21"
    return VaeFacts(kind, int(module.dim), int(vae.spacial_compression_decode()), int(vae.model_size()),
                    vae.vae_dtype.itemsize)


def look_around(model: Any, vae: Any) -> Machine:
    """The machine that this MODEL and VAE will run on, now.

    Free means free or freeable: ComfyUI moves its own loaded models off the card when it needs the room. On a CPU the
    weights of model and VAE lie in RAM already and will not be paid again.
    """
    device = model.load_device
    ram_total, ram_available, no_ram = see_ram()
    disk_free, no_disk = see_disk(folder_paths.get_output_directory())
    if device.type in ("cpu", "mps"):
        resident = int(model.model_size()) + int(vae.model_size())
        free, reserved, card, no_card = ram_available + resident, 0, None, ""
        ram_available, total = free, ram_total
    else:
        held = sum(loaded.model_loaded_memory() for loaded in mm.current_loaded_models if loaded.device == device)
        total, free = int(mm.get_total_memory(device)), int(mm.get_free_memory(device)) + int(held)
        reserved = int(mm.extra_reserved_memory())
        card, no_card = see_card(_uuid(device)) if device.type == "cuda" else (None, "NVML: not an NVIDIA card")
    return Machine(str(device), device.type in ("cpu", "mps"), total, free, reserved, ram_total, ram_available,
                   disk_free, card, tuple(reason for reason in (no_card, no_ram, no_disk) if reason))


def _uuid(device: torch.device) -> str | None:
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)
