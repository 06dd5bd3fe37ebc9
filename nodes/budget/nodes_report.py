"""VRAM Report: what was predicted against what was measured, as a table and as a picture."""

from __future__ import annotations

from ..common.compat import (
    RenderPlanIO,
    VideoClipsIO,
    field,
    io,
    node_id,
    node_progress,
    schema,
    ui,
    user_folder,
)
from ..common.errors import message
from ..common.types import RenderPlan
from .bridge import records as known
from .chart import draw_chart
from .comparison import bars, comparison_table
from .learned import FILE, clear_records, latest

RECORDS = ("keep", "clear")


class VramReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "budget",
            node_id="VideoMemoryVramReport",
            display_name="VRAM Report",
            description="Shows what every phase of a plan was predicted to take and what it really took.",
            search_aliases=["memory usage", "peak VRAM", "OOM", "benchmark"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(RenderPlanIO, "plan", tooltip="From VRAM Budget Gate."),
                field(VideoClipsIO, "clips", optional=True,
                      tooltip="From Save Clip or Render Short: the report is then made after them."),
                field(io.Image, "images", optional=True,
                      tooltip="From Interpolate Frames: the report is then made after it."),
                field(io.Combo, "records", display_name="measured peaks", options=list(RECORDS), default="keep",
                      optional=True,
                      tooltip="keep = what was measured corrects the next plans on this card. clear = this report is "
                              "shown once more, then all of it is deleted. It lies on this machine alone."),
            ],
            outputs=[
                io.Image.Output(id="chart", display_name="image", tooltip="Stacked bars, 1000 pixels wide."),
                io.String.Output(id="report", display_name="report", tooltip="The same as a table."),
            ],
        )

    @classmethod
    def validate_inputs(cls, records: str | None = "keep") -> bool | str:
        """A choice that comes over a link is None here; what is none of them is kept."""
        if records in (None, *RECORDS):
            return True
        return message("VRAM Report: what shall become of the measured peaks", records, ", ".join(RECORDS),
                       "Choose keep or clear.")

    @classmethod
    def fingerprint_inputs(cls, **_inputs: object) -> int:
        """Another number after something was measured."""
        path = user_folder() / FILE
        return path.stat().st_mtime_ns if path.is_file() else 0

    @classmethod
    def execute(cls, plan: RenderPlan, clips=None, images=None, records: str = "keep") -> io.NodeOutput:
        measured = latest(known(), plan)
        text = comparison_table(plan, measured)
        if records == "clear":
            text += f"\n{clear_records(user_folder() / FILE)} records were deleted."
        title = f"{plan.width}x{plan.height}, clips of {plan.clip_s:.2f} s"
        chart = draw_chart(bars(plan, measured), plan.budget_bytes, title, f"VRAM per phase. {plan.card}".strip())
        node_progress(0, node_id(cls)).say(text)
        return io.NodeOutput(chart, text, ui={**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (text,)})


NODES = [VramReport]
