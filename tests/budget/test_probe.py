"""The probe: NVML present, absent, failing and silent about processes. The stand-in is a driver, not ComfyUI."""

from __future__ import annotations

import builtins
import os
import sys
from types import SimpleNamespace

import pytest
from pack.nodes.budget.probe import CardView, see_card, see_disk, see_ram

GIB = 2**30


class Driver:
    """What pynvml offers, for cards given as (uuid, total, used, {pid: bytes or None})."""

    def __init__(self, *cards, broken: str = "") -> None:
        self.cards, self.broken, self.shut_down = cards, broken, False

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
        return self.nvmlDeviceGetComputeRunningProcesses(card)  # the same process may be listed twice


ONE = ("GPU-AAAA-1", 12 * GIB, 5 * GIB, {os.getpid(): GIB, 1: 3 * GIB})
TWO = ("GPU-BBBB-2", 24 * GIB, GIB, {})


def test_card_is_matched_by_uuid_when_there_are_several():
    driver = Driver(ONE, TWO)
    assert see_card("aaaa-1", driver) == (CardView("Card 1", 12 * GIB, 7 * GIB, 5 * GIB, 3 * GIB), "")
    assert see_card("GPU-bbbb-2", driver)[0].others_bytes == 0
    assert driver.shut_down


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


def test_sizes_are_kept_when_processes_are_hidden():
    view, reason = see_card("aaaa-1", Driver(ONE, broken="nvmlDeviceGetComputeRunningProcesses"))
    assert (view.total_bytes, view.others_bytes) == (12 * GIB, None)
    assert "memory of other processes" in reason
    hidden = ("GPU-AAAA-1", 12 * GIB, 5 * GIB, {1: None})
    view, reason = see_card("aaaa-1", Driver(hidden))
    assert view.others_bytes is None
    assert "does not tell it" in reason


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


def test_ram_is_seen_or_explained():
    total, available, reason = see_ram()
    assert (0 < available <= total) != bool(reason)


def test_disk_is_seen_for_a_folder_that_does_not_exist_yet(tmp_path):
    free, reason = see_disk(tmp_path / "not" / "yet")
    assert free > 0
    assert reason == ""
