"""Files that somebody does not have yet: the tensors that they hold, by the sizes that their publishers name.

So that a workflow tells whether it fits before ten gigabytes are fetched. Sizes: github.com/Wan-Video/Wan2.1 and Wan2.2
(wan/configs), huggingface.co/google/umt5-xxl (config.json).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from ..loading.families import WAN
from ..loading.files import TensorHeader
from ..loading.formats import Checkpoint
from ..loading.text_formats import UMT5
from .cost_model import VaeFacts
from .shapes import WanSize, umt5_shapes, wan_shapes

SIXTEEN_BITS = torch.bfloat16


WAN_1_3B = WanSize("Wan 2.1 T2V 1.3B", 1536, 8960, 30)
WAN_5B = WanSize("Wan 2.2 TI2V 5B", 3072, 14336, 30, 48, 48)
T2V_14B = WanSize("Wan T2V 14B", 5120, 13824, 40)
I2V_14B_21 = WanSize("Wan 2.1 I2V 14B", 5120, 13824, 40, 36, has_image=True)
I2V_14B_22 = WanSize("Wan 2.2 I2V 14B", 5120, 13824, 40, 36)

# Found in a file's name, without regard to case; the first that fits. Files in 8 or 4 bits, and other networks that are
# named after the model that they belong to, hold other tensors.
PACKED = re.compile(r"fp[48]|nf4|int\d|[48].?bit|e4m3|e5m2|awq|gptq|w\da\d|q\d|gguf|scaled", re.IGNORECASE)
OTHERS = re.compile(r"lora|rank.?\d|lightning|lightx|distill|accvid|vace|fun|camera|s2v|animate|controlnet|uni3c|"
                    r"multitalk|phantom|branch|upscale|skyreels|infinite|control|inp\b|recam|minimax|turbo|fast",
                    re.IGNORECASE)
MODELS = (
    (r"^self_forcing_(dmd|sid|gan)\.|^longlive_base\.|^causal_forcing\.|wan.?2.?1.*t2v.*1[._]3b", WAN_1_3B),
    (r"^model_bf16\.pt$|wan.?2.?2.*ti2v.*5b|longlive.?2.*5b", WAN_5B),
    (r"wan.?2.?1.*i2v.*14b", I2V_14B_21), (r"wan.?2.?2.*i2v.*14b", I2V_14B_22), (r"wan.?2.?[12].*t2v.*14b", T2V_14B))
# kind, base channels of the decoder, pixels per latent pixel, values of all weights
VAES = ((r"wan.?2.?2.?vae", "wan22", 160, 16, 704_688_668), (r"wan.?2.?1.?vae", "wan21", 96, 8, 126_892_531))
TEXT_ENCODERS = r"umt5.?xxl"


def published_model(name: str) -> tuple[Checkpoint, str] | None:
    """(the tensors of a diffusion model's file of this name, the model's name); None where nobody knows."""
    size = next((size for pattern, size in MODELS if _is(pattern, name)), None)
    return None if size is None else (_checkpoint(name, WAN, wan_shapes(size)), size.title)


def published_vae(name: str, compute_bytes: int) -> VaeFacts | None:
    """The facts of a VAE's file of this name, or None."""
    return next((VaeFacts(kind, dim, stride, values * compute_bytes, compute_bytes)
                 for pattern, kind, dim, stride, values in VAES if _is(pattern, name)), None)


def published_text_encoder(name: str) -> Checkpoint | None:
    """The tensors of a text encoder's file of this name, or None."""
    return _checkpoint(name, UMT5, umt5_shapes()) if _is(TEXT_ENCODERS, name) else None


def _is(pattern: str, name: str) -> bool:
    file = Path(name.replace("\\", "/")).name
    return bool(re.search(pattern, file, re.IGNORECASE)) and not PACKED.search(file) and not OTHERS.search(file)


def _checkpoint(name: str, family: object, shapes: Iterator[tuple[str, tuple[int, ...]]]) -> Checkpoint:
    headers = {key: TensorHeader(key, SIXTEEN_BITS, shape, torch.Size(shape).numel() * SIXTEEN_BITS.itemsize)
               for key, shape in shapes}
    return Checkpoint(Path(name), family, headers, {})
