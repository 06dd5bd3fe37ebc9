"""Makes the 30-second demo film with the real ComfyUI: python scripts/demo.py [--out DIR].

Sets up what is missing (the first time takes minutes), renders workflows/demo_toyworld.json through our nodes, compares
with the same film without memory and without re-anchoring, and writes film.mp4, contact_sheet.png and report.json.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # ComfyUI's portable Python does not do so

from harness import film
from harness.environment import ROOT, Environment, own_environment, users_environment
from harness.errors import CannotContinue, sentence_for_os_error
from harness.server import ComfyUIServer
from harness.status_line import StatusLine, duration_text
from harness.workflow_api import prompt_from_workflow

WORKFLOW = ROOT / "workflows" / "demo_toyworld.json"
TOYWORLD = ROOT / "demo" / "toyworld"
RUN_FOLDERS = "comfyui"  # ComfyUI's output folder inside DIR: every clip, lossless, and what is needed to go on


def main() -> int:
    chosen = parse_arguments()
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal ends us as Ctrl-C does; Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    out = chosen.out.expanduser().resolve()
    try:
        make_film(chosen, out)
        return 0
    except CannotContinue as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(sentence_for_os_error(error), file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped; no process is left. Finished clips are kept: the same command goes on from there.",
              file=sys.stderr)
    return 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the 30-second demo film with the real ComfyUI.")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_out", metavar="DIR",
                        help="folder for the film, the contact sheet and the report (default: demo_out)")
    parser.add_argument("--comfyui", type=Path, metavar="PATH",
                        help="your own ComfyUI, 0.3.75 or newer, instead of a fetched one")
    parser.add_argument("--python", type=Path, metavar="PATH", help="the Python that runs your ComfyUI")
    parser.add_argument("--port", type=int, default=0, help="port of the server (default: a free one)")
    parser.add_argument("--fast", action="store_true", help="only the film, no comparison films")
    chosen = parser.parse_args()
    if chosen.python and not chosen.comfyui:
        parser.error("--python says what runs your own ComfyUI: give --comfyui PATH too")
    return chosen


def make_film(chosen: argparse.Namespace, out: Path) -> None:
    """Everything from an empty folder to the three closing lines."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    environment = (users_environment(chosen.comfyui, chosen.python) if chosen.comfyui else own_environment())
    seconds = {"set_up": time.monotonic() - started}
    with StatusLine("Starting ComfyUI") as status:
        status.show(environment.version)
        server = ComfyUIServer(environment, out / RUN_FOLDERS, out / "comfyui.log", (TOYWORLD,), chosen.port)
        with server:
            seconds["server_start"] = status.seconds()
            status.clear()
            prompts = {film.FILM: read_workflow(server)}
            history = run_film("Film", film.FILM, prompts[film.FILM], server, seconds)
            finished = film.film_file(history, prompts[film.FILM])
            os.replace(out / RUN_FOLDERS / Path(*finished), out / "film.mp4")
            for number, name in enumerate(() if chosen.fast else film.COMPARISONS, 1):
                prompts[name] = film.comparison(prompts[film.FILM], name)
                label = f"Comparison {number} of {len(film.COMPARISONS)}, {name}"
                run_film(label, name, prompts[name], server, seconds)
            system = server.client.get("/system_stats")
    report = write_report(environment, out, prompts, system, seconds, started)
    print_summary(out, report)


def read_workflow(server: ComfyUIServer) -> dict:
    """The demo workflow as an API prompt, with the definitions of the server that will run it."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    return prompt_from_workflow(workflow, server.client.get("/object_info"))


def run_film(label: str, name: str, prompt: dict, server: ComfyUIServer, seconds: dict) -> dict:
    """Run one film to its end with a progress bar; its time goes into `seconds`. Returns its history entry."""
    with StatusLine(label) as status:
        progress = film.FilmProgress(status, prompt)
        history = server.client.run(prompt, progress, server.check_alive)
        seconds[name] = status.seconds()
    made, again = len(progress.sampled), progress.clips - len(progress.sampled)
    kept = f", {again} found finished" if again else ""
    print(f"{label}: {made} clips rendered{kept}, {duration_text(seconds[name])}")
    return history


def write_report(environment: Environment, out: Path, prompts: dict[str, dict], system: dict, seconds: dict,
                 started: float) -> dict:
    """Score the films and draw the contact sheet, then write report.json; returns the report."""
    with StatusLine("Looking at the film") as status:
        status.show("scores and contact sheet")
        result = look_at_films(environment, out, prompts)
        seconds["report"] = status.seconds()
    seconds["all"] = time.monotonic() - started
    report = {"film": result["film"], "retention": film.retention(result["conditions"]), "clips": result["conditions"],
              "seconds": {name: round(value, 2) for name, value in seconds.items()},
              "versions": versions(environment, system), "devices": system["devices"], "cpu_cores": os.cpu_count(),
              "system": platform.platform()}
    write_whole(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def look_at_films(environment: Environment, out: Path, prompts: dict[str, dict]) -> dict:
    """Run harness/film_report.py in ComfyUI's Python, which has what reads videos and draws pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        films = {name: {"folder": str(out / RUN_FOLDERS / "videomemory" / film.run_name(prompt)),
                        "schedule": film.schedule(prompt)} for name, prompt in prompts.items()}
        job = {"films": films, "film": str(out / "film.mp4"), "sheet": str(out / "contact_sheet.png"),
               "title": f"ComfyUI-VideoMemory: {film.schedule(prompts[film.FILM])['identity']}",
               "result": str(Path(temporary) / "result.json")}
        job_file = Path(temporary) / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [str(environment.python), str(ROOT / "scripts" / "harness" / "film_report.py"), str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CannotContinue(f"The film is finished ({out / 'film.mp4'}), but looking at it failed: {reason}.")
        return json.loads(Path(job["result"]).read_text(encoding="utf-8"))


def versions(environment: Environment, system: dict) -> dict:
    """What the film was made with."""
    facts = system["system"]
    return {"comfyui": environment.version, "python": facts["python_version"], "torch": facts["pytorch_version"]}


def print_summary(out: Path, report: dict) -> None:
    """Three lines: what was made, where, how coherent it measured."""
    made, kept = report["film"], report["retention"]
    others = "; ".join(f"{name}: {scores['same_hero']}" for name, scores in kept.items() if name != film.FILM)
    print(f"Made a film of {made['seconds']:.1f} s, {made['width']}x{made['height']} at {made['fps']:g} fps, in "
          f"{duration_text(report['seconds']['all'])}.")
    print(f"It is {out / 'film.mp4'}, with contact_sheet.png and report.json beside it.")
    print(f"Later clips that still show the same hero: {kept[film.FILM]['same_hero']} with memory and re-anchoring"
          + (f" ({others})." if others else "."))


def write_whole(target: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the whole new one."""
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _stop(*_signal: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
