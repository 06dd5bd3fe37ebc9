"""Sets up what the tests need and runs all of them: python scripts/test.py [--fast] [pytest arguments].

--fast leaves out the browser and the long ones. Everything it does not know goes to pytest, for example
`python scripts/test.py tests/memory -k int8`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # ComfyUI's portable Python does not do so

from harness.environment import ROOT, Environment, own_environment
from harness.errors import CannotContinue, sentence_for_os_error

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
CHROMIUM_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up what the tests need, then run ruff and pytest.",
                                     allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="leave out the browser tests and the long ones")
    parser.add_argument("--install-chromium", action="store_true",
                        help="install Debian's chromium when there is none (root on Debian or Ubuntu; used by .ci/run)")
    chosen, pytest_arguments = parser.parse_known_args()
    try:
        environment = own_environment(with_test_tools=True)
        chromium = None if chosen.fast else find_chromium(chosen.install_chromium)
    except CannotContinue as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(sentence_for_os_error(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 1
    return run_checks(environment, chromium, chosen.fast, pytest_arguments)


def run_checks(environment: Environment, chromium: str | None, fast: bool, pytest_arguments: list[str]) -> int:
    """ruff, then pytest; the exit code of the first that fails. pytest's closing line is the last one printed."""
    variables = {**os.environ, "COMFYUI_PATH": str(environment.comfyui), "OMP_NUM_THREADS": "1"}
    left_out = ["browser", "slow"] if fast else []
    if chromium:
        variables["CHROMIUM_PATH"] = chromium
    elif not fast:
        print("!!! NO CHROMIUM FOUND: THE BROWSER TESTS ARE LEFT OUT (install Chromium, Chrome or Edge) !!!")
        left_out = ["browser"]
    python = str(environment.python)
    ruff = subprocess.run([python, "-m", "ruff", "check", "."], cwd=ROOT, check=False)
    if ruff.returncode != 0:
        return ruff.returncode
    selection = ["-m", " and ".join(f"not {marker}" for marker in left_out)] if left_out else []
    sys.stdout.flush()
    try:
        return subprocess.run([python, "-m", "pytest", *selection, *pytest_arguments], cwd=ROOT, env=variables,
                              check=False).returncode
    except KeyboardInterrupt:
        return 1  # pytest got the same Ctrl-C and has said so


def find_chromium(install: bool) -> str | None:
    """The path of a Chromium, Chrome or Edge; with `install`, Debian's own is installed when there is none."""
    found = _installed_chromium()
    if found is None and install and shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing chromium ...", flush=True)
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
            if done.returncode != 0:
                print(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        found = _installed_chromium()
    return found


def _installed_chromium() -> str | None:
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return named
    on_path = (shutil.which(name) for name in CHROMIUM_NAMES)
    placed = (place for place in CHROMIUM_PLACES if Path(place).is_file())
    return next((path for path in (*on_path, *placed) if path), None)


if __name__ == "__main__":
    sys.exit(main())
