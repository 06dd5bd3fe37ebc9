"""The machine, a MODEL and a VAE as ComfyUI sees them, added to what the driver tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management as mm
import folder_paths
import torch

from ..common.compat import model_facts, user_folder
from ..common.errors import message
from ..common.types import ModelFacts
from ..video.decode import wan_decoder_traits
from .coefficients import known_families
from .cost_model import CONTEXT_BYTES, CORE, VaeFacts
from .graph import CARD_BYTES
from .headers_other import SMALLEST_TILE_LATENTS, SMALLEST_TILE_PX
from .learned import FILE, Record, read_records
from .probe import Machine, see_disk, see_ram
from .probe_card import card_free_bytes, see_card

WAN22_CHANNELS = 48


def model_facts_on(model: Any, as_on_card: bool = False) -> ModelFacts:
    """The facts of a model that can be predicted; ValueError for others.

    as_on_card: a CPU holds it in 32 bits, a card would hold it in 16.
    """
    facts = model_facts(model)
    if facts.family not in known_families():
        raise ValueError(message(
            "VRAM Budget Gate cannot say what this model needs", type(model.model).__name__,
            f"models of the families {', '.join(known_families())}",
            "Leave the gate out: connect Persistent Memory to Clip Sampler, and type size and clip length there."))
    if not as_on_card or facts.dtype_bytes == CARD_BYTES:
        return facts
    return replace(facts, dtype_bytes=CARD_BYTES, weight_bytes=facts.weight_bytes - _saved_in_16_bits(model.model))


def vae_facts(vae: Any, as_on_card: bool = False, family: str = "wan") -> VaeFacts:
    """What decoding with this VAE costs depends on; ValueError for a Wan model with anything but a Wan VAE."""
    module = vae.first_stage_model
    if wan_decoder_traits(module) is None and family != "wan":
        return VaeFacts(CORE, 0, int(vae.spacial_compression_decode()), int(vae.model_size()), vae.vae_dtype.itemsize,
                        _smallest_tile_bytes(vae))
    if wan_decoder_traits(module) is None:
        raise ValueError(message("VRAM Budget Gate cannot predict this VAE", type(module).__name__,
                                 "the Wan 2.1 and Wan 2.2 VAEs", "Load the VAE that belongs to the checkpoint."))
    kind = "wan22" if vae.latent_channels == WAN22_CHANNELS else "wan21"
    facts = VaeFacts(kind, int(module.dim), int(vae.spacial_compression_decode()), int(vae.model_size()),
                     vae.vae_dtype.itemsize)
    if not as_on_card or facts.dtype_bytes == CARD_BYTES:
        return facts
    return replace(facts, dtype_bytes=CARD_BYTES, weight_bytes=facts.weight_bytes - _saved_in_16_bits(module))


def look_around(device: torch.device, resident_bytes: int = 0, measure_disks: bool = False) -> Machine:
    """The machine that a model on this device will run on, now.

    Free means free or freeable: ComfyUI moves its own loaded models off the card when it needs the room. On a CPU
    weights that lie in RAM already (resident_bytes) will not be paid again. measure_disks: write a little to see how
    fast.
    """
    ram, no_ram = see_ram()
    seen = [see_disk(name, folder, measure_disks) for name, folder in
            (("output", folder_paths.get_output_directory()), ("temp", folder_paths.get_temp_directory()))]
    disks = tuple(disk for disk, _ in seen)
    unseen = tuple(reason for reason in (no_ram, *(reason for _, reason in seen)) if reason)
    if device.type in ("cpu", "mps"):
        free = ram.available_bytes + resident_bytes
        return Machine(str(device), True, ram.total_bytes, free, 0, ram.total_bytes, free, disks[0].free_bytes, None,
                       unseen, ram.swap_free_bytes, disks, loaded_models(device), str(device))
    held, total = loaded_models(device), int(mm.get_total_memory(device))
    card, no_card = _see_card(device, total)
    free = card_free_bytes(card, *map(int, mm.get_free_memory(device, torch_free_too=True)))
    return Machine(str(device), False, total, free + sum(size for _, size in held), int(mm.extra_reserved_memory()),
                   ram.total_bytes, ram.available_bytes, disks[0].free_bytes, card,
                   (*filter(None, (no_card,)), *unseen), ram.swap_free_bytes, disks, held, _name(device))


def loaded_models(device: torch.device) -> tuple[tuple[str, int], ...]:
    """What ComfyUI has on the device now, and can move off it: (class of the model, bytes)."""
    held = [loaded.model for loaded in mm.current_loaded_models if loaded.device == device]  # weak: each is read once
    return tuple((type(patcher.model).__name__, int(patcher.loaded_size())) for patcher in held if patcher is not None)


def compute_bytes(device: torch.device) -> int:
    """Bytes of a value of the dtype that ComfyUI computes a Wan model in on this device."""
    dtype = mm.unet_dtype(device=device, supported_dtypes=[torch.bfloat16, torch.float16, torch.float32])
    return dtype.itemsize


def is_fused() -> bool:
    """Whether the attention that ComfyUI uses keeps no scores: torch's own, xFormers, Sage and Flash do not."""
    return attention.optimized_attention not in (attention.attention_basic, attention.attention_split,
                                                 attention.attention_sub_quad)


def records() -> tuple[Record, ...]:
    """What was measured on this machine before."""
    return read_records(user_folder() / FILE)


def _smallest_tile_bytes(vae: Any) -> int:
    """What ComfyUI estimates for the smallest tile that Save Clip lets it decode."""
    side = max(8, SMALLEST_TILE_PX // int(vae.spacial_compression_decode()))
    times = (SMALLEST_TILE_LATENTS,) if vae.latent_dim == 3 else ()
    return int(vae.memory_used_decode((1, vae.latent_channels, *times, side, side), vae.vae_dtype))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _see_card(device: torch.device, total: int) -> tuple[Any, str]:
    if device.type != "cuda":
        return None, "NVML: not an NVIDIA card"
    own = int(torch.cuda.memory_reserved(device)) + CONTEXT_BYTES
    return see_card(_uuid(device), total_bytes=total, own_bytes=own)


def _saved_in_16_bits(module: torch.nn.Module) -> int:
    """What a module's 32-bit values would not take in 16 bits; its packed weights hold their scales in 32 anyway."""
    packed = {id(tensor) for part in module.modules() if getattr(part, "codec", None) is not None
              for tensor in part.parameters()}
    return sum(tensor.nbytes // 2 for tensor in module.parameters()
               if tensor.dtype == torch.float32 and id(tensor) not in packed)


def _uuid(device: torch.device) -> str | None:
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)
