"""The probe: NVML present, absent, failing, lying and silent about processes. The stand-in is a driver, not ComfyUI."""

from __future__ import annotations

import builtins
import os
import sys
from types import SimpleNamespace

import pytest
from pack.nodes.budget import probe
from pack.nodes.budget.probe import WRITE_BYTES, measure_write, see_disk, see_ram
from pack.nodes.budget.probe_card import CardView, Process, card_free_bytes, see_card

GIB = 2**30
LLM, DESKTOP, GAME = 71, 72, 73
NAMES = {LLM: b"C:\\ollama\\ollama.exe serve", DESKTOP: b"/usr/lib/xorg/Xorg -core", GAME: b""}


class Driver:
    """What pynvml offers, for cards given as (uuid, total, used, computing, drawing), both {pid: bytes or None}."""

    def __init__(self, *cards, broken: str = "", screen: bool | None = False) -> None:
        self.cards, self.broken, self.screen, self.shut_down = cards, broken, screen, False

    def __getattribute__(self, name: str):
        if name.startswith("nvml") and object.__getattribute__(self, "broken") == name:
            raise RuntimeError(f"{name} is broken")
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int):
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card) -> bytes:
        return card[0].encode()

    def nvmlDeviceGetName(self, card) -> bytes:
        return b"Card " + card[0][-1:].encode()

    def nvmlDeviceGetMemoryInfo(self, card):
        return SimpleNamespace(total=card[1], used=card[2], free=card[1] - card[2])

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card[3].items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card[4].items()]

    def nvmlDeviceGetDisplayActive(self, card) -> int:
        if self.screen is None:
            raise RuntimeError("not supported")
        return int(self.screen)

    def nvmlSystemGetProcessName(self, pid: int) -> bytes:
        return NAMES[pid]


ONE = ("GPU-AAAA-1", 12 * GIB, 5 * GIB, {os.getpid(): GIB, LLM: 3 * GIB}, {})
TWO = ("GPU-BBBB-2", 24 * GIB, GIB, {}, {})


def test_card_is_matched_by_uuid_when_there_are_several():
    driver = Driver(ONE, TWO)
    llm = Process(LLM, "ollama.exe", 3 * GIB, False)
    assert see_card("aaaa-1", driver) == (
        CardView("Card 1", 12 * GIB, 7 * GIB, 5 * GIB, 3 * GIB, 0, (llm,), False), "")
    assert see_card("GPU-bbbb-2", driver)[0].others_bytes == 0
    assert driver.shut_down


def test_what_only_draws_is_the_desktops_and_what_also_computes_is_another_programs():
    card = ("GPU-AAAA-1", 12 * GIB, 6 * GIB, {os.getpid(): GIB, LLM: 3 * GIB, GAME: GIB},
            {DESKTOP: GIB // 2, GAME: GIB})
    view, reason = see_card("aaaa-1", Driver(card))
    assert (view.others_bytes, view.desktop_bytes, reason) == (4 * GIB, GIB // 2, "")
    assert [(process.name, process.is_desktop) for process in view.processes] == [
        ("ollama.exe", False), (f"process {GAME}", False), ("Xorg", True)]


def test_only_card_is_taken_when_no_uuid_is_known():
    assert see_card(None, Driver(TWO))[0].name == "Card 2"
    view, reason = see_card(None, Driver(ONE, TWO))
    assert view is None
    assert reason == "NVML: 2 cards match the one that ComfyUI uses"
    assert see_card("cccc", Driver(ONE))[1] == "NVML: 0 cards match the one that ComfyUI uses"


@pytest.mark.parametrize(("broken", "part"), [
    ("nvmlInit", "driver does not answer (nvmlInit is broken)"),
    ("nvmlDeviceGetMemoryInfo", "card could not be read (nvmlDeviceGetMemoryInfo is broken)"),
])
def test_failure_becomes_a_sentence(broken, part):
    view, reason = see_card("aaaa-1", Driver(ONE, broken=broken))
    assert view is None
    assert part in reason


def test_what_was_read_is_kept_when_the_driver_dies_at_the_end():
    assert see_card("aaaa-1", Driver(ONE, broken="nvmlShutdown"))[0].others_bytes == 3 * GIB


def test_sizes_are_kept_when_processes_cannot_be_listed():
    view, reason = see_card("aaaa-1", Driver(ONE, broken="nvmlDeviceGetComputeRunningProcesses"))
    assert (view.total_bytes, view.others_bytes, view.desktop_bytes) == (12 * GIB, None, None)
    assert "memory of other processes" in reason


@pytest.mark.parametrize("card", [
    ("GPU-AAAA-1", 12 * GIB, 13 * GIB, {}, {}), ("GPU-AAAA-1", 12 * GIB, -1, {}, {}),
    ("GPU-AAAA-1", 24 * GIB, GIB, {}, {}), ("GPU-AAAA-1", 0, 0, {}, {}),
])
def test_numbers_that_cannot_be_true_are_not_used(card):
    view, reason = see_card("aaaa-1", Driver(card), total_bytes=12 * GIB)
    assert view is None
    assert "its numbers of Card 1 cannot be true" in reason and f"torch knows {12 * GIB} bytes" in reason


def test_what_nobody_owns_is_the_desktops_where_sizes_are_hidden_and_the_card_drives_a_screen():
    hidden = ("GPU-AAAA-1", 12 * GIB, 5 * GIB, {LLM: None}, {DESKTOP: None})
    view, reason = see_card("aaaa-1", Driver(hidden, screen=True), own_bytes=4 * GIB)
    assert (view.others_bytes, view.desktop_bytes, view.drives_screen) == (None, GIB, True)
    assert "does not tell it" in reason
    for screen in (False, None):
        assert see_card("aaaa-1", Driver(hidden, screen=screen))[0].desktop_bytes is None


def test_the_smaller_of_both_views_can_be_allocated():
    view = see_card("aaaa-1", Driver(ONE))[0]
    assert card_free_bytes(view, 11 * GIB, GIB) == 8 * GIB
    assert card_free_bytes(view, 2 * GIB, GIB) == 2 * GIB
    assert card_free_bytes(None, 11 * GIB, GIB) == 11 * GIB


def test_missing_package_becomes_a_sentence(monkeypatch):
    real = builtins.__import__

    def without_nvml(name, *args, **kwargs):
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_nvml)
    assert see_card(None) == (None, "NVML: the package nvidia-ml-py is not installed")


def test_probe_answers_in_words_or_values_on_this_machine():
    view, reason = see_card(None)
    assert (view is None) == bool(reason) or "other processes" in reason


def test_ram_and_pagefile_are_seen_or_explained():
    ram, reason = see_ram()
    assert (0 < ram.available_bytes <= ram.total_bytes) != bool(reason)
    assert ram.swap_free_bytes >= 0


def test_a_pagefile_that_cannot_be_read_leaves_the_ram(monkeypatch):
    import psutil

    def broken():
        raise OSError("no /proc/vmstat")

    monkeypatch.setattr(psutil, "swap_memory", broken)
    ram, reason = see_ram()
    assert ram.available_bytes > 0 and ram.swap_free_bytes == 0 and reason == "pagefile (no /proc/vmstat)"


def test_disk_is_seen_for_a_folder_that_does_not_exist_yet(tmp_path):
    disk, reason = see_disk("output", tmp_path / "not" / "yet")
    assert disk.free_bytes > 0 and disk.write_bytes_s is None
    assert reason == ""


def test_write_speed_is_measured_with_a_file_that_is_gone_afterwards(tmp_path):
    disk, reason = see_disk("temp", tmp_path / "not" / "yet", measure=True)
    assert 1e5 < disk.write_bytes_s < 1e12 and reason == ""
    assert list(tmp_path.iterdir()) == []
    assert measure_write(tmp_path, 2**20) > 0


def test_a_full_or_forbidden_disk_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(probe.shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * WRITE_BYTES - 1))
    disk, reason = see_disk("temp", tmp_path, measure=True)
    assert (disk.free_bytes, disk.write_bytes_s) == (4 * WRITE_BYTES - 1, None)
    assert reason == f"write speed of {tmp_path} (it is full)"

    def forbidden(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(probe.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    monkeypatch.setattr(probe.tempfile, "TemporaryFile", forbidden)
    assert see_disk("temp", tmp_path, measure=True)[1] == f"write speed of {tmp_path} (Permission denied)"
