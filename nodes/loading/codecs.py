"""The packed forms of a weight, under the words that people choose them by.

A codec is a module with dequantize, is_stored, read_shape, to_state_dict and from_state_dict; those that weights can be
packed with also have quantize and packed_bytes.
"""

from __future__ import annotations

from typing import Any

from . import fp4, int8, nf4

CODECS: dict[str, Any] = {"nf4": nf4, "int8": int8, "fp4": fp4}
TITLES = {"nf4": "NF4", "int8": "int8", "fp4": "FP4", "nf4_int8": "NF4 with int8"}  # as reports write them
WEIGHTS = ("nf4", "int8", "original", "nf4_int8")  # what a loader offers
MIXED = "nf4_int8"  # NF4, but int8 for the layers that a family calls mixed and late


def stored_form(keys: Any, name: str) -> str | None:
    """The form in which a state dict (or set of keys) holds the weight `name`; None where it is not packed."""
    return next((form for form, codec in CODECS.items() if codec.is_stored(keys, name)), None)


def is_part_of_stored(keys: Any, name: str) -> bool:
    """Whether the tensor `name` belongs to a packed weight, as its scales do."""
    weight, found, _ = name.rpartition(".weight.")
    return bool(found) and stored_form(keys, f"{weight}.weight") is not None
