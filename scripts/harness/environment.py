"""Where ComfyUI runs: our own `.venv` and `.cache/comfyui`, made once, or the user's ComfyUI and Python.

The recipe (which files, why these versions) is one pip command for everything, so that torch, torchvision and
torchaudio are resolved together; a marker with the recipe's hash makes the second run skip all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import comfyui_source, cpu_shim, pip
from .errors import CannotContinue
from .status_line import StatusLine

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
COMFYUI = ROOT / ".cache" / "comfyui"
LOG = ROOT / ".cache" / "setup.log"
MARKER = "videomemory.json"
TORCH = ["torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0"]
PINNED = ["transformers>=4.50.3,<5"]
TEST_TOOLS = ["pytest==9.2.0", "hypothesis==6.170.15", "ruff==0.17.6", "playwright==1.65.2",
              "axe-playwright-python==0.1.8"]  # brings axe-core, which judges the accessibility of our panels
TEST_BITSANDBYTES = "bitsandbytes==0.50.2"
RECIPE_VERSION = 1
# Measured on Linux x86_64 at the worst moment of the set-up (packages being unpacked), rounded up.
CPU_BYTES = 3_000_000_000
CUDA_BYTES = 8_000_000_000


@dataclass(frozen=True)
class Environment:
    """A Python that runs ComfyUI: `python` (executable), `comfyui` (folder), its version, and whether we made it."""

    python: Path
    comfyui: Path
    version: str
    ours: bool
    set_up_s: float = 0.0

    def has_accelerator(self) -> bool:
        """Whether torch in this Python sees CUDA, ROCm, XPU or MPS; without one ComfyUI must be told `--cpu`."""
        if self.ours and _read_marker().get("cpu_build"):
            return False
        code = ("import sys, torch; a = getattr(torch, 'xpu', None); sys.exit(0 if torch.cuda.is_available() or "
                "torch.backends.mps.is_available() or (a is not None and a.is_available()) else 3)")
        return subprocess.run([str(self.python), "-c", code], capture_output=True, check=False).returncode == 0


def own_environment(with_test_tools: bool = False) -> Environment:
    """Make `.venv` and `.cache/comfyui` where they are missing, half-made or of another recipe; seconds otherwise."""
    check_python(sys.version_info, struct.calcsize("P") * 8)
    with StatusLine("Setting up") as status:
        if _read_marker().get("base") != _recipe_hash(TORCH + PINNED) or not _venv_python().exists():
            _make_base(status)
        python = _venv_python()
        comfyui_source.fetch(COMFYUI, python, LOG, status)  # already there unless somebody deleted it
        if with_test_tools and _read_marker().get("tests") != _recipe_hash([*TEST_TOOLS, TEST_BITSANDBYTES]):
            _add_test_tools(python, status)
        seconds = status.seconds()
    return Environment(python, COMFYUI, comfyui_source.check_version(COMFYUI), ours=True, set_up_s=seconds)


def users_environment(comfyui: Path, python: Path | None = None) -> Environment:
    """The user's own ComfyUI (0.3.75 or newer) with `python`, or with the Python found beside it; checks both."""
    comfyui = comfyui.expanduser().resolve()
    version = comfyui_source.check_version(comfyui)
    chosen = python.expanduser().absolute() if python is not None else _python_beside(comfyui)
    try:
        probe = subprocess.run([str(chosen), "-c", "import torch, aiohttp, av"],
                               capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotContinue(f"--python {chosen} cannot be started ({error.strerror}): give the Python executable "
                             f"that runs your ComfyUI.") from None
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotContinue(f"{chosen} cannot run ComfyUI ({reason}): give with --python the Python executable that "
                             f"runs your ComfyUI.")
    return Environment(chosen, comfyui, version, ours=False)


def check_python(version: tuple, bits: int) -> None:
    """Refuse a Python that has no packages of ours: older than 3.10, newer than 3.13, or 32 bit."""
    if not (3, 10) <= tuple(version[:2]) <= (3, 13) or bits != 64:
        raise CannotContinue(f"This is Python {version[0]}.{version[1]} ({bits} bit), and the packages exist for "
                             f"64-bit Python 3.10 to 3.13: run the command with one of those (Windows: py -3.12 ...).")


def check_disk(free_bytes: int, needed_bytes: int, folder: Path) -> None:
    """Refuse to start a set-up that cannot fit on the disk."""
    if free_bytes < needed_bytes:
        raise CannotContinue(f"The set-up needs {needed_bytes / 1e9:.0f} GB of disk and {folder} has "
                             f"{free_bytes / 1e9:.1f} GB free: free some space, or use your own ComfyUI with "
                             f"--comfyui PATH.")


def _make_base(status: StatusLine) -> None:
    """Build the virtual environment and ComfyUI from nothing; the marker is written last."""
    check_disk(shutil.disk_usage(ROOT).free, CPU_BYTES, ROOT)
    if VENV.exists() and not (VENV / MARKER).exists():
        raise CannotContinue(f"{VENV} exists and was not made by this script: move it away, or use it with "
                             f"--comfyui PATH --python {_venv_python()}.")
    LOG.unlink(missing_ok=True)
    status.show("making a virtual environment")
    shutil.rmtree(VENV, ignore_errors=True)
    _write_marker({"being_made": True})
    _make_venv()
    python = _venv_python()
    cuda = pip.needs_cuda_packages(python, TORCH[0], LOG, status)
    check_disk(shutil.disk_usage(ROOT).free, CUDA_BYTES if cuda else CPU_BYTES, ROOT)
    comfyui_source.fetch(COMFYUI, python, LOG, status)
    pip.install(python, TORCH + PINNED + comfyui_source.requirements(COMFYUI), LOG, status)
    status.show("checking the packages")
    shimmed = cpu_shim.apply_where_needed(python)
    _write_marker({"base": _recipe_hash(TORCH + PINNED), "cpu_build": not cuda, "shimmed": shimmed})


def _make_venv() -> None:
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        LOG.parent.mkdir(parents=True, exist_ok=True)
        LOG.write_text(made.stdout + made.stderr, encoding="utf-8")
        raise CannotContinue(f"python -m venv failed: install the venv module of this Python (Debian and Ubuntu: "
                             f"apt install python3-venv) and run again; ComfyUI's portable Python has none, use "
                             f"--comfyui PATH with it (log: {LOG}).")


def _add_test_tools(python: Path, status: StatusLine) -> None:
    """What the tests need on top; bitsandbytes only where it installs, because it is compared with, not used."""
    pip.install(python, TEST_TOOLS, LOG, status)
    try:
        pip.install(python, [TEST_BITSANDBYTES], LOG, status, options=("--no-deps",))
    except CannotContinue:
        print(f"{TEST_BITSANDBYTES} does not install here: the comparisons with it will be skipped (log: {LOG})")
    _write_marker({**_read_marker(), "tests": _recipe_hash([*TEST_TOOLS, TEST_BITSANDBYTES])})


def _recipe_hash(requirements: list[str]) -> str:
    """Changes when the recipe, the Python or the place of the repository does: a venv cannot be moved."""
    facts = [RECIPE_VERSION, list(sys.version_info[:2]), sys.platform, platform.machine(), str(ROOT),
             comfyui_source.WHEEL_SHA256, *requirements]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read_marker() -> dict:
    try:
        return json.loads((VENV / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_marker(facts: dict) -> None:
    VENV.mkdir(parents=True, exist_ok=True)
    partial = VENV / (MARKER + ".partial")
    partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, VENV / MARKER)


def _venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _python_beside(comfyui: Path) -> Path:
    """The Python of a ComfyUI folder: its venv, the Windows portable one, or the one running this script."""
    candidates = [comfyui / name / inner for name in (".venv", "venv")
                  for inner in ("bin/python", "Scripts/python.exe")]
    candidates.append(comfyui.parent / "python_embeded" / "python.exe")  # the portable build spells it so
    return next((path for path in candidates if path.is_file()), Path(sys.executable))
