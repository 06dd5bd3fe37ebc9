"""The page of measured tables says what the committed results say."""

from __future__ import annotations

from pack.scripts import build_measured


def test_the_page_is_made_of_the_result_files():
    assert build_measured.PAGE.read_text(encoding="utf-8") == build_measured.page_text(), (
        "docs/measured.md is older than benchmarks/results: run python scripts/build_measured.py")


def test_another_number_gives_another_page(tmp_path):
    result = tmp_path / "2026-01-02_some_thing_cpu.txt"
    result.write_text("speed 1\n", encoding="utf-8")
    first = build_measured.page_text(tmp_path)
    result.write_text("speed 2\n", encoding="utf-8")
    assert "## Some thing cpu, 2026-01-02" in first and "speed 1" in first
    assert build_measured.page_text(tmp_path) == first.replace("speed 1", "speed 2")
