"""Save Quantized Model, and Load LoRA (coverage)."""

from __future__ import annotations

import os
from pathlib import Path

import comfy.utils
import folder_paths

from ..common.compat import field, io, node_id, node_progress, schema
from ..common.errors import message
from ..common.saved_files import check_prefix
from .bridge_lora import load_lora
from .bridge_save import save_model


class SaveQuantizedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "loading",
            node_id="VideoMemorySaveQuantizedModel",
            display_name="Save Quantized Model",
            description="Writes a quantised MODEL to a safetensors file that loads at the speed of the disk.",
            search_aliases=["ModelSave", "bitsandbytes", "nf4", "int8", "quantize"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Model, "model", display_name="MODEL",
                      tooltip="From a loader of this pack with weights nf4, nf4_int8 or int8. LoRAs on it are not "
                              "written."),
                field(io.String, "filename_prefix", default="diffusion_models/quantized",
                      tooltip="Name in ComfyUI's output folder; a number is added. With the default folder it is in "
                              "the loaders' list at once (press R)."),
            ],
            outputs=[io.String.Output(id="report", display_name="report",
                                      tooltip="The file's name, size and content, and LoRAs that were left out.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        return check_prefix("Save Quantized Model", filename_prefix, "diffusion_models/quantized")

    @classmethod
    def execute(cls, model, filename_prefix: str) -> io.NodeOutput:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory())
        path = Path(folder) / f"{name}_{counter:05}_.safetensors"
        return io.NodeOutput(save_model(model, path, node_progress(1, node_id(cls))))


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "loading",
            node_id="VideoMemoryLoadLora",
            display_name="Load LoRA (coverage)",
            description="Puts a LoRA on a MODEL and says how many of the file's keys found a place.",
            search_aliases=["LoraLoaderModelOnly", "lora", "peft", "LongLive"],
            inputs=[
                field(io.Model, "model", display_name="MODEL", tooltip="Quantised or not."),
                field(io.Combo, "lora_name", display_name="LoRA", options=folder_paths.get_filename_list("loras"),
                      tooltip="A file in models/loras, with ComfyUI's, peft's, DiffSynth's or (not for HunyuanVideo) "
                              "diffusers' names."),
                field(io.Float, "strength", default=1.0, min=-100.0, max=100.0, step=0.01,
                      tooltip="1 = as trained, 0 = without it."),
            ],
            outputs=[
                io.Model.Output(id="patched_model", display_name="MODEL", tooltip="The MODEL with the LoRA."),
                io.String.Output(id="report", display_name="report",
                                 tooltip="Keys in the file, how many matched, and the first ones that did not."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None) -> bool | str:
        if lora_name is not None and lora_name not in folder_paths.get_filename_list("loras"):
            return message("Load LoRA (coverage) needs a file of models/loras", lora_name, "the files there",
                           "Put the file there and press R, or choose another one.")
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None) -> tuple:
        if lora_name is None:
            return ()
        facts = os.stat(folder_paths.get_full_path_or_raise("loras", lora_name))
        return lora_name, facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, model, lora_name: str, strength: float) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        return io.NodeOutput(*load_lora(model, comfy.utils.load_torch_file(path, safe_load=True), lora_name, strength))


NODES = [SaveQuantizedModel, LoadLora]
