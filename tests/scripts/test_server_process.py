"""The server's process: it ends with us, however we end, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pack.scripts.harness import server as harness
from pack.scripts.harness.environment import Environment
from pack.scripts.harness.errors import CannotContinue

CHILD = Path(harness.__file__).with_name("child.py")


class PlainEnvironment(Environment):
    """This Python, without asking torch for a graphics card."""

    def has_accelerator(self) -> bool:
        return False


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_until(condition, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def fake_comfyui(folder: Path, code: str) -> PlainEnvironment:
    folder.mkdir()
    (folder / "main.py").write_text(code)
    return PlainEnvironment(Path(sys.executable), folder, "0.3.75", ours=False)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX; Windows waits for the parent's handle instead")
def test_the_child_ends_when_the_parent_is_killed(tmp_path):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time\ntime.sleep(600)\n")
    parent = tmp_path / "parent.py"
    parent.write_text("import os, subprocess, sys, time\n"
                      f"child = subprocess.Popen([sys.executable, {str(CHILD)!r}, str(os.getpid()), {str(sleeper)!r}],"
                      " start_new_session=True)\nprint(child.pid, flush=True)\ntime.sleep(600)\n")
    process = subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert is_running(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert wait_until(lambda: not is_running(child))


def test_the_program_sees_its_own_arguments_and_folder(tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 7\n")
    program = tmp_path / "main.py"
    program.write_text("import sys, neighbour\nprint(__name__, sys.argv[1:], neighbour.value)\n")
    done = subprocess.run([sys.executable, str(CHILD), str(os.getpid()), str(program), "--x", "1"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "__main__ ['--x', '1'] 7"


def test_the_last_words_are_shown_when_comfyui_dies_at_the_start(tmp_path):
    broken = fake_comfyui(tmp_path / "ComfyUI", "raise RuntimeError('no such frontend')\n")
    server = harness.ComfyUIServer(broken, tmp_path / "out", tmp_path / "log.txt")
    words = r"(?s)ended by itself \(exit code 1\).*no such frontend.*log\.txt"
    with pytest.raises(CannotContinue, match=words), server:
        pass
    assert server.base is None and server.process is None


def test_nothing_is_left_when_the_body_raises(tmp_path):
    """A tiny stand-in for the program that is started, so that only the process handling is looked at."""
    code = ("import sys, http.server\nport = int(sys.argv[sys.argv.index('--port') + 1])\n"
            "class Answer(http.server.BaseHTTPRequestHandler):\n"
            "    def do_GET(self):\n"
            "        body = b'{\"queue_running\": [], \"queue_pending\": []}'\n"
            "        self.send_response(200); self.send_header('Content-Length', str(len(body)))\n"
            "        self.end_headers(); self.wfile.write(body)\n"
            "http.server.HTTPServer(('127.0.0.1', port), Answer).serve_forever()\n")
    environment = fake_comfyui(tmp_path / "ComfyUI", code)
    server = harness.ComfyUIServer(environment, tmp_path / "out", tmp_path / "log.txt")
    with pytest.raises(KeyboardInterrupt), server:
        pid, base = server.process.pid, server.base
        assert (base / "custom_nodes" / "ComfyUI-VideoMemory" / "pyproject.toml").is_file()
        raise KeyboardInterrupt
    assert not base.exists()
    assert wait_until(lambda: not is_running(pid))
    assert (harness.ROOT / "pyproject.toml").is_file()


def test_a_port_is_refused_when_it_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(CannotContinue, match=f"Port {taken} is taken"):
            harness.choose_port(taken)
    assert harness.choose_port(0) != 0


def test_a_link_is_removed_without_what_it_points_at(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file.txt").write_text("keep me")
    link = tmp_path / "link"
    harness.link_folder(source, link)
    assert (link / "file.txt").read_text() == "keep me"
    harness.unlink_folder(link)
    assert not link.exists()
    assert (source / "file.txt").read_text() == "keep me"


def test_a_users_thread_setting_wins(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert harness.server_environment()["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert harness.server_environment()["OMP_NUM_THREADS"] == "6"
