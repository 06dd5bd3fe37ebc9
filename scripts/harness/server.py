"""A ComfyUI server that is ours alone: own folders, own port, the pack linked in, ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .client import HOST, Client
from .environment import ROOT, Environment
from .errors import CannotContinue

PACK_NAME = "ComfyUI-VideoMemory"
CHILD = Path(__file__).with_name("child.py")
MODEL_FOLDERS = ("diffusion_models", "vae", "text_encoders")
READY_S = 240.0
INTERRUPT_S = 5.0
TERMINATE_S = 5.0
NOT_IN_A_COPY = shutil.ignore_patterns(".git", ".venv", ".cache", "demo_out", "out", "__pycache__", "tests")


class ComfyUIServer:
    """Use as a context manager: starts ComfyUI in `environment`, waits until it answers, and always ends it.

    output: ComfyUI's output folder, which stays; all other folders are temporary.
    models: flat folders with checkpoints, offered as diffusion models, VAEs and text encoders at once.
    port: 0 for a free one. log: file with everything that ComfyUI prints.
    """

    def __init__(self, environment: Environment, output: Path, log: Path, models: tuple[Path, ...] = (),
                 port: int = 0, extra_arguments: tuple[str, ...] = ()) -> None:
        self.environment = environment
        self.output = output
        self.log = log
        self.models = models
        self.port = port
        self.extra_arguments = extra_arguments
        self.base: Path | None = None
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyUIServer:
        self.port = choose_port(self.port)
        self.client = Client(self.port)
        self.output.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.base = Path(tempfile.mkdtemp(prefix="videomemory-"))
        try:
            self._make_folders()
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def check_alive(self) -> None:
        """Raise CannotContinue, with ComfyUI's last words, when it has ended by itself."""
        if self.process.poll() is not None:
            raise CannotContinue(f"ComfyUI ended by itself (exit code {self.process.returncode}); its last words:\n"
                                 f"{last_lines(self.log)}\nThe whole log is {self.log}.")

    def stop(self) -> None:
        """End the server (a running prompt is interrupted first, so that it can clean up) and its folders."""
        process, self.process = self.process, None
        if process is not None:
            if process.poll() is None:
                self._interrupt_running_prompt()
            end_process(process)
        if self.base is not None:
            unlink_folder(self.base / "custom_nodes" / PACK_NAME)
            shutil.rmtree(self.base, ignore_errors=True)
            self.base = None

    def _make_folders(self) -> None:
        for name in ("custom_nodes", "user", "temp", "input", "models"):
            (self.base / name).mkdir()
        link_folder(ROOT, self.base / "custom_nodes" / PACK_NAME)
        # JSON is YAML, and its quoting copes with any path. One section per folder: values are newline-separated.
        sections = {f"videomemory_{index}": {"base_path": str(folder), **dict.fromkeys(MODEL_FOLDERS, ".")}
                    for index, folder in enumerate(self.models)}
        (self.base / "models.yaml").write_text(json.dumps(sections, indent=1), encoding="utf-8")

    def _start(self) -> None:
        base = self.base
        command = [str(self.environment.python), str(CHILD), str(os.getpid()),
                   str(self.environment.comfyui / "main.py"),
                   "--listen", HOST, "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes",
                   "--base-directory", str(base), "--user-directory", str(base / "user"),
                   "--temp-directory", str(base / "temp"), "--output-directory", str(self.output),
                   "--database-url", "sqlite:///:memory:", *self.extra_arguments]
        if self.models:
            command += ["--extra-model-paths-config", str(base / "models.yaml")]
        if not self.environment.has_accelerator():
            command.append("--cpu")
        own_group = ({"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32"
                     else {"start_new_session": True})  # Ctrl-C reaches us, and we end the server in order
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            env=server_environment(), cwd=base, **own_group)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                self.client.get("/system_stats", timeout_s=5.0)
                return
            except (OSError, ValueError):
                time.sleep(0.2)
        raise CannotContinue(f"ComfyUI did not answer within {READY_S:.0f} seconds; its last words:\n"
                             f"{last_lines(self.log)}\nThe whole log is {self.log}.")

    def _interrupt_running_prompt(self) -> None:
        try:
            if self.client.is_idle():
                return
            self.client.interrupt()
            deadline = time.monotonic() + INTERRUPT_S
            while time.monotonic() < deadline and not self.client.is_idle():
                time.sleep(0.1)
        except (OSError, ValueError):
            pass  # not up yet, or gone already: there is nothing to interrupt


def server_environment() -> dict[str, str]:
    """The environment variables of the server's process.

    One OpenMP thread: by default its threads spin while they wait, and as soon as anything else uses the cores the same
    small prompt takes 2.6-9 s instead of 1.0-1.2 s (measured on two cores). A value set by the user wins.
    """
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:replace"}


def choose_port(wanted: int) -> int:
    """`wanted` when it is free, any free loopback port for 0; a taken one is refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":  # where a listener that just ended would block the port for a minute
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError:
            raise CannotContinue(f"Port {wanted} is taken by another program: end it, give another --port, or leave "
                                 f"--port away and a free one is chosen.") from None
        return probe.getsockname()[1]


def link_folder(source: Path, link: Path) -> None:
    """Make `link` show the folder `source`: a symbolic link, on Windows a junction (needs no rights), else a copy."""
    try:
        link.symlink_to(source, target_is_directory=True)
        return
    except OSError:
        if sys.platform == "win32":
            made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(source)],
                                  capture_output=True, check=False)
            if made.returncode == 0:
                return
    shutil.copytree(source, link, ignore=NOT_IN_A_COPY)


def unlink_folder(link: Path) -> None:
    """Remove what link_folder made, never what it points at."""
    try:
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            os.rmdir(link)  # takes a junction away, and refuses a real folder with files in it
    except OSError:
        pass  # a copy: it goes with the temporary folder


def end_process(process: subprocess.Popen) -> None:
    """End the process and everything in its group: politely, then by force."""
    for force in (False, True):
        if sys.platform == "win32":
            process.kill() if force else process.terminate()
        else:
            # Ended already: no such process (macOS says permission, for a group of zombies).
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
        try:
            process.wait(TERMINATE_S)
            return
        except subprocess.TimeoutExpired:
            continue


def last_lines(log: Path, count: int = 15) -> str:
    """The last lines of a log file, without empty ones."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join("    " + line for line in lines[-count:]) or "    (nothing)"
