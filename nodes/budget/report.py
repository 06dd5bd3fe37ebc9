"""The plan in words: a sentence for every decision, and the report under the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..common.types import TEMPORAL_STRIDE, RenderPlan
from ..memory.words import in_short
from .cost_model import WAN, Job, decode_cost, sampling_cost
from .probe import GIB, Budget, Machine
from .timing import offload_share, percent, ram_share, tile_share

PHASE_NAMES = {"text": "text encoding", "sampling": "sampling", "decode": "decoding", "interpolation": "interpolation",
               "encode": "video file"}
PRECISION_STEPS = ("int8", "4bit")
LATENT_NOTES = [
    "The whole clip goes through the model at once: a shorter clip is what saves VRAM.",
    "With cfg other than 1 one forward is counted; ComfyUI runs both prompts together only where it finds room.",
    "What a clip begins with is encoded by ComfyUI's own VAE calls, which fall back to tiles where memory is short.",
]
STORED_NOTE = "The memory holds clips already: its window and precision were left as they are."


def gb(size_bytes: float) -> str:
    """Bytes as people read them; GB as cards are sold (2**30 bytes)."""
    return f"{size_bytes / GIB:.1f} GB" if abs(size_bytes) >= 0.0995 * GIB else f"{size_bytes / 2**20:.0f} MB"


def decisions(start: Job, way: Sequence[tuple[str, Job]], chosen: Job, asked_size: tuple[int, int],
              asked_clip_s: float) -> tuple[str, ...]:
    """One plain sentence per decision: what was rounded, and what each concession on the way saves and costs.

    start: the job as asked. way: the steps taken, each with the job after it. chosen: the last of them with its tile.
    """
    rounded = [*_rounded_size(start, asked_size), *_rounded_clip(start, asked_clip_s)]
    given_up = [*_tiling(chosen), *_concessions(start, way)]
    return (*rounded, *(given_up or ["Everything fits as asked: nothing was given up."]))


def report(plan: RenderPlan, machine: Machine, budget: Budget, notes: Sequence[str] = ()) -> str:
    """What the gate shows: the plan, peaks per phase, the decisions, and what could not be seen."""
    frames = plan.clip_latents * TEMPORAL_STRIDE
    lines = [
        f"{plan.width}x{plan.height}, clips of {plan.clip_s:.2f} s ({plan.clip_latents} latents, {frames} frames, the "
        f"first clip {frames - 3}). {in_short(plan.spec)}",
        f"Budget: {gb(plan.budget_bytes)} ({budget.text}).",
        "",
        f"{'phase':<14}{'VRAM':>9}{'room left':>11}{'RAM':>9}{'disk':>9}",
    ]
    for cost in plan.phases:
        vram = cost.vram_bytes + cost.ram_bytes if budget.unified else cost.vram_bytes
        lines.append(f"{PHASE_NAMES[cost.phase]:<14}{_cell(cost.vram_bytes):>9}{gb(plan.budget_bytes - vram):>11}"
                     f"{_cell(cost.ram_bytes):>9}{_cell(cost.disk_bytes):>9}")
    encoder = "count in RAM" if plan.phases[0].ram_bytes else "are not counted"
    lines += [f"Predicted peaks while one clip is made. The text encoder's weights {encoder}: ComfyUI streams those "
              "that do not fit on the card.", "", *plan.decisions, *notes, *seen(machine)]
    return "\n".join(lines)


def _cell(size_bytes: int) -> str:
    return gb(size_bytes) if size_bytes else "-"


def seen(machine: Machine) -> list[str]:
    """What is on the card and on the disks, and what could not be looked at."""
    lines, card = [], machine.card
    if card is not None and card.others_bytes:
        names = ", ".join(f"{process.name} {gb(process.bytes or 0)}" for process in card.processes
                          if not process.is_desktop)
        lines.append(f"Other programs hold {gb(card.others_bytes)} of {card.name}: {names}.")
    if card is not None and card.desktop_bytes:
        lines.append(f"The desktop holds {gb(card.desktop_bytes)} of it.")
    if machine.held and not machine.unified:
        held = ", ".join(f"{name} {gb(size)}" for name, size in machine.held)
        lines.append(f"ComfyUI holds {held}: moved away where the room is needed.")
    if machine.ram_total_bytes:
        lines.append(f"System memory: {gb(machine.ram_available_bytes)} of {gb(machine.ram_total_bytes)} free, and "
                     f"{gb(machine.swap_free_bytes)} of pagefile, which is not counted on.")
    disks = [f"{disk.name} {disk.write_bytes_s / 1e6:.0f} MB/s, {gb(disk.free_bytes or 0)} free"
             for disk in machine.disks if disk.write_bytes_s is not None]
    if disks:
        lines.append(f"Disks, measured: {'; '.join(disks)}.")
    return [*lines, *(f"Not seen: {sentence}." for sentence in machine.unseen)]


def _rounded_size(start: Job, asked: tuple[int, int]) -> list[str]:
    if asked == (start.width, start.height):
        return []
    step_w, step_h = (start.facts.spatial_stride * start.facts.patch[i] for i in (2, 1))
    larger = f"{-(-asked[0] // step_w) * step_w}x{-(-asked[1] // step_h) * step_h}"
    return [f"Size {asked[0]}x{asked[1]} became {start.width}x{start.height}: the model works in steps of "
            f"{step_w}x{step_h} pixels. The next larger size is {larger}."]


def _rounded_clip(start: Job, asked_s: float) -> list[str]:
    if abs(_clip_s(start) - asked_s) < 1e-6:
        return []
    chunk_s = start.spec.chunk_latents * TEMPORAL_STRIDE / start.spec.fps
    return [f"Clips of {asked_s:g} s became {_clip_s(start):.2f} s: the model works in chunks of {chunk_s:.2f} s."]


def _tiling(chosen: Job) -> list[str]:
    sentences, without = [], replace(chosen, decode_parked=False)
    if chosen.decode_tile_px > 0:
        saved = decode_cost(replace(without, decode_tile_px=0)).vram_bytes - decode_cost(without).vram_bytes
        sentences.append(f"Frames decoded in tiles of up to {chosen.decode_tile_px} pixels: saves {gb(saved)} of VRAM, "
                         f"costs {percent(tile_share(chosen))} of the decoding time, no seam.")
    if chosen.decode_parked:
        saved = decode_cost(without).vram_bytes - decode_cost(chosen).vram_bytes
        sentences.append(f"The decoder's caches rest in RAM: saves {gb(saved)} of VRAM, costs "
                         f"{percent(WAN['park_share'])} of the decoding time, changes no pixel.")
    return sentences


def _concessions(start: Job, way: Sequence[tuple[str, Job]]) -> list[str]:
    """One sentence per kind of step; several steps of a kind (8 bits, then 4; chunk after chunk) make one sentence."""
    last_of_kind = {_kind(step): job for step, job in way}
    sentences, before = [], start
    for kind, after in last_of_kind.items():
        saved = sampling_cost(before).vram_bytes - sampling_cost(after).vram_bytes
        sentences.append(_sentence(kind, before, after, gb(saved)))
        before = after
    return sentences


def _kind(step: str) -> str:
    return "precision" if step in PRECISION_STEPS else step


def _sentence(kind: str, before: Job, after: Job, saved: str) -> str:
    if kind == "precision":
        bits = {"int8": "8 bits", "4bit": "4 bits (the first seconds in 8)"}[after.spec.precision]
        return f"Memory stored in {bits}: saves {saved} of VRAM, costs some closeness to the original, hardly any time."
    if kind == "ram":
        return f"Memory kept in RAM: saves {saved} of VRAM, costs {percent(ram_share(after))} time, changes no pixel."
    if kind == "offload":
        return (f"{gb(after.offload_bytes)} of the model rest in RAM: saves {saved} of VRAM, costs "
                f"{percent(offload_share(after))} time, changes no pixel.")
    if kind == "window":
        given_up = " and ".join(f"{name} from {_seconds(before, field)} to {_seconds(after, field)} s"
                                for name, field in (("window shortened", "window_latents"),
                                                    ("places for chunks brought back cut", "retrieved_latents"))
                                if getattr(before.spec, field) != getattr(after.spec, field))
        return f"Memory {given_up}: saves {saved} of VRAM; the model sees less of what came before."
    if kind == "size":
        return (f"Size lowered from {before.width}x{before.height} to {after.width}x{after.height}: saves {saved} of "
                "VRAM while sampling, and some while decoding.")
    return f"Clips shortened from {_clip_s(before):.1f} to {_clip_s(after):.1f} s: saves {saved} of VRAM."


def _seconds(job: Job, field: str) -> str:
    return f"{getattr(job.spec, field) * TEMPORAL_STRIDE / job.spec.fps:.1f}"


def _clip_s(job: Job) -> float:
    return job.clip_latents * TEMPORAL_STRIDE / job.spec.fps
