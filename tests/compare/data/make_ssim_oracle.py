"""Writes ssim_oracle.json next to this file: SSIM and PSNR of two pictures by scikit-image, which the tests lack.

    pip install scikit-image && python tests/compare/data/make_ssim_oracle.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import skimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def frames(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width].astype(float)
    a = np.stack([0.5 + 0.4 * np.sin(x / (3 + c) + y / 5) for c in range(3)], -1)
    return a, (a + 0.1 * np.cos(x * y / 7)[..., None]).clip(0, 1)


def case(height: int, width: int) -> dict:
    a, b = frames(height, width)
    luma = np.array((0.299, 0.587, 0.114))
    value = structural_similarity(a @ luma, b @ luma, data_range=1.0, gaussian_weights=True, sigma=1.5,
                                  use_sample_covariance=False)
    return {"height": height, "width": width, "ssim": float(value),
            "psnr": float(peak_signal_noise_ratio(a, b, data_range=1.0))}


result = {"made_by": f"scikit-image {skimage.__version__}", "cases": [case(16, 16), case(37, 52), case(80, 128)]}
(Path(__file__).parent / "ssim_oracle.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
