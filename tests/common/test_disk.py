"""Files that somebody else holds for a moment, as a virus scanner or a player does on Windows, and names for files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pack.nodes.budget import learned
from pack.nodes.common import disk
from pack.nodes.common.disk import can_be_written, discard, patiently
from pack.nodes.common.saved_files import check_prefix, write_whole
from pack.nodes.loading.cache import SafetensorsWriter
from pack.nodes.video.encode import write_ffv1
from pack.nodes.video.manifest import CARD, MANIFEST, Take, recover, write_card, write_manifest
from pack.nodes.video.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
HELD = PermissionError(13, "The process cannot access the file because it is being used by another process")


class Holder:
    """Holds files: the first `times` tries of os.replace, or of reading and deleting, fail as they do on Windows."""

    def __init__(self, times: int) -> None:
        self.left, self.tries = times, 0

    def around(self, act):
        def held(*given, **named):
            self.tries += 1
            if self.left:
                self.left -= 1
                raise HELD
            return act(*given, **named)

        return held


@pytest.fixture
def windows(monkeypatch):
    """Four tries that do not wait."""
    monkeypatch.setattr(disk, "WAITS_S", (0.0, 0.0, 0.0))


def write_cache(path: Path) -> None:
    with SafetensorsWriter(path, 1, {}) as writer:
        writer.add("weight", torch.ones(8))


def write_record(path: Path) -> None:
    said = learned.add_record(path, learned.Record("card", "family", "sampling", "plan", 1, 1, 1, 1, 1.0, 1))
    if said:
        raise RuntimeError(said)


def put(path: Path) -> None:
    run = RunFolder(path.parent)
    run.put(run.begin(0, "made from", "digest"), "latents", lambda temporary: temporary.write_bytes(b"latents"))


WRITERS = {
    "manifest": lambda path: write_manifest(path.parent, []),
    "saved file": lambda path: write_whole(path, {"a": torch.ones(2)}, {}),
    "packed weights": write_cache,
    "record": write_record,
    "clip": put,
    "video": lambda path: write_ffv1(path, iter(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)), 8),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_waits_for_a_file_that_is_held_for_a_moment(windows, monkeypatch, tmp_path, name):
    holder = Holder(3)
    monkeypatch.setattr(os, "replace", holder.around(os.replace))
    WRITERS[name](tmp_path / "file.json")
    assert holder.tries >= 4
    assert [path.name for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".partial", ".part")] == []


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_held_for_ever_is_told_and_not_hidden_by_the_clean_up(windows, monkeypatch, tmp_path, name):
    monkeypatch.setattr(os, "replace", Holder(1000).around(os.replace))
    monkeypatch.setattr(Path, "unlink", Holder(1000).around(Path.unlink))
    monkeypatch.setattr(HELD, "strerror", "used by another process")
    with pytest.raises((PermissionError, RuntimeError), match="used by another process"):
        WRITERS[name](tmp_path / "file.json")


def test_only_what_is_held_is_waited_for_and_only_on_windows(monkeypatch, windows):
    calls = Holder(0)

    def gone():
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        patiently(calls.around(gone))
    assert calls.tries == 1
    monkeypatch.setattr(disk, "WAITS_S", ())
    held = Holder(1)
    with pytest.raises(PermissionError):
        patiently(held.around(gone))
    assert held.tries == 1


def test_a_file_that_cannot_be_deleted_now_is_no_error(monkeypatch, tmp_path):
    path = tmp_path / "file"
    assert discard(path)
    path.write_text("here")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", Holder(1).around(Path.unlink))
        assert not discard(path)
    assert discard(path) and not path.exists()


def test_a_manifest_that_is_held_is_read_a_moment_later_and_never_taken_for_lost(windows, monkeypatch, tmp_path):
    newer, older = (Take(0, 1, "done", "from", "digest", "now", note) for note in ("newer", "older"))
    write_manifest(tmp_path, [newer])
    write_card(tmp_path, older)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", Holder(2).around(Path.read_text))
        assert RunFolder(tmp_path).takes() == [newer]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", Holder(1000).around(Path.read_bytes))
        assert recover(tmp_path) == ""
    assert RunFolder(tmp_path).takes() == [newer]
    (tmp_path / MANIFEST).unlink()
    assert "was lost" in recover(tmp_path) and older.file_name(CARD) == "clip_000.json"


@pytest.mark.parametrize(("name", "is_fine"), [
    ("hero", True), ("16 9", True), ("länge.v2", True), ("contact", True), ("com10", True), ("%year%", True),
    ("16:9", False), ("what?", False), ("a*b", False), ('"x"', False), ("a|b", False), ("tab\t", False), ("NUL", False),
    ("aux.tar", False), ("lpt1 ", False)])
def test_names_are_those_that_every_system_can_write(name, is_fine):
    assert can_be_written(name) is is_fine
    answer = check_prefix("Save Memory", f"heroes/{name}", "hero")
    assert (answer is True) is is_fine and (is_fine or 'without .. and < > : " | ? *' in answer)


@pytest.mark.parametrize("script", ["plan", "demo", "test"])
def test_scripts_start_in_an_isolated_python_such_as_comfyuis_portable_one(script):
    shown = subprocess.run([sys.executable, "-I", str(ROOT / "scripts" / f"{script}.py"), "--help"],
                           capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and shown.stdout.startswith("usage:"), shown.stderr


def test_an_isolated_python_keeps_its_own_library_in_a_child(tmp_path):
    (tmp_path / "beside.py").write_text("WORDS = 'found'")
    (tmp_path / "main.py").write_text("import sys, beside; print(len(sys.path), beside.WORDS)")
    child = ROOT / "scripts" / "harness" / "child.py"
    plain = subprocess.run([sys.executable, "-I", "-c", "import sys; print(len(sys.path))"], capture_output=True,
                           text=True, check=True)
    ran = subprocess.run([sys.executable, "-I", str(child), str(os.getpid()), str(tmp_path / "main.py")],
                         capture_output=True, text=True, check=False)
    assert ran.stdout.split() == [str(int(plain.stdout) + 1), "found"], ran.stderr
