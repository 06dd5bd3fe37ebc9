"""Puts the training recipe, and only it, on the path: its scripts import their siblings by plain names."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "demo" / "toyworld" / "training"))
