"""Two processes and one run folder: the second is refused with a name, and a kill frees the folder at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pack.nodes.video import lock
from pack.nodes.video.lock import LOCK_FILE, FolderLocks

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, types
for name, folder in (("pack", sys.argv[1]), ("pack.nodes", sys.argv[1] + "/nodes")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from pathlib import Path
from pack.nodes.video.lock import LOCKS
with LOCKS.hold(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that writes into tmp_path / "film"."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(ROOT), str(tmp_path / "film")],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_process_is_refused_by_name(tmp_path, other_process):
    before = {path.name: path.read_bytes() for path in (tmp_path / "film").iterdir()}
    wanted = rf"The run 'film' is written by one ComfyUI at a time, but got another .*process {other_process.pid} on .*"
    with pytest.raises(RuntimeError, match=wanted + "Choose another run name"), FolderLocks().hold(tmp_path / "film"):
        pass
    assert {path.name: path.read_bytes() for path in (tmp_path / "film").iterdir()} == before


def test_other_runs_are_free_meanwhile(tmp_path, other_process):
    with FolderLocks().hold(tmp_path / "another film"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path, other_process):
    other_process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    other_process.wait()
    with FolderLocks().hold(tmp_path / "film"):
        assert json.loads((tmp_path / "film" / LOCK_FILE).read_text())["pid"] == os.getpid()


def is_free(folder: Path) -> bool:
    try:
        with FolderLocks().hold(folder):
            return True
    except RuntimeError:
        return False


def test_held_as_long_as_the_outermost_block(tmp_path):
    locks = FolderLocks()
    with locks.hold(tmp_path):
        with locks.hold(tmp_path):
            assert not is_free(tmp_path)
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_kept_until_no_prompt_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    locks, running = FolderLocks(), ["a prompt"]
    locks.keep(tmp_path, lambda: running[0])
    with locks.hold(tmp_path):
        pass
    assert not is_free(tmp_path)
    running[0] = ""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(5)
    assert is_free(tmp_path)


def test_outside_a_server_nothing_is_kept(tmp_path):
    locks = FolderLocks()
    locks.keep(tmp_path, lambda: "")
    assert is_free(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no folder in which a file is open")
def test_a_deleted_folder_is_locked_anew(tmp_path):
    locks = FolderLocks()
    with locks.hold(tmp_path / "film"):
        shutil.rmtree(tmp_path / "film")
        with locks.hold(tmp_path / "film"):
            assert not is_free(tmp_path / "film")


def test_two_makers_of_one_clip_are_refused(tmp_path):
    locks, running = FolderLocks(), ["first"]
    locks.keep(tmp_path, lambda: running[0])
    locks.claim(tmp_path, 0, "4", "a", "first")
    locks.claim(tmp_path, 0, "4", "b", "first")  # the same node, asked again
    locks.claim(tmp_path, 0, "9", "a", "first")  # the same clip
    locks.claim(tmp_path, 1, "9", "b", "first")
    with pytest.raises(ValueError, match="one place in the graph, but got clip 0 from the node 9 and from the node 4"):
        locks.claim(tmp_path, 0, "9", "b", "first")
    locks.claim(tmp_path, 0, "9", "b", "second")
    running[0] = ""


def test_a_drive_without_locks_is_used_without(tmp_path, monkeypatch):
    def unsupported(_handle: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(lock, "_lock_handle", unsupported)
    with FolderLocks().hold(tmp_path):
        assert (tmp_path / LOCK_FILE).is_file()


def test_the_text_of_a_lock_is_replaced_whole(tmp_path):
    (tmp_path / LOCK_FILE).write_text("x" * 1000)
    started = time.time()
    with FolderLocks().hold(tmp_path):
        facts = json.loads((tmp_path / LOCK_FILE).read_text())
    assert set(facts) == {"pid", "host", "since"} and time.time() - started < 60
