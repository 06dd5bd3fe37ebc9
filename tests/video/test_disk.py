"""Disks that are full, read-only or emptied, for real: one sentence, nothing lost, and on it goes once there is room.

Full: a file system of 8 MB (Linux, with the right to mount one), and everywhere else on POSIX a limit on the size of
files, which fails in the same calls with another number.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack.nodes.common.types import Geometry, MemorySpec

pytestmark = pytest.mark.comfy

SPEC = MemorySpec("toyworld", 8.0, 3, 3, 6)
FULL = (r"has no room on its disk|"
        r"(has to write into|could not be written).*(No space left|File too large|os error 28|os error 27)")


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True,
                          check=False) if sys.platform == "linux" and shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class SmallDisk:
    """A file system of 8 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    @contextlib.contextmanager
    def room(self, size: int):
        """Leave `size` bytes meanwhile."""
        free = os.statvfs(self.folder)
        self.filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - size)))
        try:
            yield
        finally:
            self.filler.unlink()


class SmallFiles:
    """No file may be larger."""

    def __init__(self, _folder: Path) -> None:
        pass

    @contextlib.contextmanager
    def room(self, size: int):
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["mounted", "limited"])
def disk(request, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    if request.param == "mounted":
        with mounted(tmp_path, "size=8m"):
            yield SmallDisk(tmp_path)
    elif sys.platform == "win32":
        pytest.skip("Windows has no limit on the size of files")
    else:
        yield SmallFiles(tmp_path)


def a_memory(latents: int):
    from pack.nodes.memory.state import commit, empty_memory

    return commit(replace(empty_memory(SPEC), geometry=Geometry(16, 10, 16)), torch.zeros(16, latents, 10, 16), None)


def save(vae, index: int, clips=None, samples: bool = True):
    """Clip `index`: latents of 20 kB, a memory of 140 kB, frames of about 50 kB."""
    from pack.nodes.video.nodes import SaveClip

    latent = {"samples": torch.randn(1, 16, 2, 10, 16, generator=torch.Generator().manual_seed(index))}
    inputs = (latent, a_memory(6)) if samples else (None, None)
    return SaveClip.execute(vae, "film", *inputs, None, clips, f"word {index}").args


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("clip_000")}


@pytest.mark.parametrize("room", [2_000, 15_000, 60_000])  # not even the latents, half of them, not the memory
def test_full_disk_costs_only_what_did_not_fit(disk, comfy_vae, tmp_path, room):
    from pack.nodes.video.nodes import SaveClip
    from pack.nodes.video.run_folder import RunFolder

    folder = tmp_path / "videomemory" / "film"
    clips = save(comfy_vae, 0)[0]
    before = content(folder)
    with disk.room(room), pytest.raises(RuntimeError, match=FULL):
        save(comfy_vae, 1, clips)
    assert not list(folder.glob("*.tmp*")) and content(folder) == before
    statuses = {take.index: take.status for take in RunFolder(folder).takes()}
    assert statuses[0] == "done" and statuses.get(1) in {None, "started", "latents"}
    after = save(comfy_vae, 1, clips)[0]
    assert [record.frames for record in after.records] == [5, 5] and content(folder) == before
    assert SaveClip.check_lazy_status("film", clips, "word 1", samples=None, memory=None) == []


def test_disk_that_is_full_while_decoding_costs_only_the_decode(disk, comfy_vae, tmp_path, monkeypatch):
    from pack.nodes.video import bridge
    from pack.nodes.video.nodes import SaveClip

    clips, real = save(comfy_vae, 0)[0], bridge.decode_frames

    with monkeypatch.context() as patch, contextlib.ExitStack() as others:
        def full(*arguments):
            others.enter_context(disk.room(10_000))  # somebody else needs it
            yield from real(*arguments)

        patch.setattr(bridge, "decode_frames", full)
        with pytest.raises(RuntimeError, match=FULL):
            save(comfy_vae, 1, clips)
    assert SaveClip.check_lazy_status("film", clips, "word 1", samples=None, memory=None) == []
    made = save(comfy_vae, 1, clips, samples=False)
    assert made[0].records[1].frames == 5 and not list(tmp_path.rglob("*.tmp*"))


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A function that makes an output folder with a finished clip read-only; root needs a mount for that."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with contextlib.ExitStack() as stack:
        def forbid() -> None:
            if sys.platform == "win32":
                pytest.skip("a folder's read-only flag means nothing on Windows")
            elif os.geteuid() == 0:
                subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
            else:
                folder = tmp_path / "videomemory" / "film"
                folder.chmod(0o500)
                (folder / "run.lock").chmod(0o400)
                stack.callback(folder.chmod, 0o700)

        if sys.platform != "win32" and os.geteuid() == 0:
            stack.enter_context(mounted(tmp_path, "size=8m"))
        yield forbid


def test_read_only_folder_is_refused_before_sampling_and_its_clips_are_used(read_only, comfy_vae, tmp_path):
    from pack.nodes.video.nodes import LoadClip, SaveClip
    from pack.nodes.video.run_folder import RunFolder

    clips = save(comfy_vae, 0)[0]
    read_only()
    assert SaveClip.check_lazy_status("film", None, "word 0", samples=None, memory=None) == []
    assert save(comfy_vae, 0, samples=False)[0] == clips
    assert RunFolder(clips.records[0].folder).current(clips.records[0]) == clips.records[0]
    assert LoadClip.execute("film", 0, True).args[1].latents_done == 6
    with pytest.raises(RuntimeError, match="needs a folder to write to.*Read-only|needs a folder to write to.*denied"):
        SaveClip.check_lazy_status("film", clips, "word 1", samples=None, memory=None)


def test_folder_deleted_between_two_clips(comfy_vae, tmp_path, monkeypatch):
    """What was in it is made again by the next prompt; the clip that was saved after it is kept."""
    import folder_paths
    from pack.nodes.video.nodes import SaveClip
    from pack.nodes.video.run_folder import RunFolder

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    clips = save(comfy_vae, 0)[0]
    before = SaveClip.fingerprint_inputs("film")
    shutil.rmtree(tmp_path / "videomemory")
    both = save(comfy_vae, 1, clips)[0]
    run = RunFolder(clips.records[0].folder)
    with pytest.raises(RuntimeError, match="needs the frames of clip 0, but got none.*Queue again"):
        run.current(both.records[0])
    assert run.current(both.records[1]) == both.records[1]
    assert SaveClip.fingerprint_inputs("film") == before + 1
    assert SaveClip.check_lazy_status("film", None, "word 0", samples=None, memory=None) == ["samples", "memory"]
    again = save(comfy_vae, 0)[0]
    assert SaveClip.check_lazy_status("film", again, "word 1", samples=None, memory=None) == []
    assert again == clips and run.current(again.records[0]) == again.records[0]


def test_folder_deleted_while_a_clip_is_written(comfy_vae, tmp_path, monkeypatch):
    import folder_paths
    from pack.nodes.video import bridge

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    real = bridge.decode_frames

    def vanishing(*arguments):
        shutil.rmtree(tmp_path / "videomemory")
        yield from real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bridge, "decode_frames", vanishing)
        with pytest.raises(RuntimeError, match="Save Clip has to write into .*No such file.* queue again"):
            save(comfy_vae, 0)
    assert save(comfy_vae, 0)[0].records[0].frames == 5
