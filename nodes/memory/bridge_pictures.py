"""Pictures of chunks as files in ComfyUI's temp folder, where the graph editor gets them by /view."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

import folder_paths
import torch
from PIL import Image


def save_pictures(pictures: Sequence[torch.Tensor]) -> list[dict[str, str]]:
    """Write uint8 pictures [h, w, 3] under names that were never used; what /view is asked for, one per picture."""
    folder, name = folder_paths.get_temp_directory(), f"videomemory_{secrets.token_hex(6)}"
    os.makedirs(folder, exist_ok=True)
    files = [f"{name}_{i:02d}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture.numpy()).save(os.path.join(folder, file), compress_level=1)
    return [{"filename": file, "subfolder": "", "type": "temp"} for file in files]
