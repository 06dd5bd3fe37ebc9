"""Writes docs/measured.md from benchmarks/results/*.txt: python scripts/build_measured.py.

Every result file is taken over as its benchmark printed it, so that the page cannot say what nobody measured.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "measured.md"
OPENING = """# What was measured

Every table below is the output of a script in `benchmarks/`, with its date, its device and its limits, taken over by
`python scripts/build_measured.py`. Results that end in `_cpu` come from a CPU and say nothing about a graphics card.
What is not on this page has not been measured.
"""


def page_text(folder: Path = RESULTS) -> str:
    """The page for the result files in `folder`."""
    sections = [OPENING]
    for path in sorted(folder.glob("*.txt")):
        date, _, name = path.stem.partition("_")
        text = path.read_text(encoding="utf-8").rstrip()
        sections.append(f"## {name.replace('_', ' ').capitalize()}, {date}\n\n"
                        f"`benchmarks/results/{path.name}`\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8", newline="\n")
