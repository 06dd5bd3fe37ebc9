"""Memory Report: what is remembered, to look at."""

from __future__ import annotations

from ..common.compat import VideoMemoryIO, field, io, node_id, node_progress, schema, ui
from .bridge import frame_maker, model_note
from .bridge_pictures import save_pictures
from .contents import require_memory
from .report import memory_report
from .sheet import draw_sheet
from .strip import STRIP, strip_of


class MemoryReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "memory",
            node_id="VideoMemoryMemoryReport",
            display_name="Memory Report",
            description="Shows what a memory remembers: a picture of every chunk with its place in the film, how far "
                        "it drifted from the beginning, and what it takes in bytes.",
            search_aliases=["contact sheet", "drift", "KV cache", "debug memory"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(VideoMemoryIO, "memory", tooltip="The memory after any clip."),
                field(io.Vae, "vae", optional=True,
                      tooltip="The film's VAE: decodes one frame of every chunk. Without it the pictures are rough "
                              "previews, and colours are not compared."),
                field(io.Model, "model", optional=True,
                      tooltip="Says whether this MODEL made the keys and values, or would have to rebuild them."),
            ],
            outputs=[
                io.Image.Output(id="sheet", display_name="image", tooltip="The contact sheet, 1200 pixels wide."),
                io.String.Output(id="report", display_name="report", tooltip="The same in words and numbers."),
            ],
        )

    @classmethod
    def execute(cls, memory, vae=None, model=None) -> io.NodeOutput:
        require_memory(memory, "Memory Report")
        progress = node_progress(1, node_id(cls))
        sheet, text = memory_report(memory, frame_maker(memory, vae), vae is not None, model_note(memory, model),
                                    progress)
        progress.say(text)
        image = draw_sheet(sheet)
        shown = ui.PreviewImage(image, cls=cls).as_dict()
        strip = strip_of(sheet, save_pictures([tile.picture for tile in sheet.tiles]))
        return io.NodeOutput(image, text, ui={**shown, "text": (text,), STRIP: (strip,)})


NODES = [MemoryReport]
