"""Checkpoint files that are read one tensor at a time: safetensors, in one file or many, and those of torch.save.

Both map the file, so a tensor costs RAM only while it is read. A torch file is a pickle inside: it is opened with
weights_only=True, which builds tensors and plain values and runs nothing that the file brings along.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ..common.errors import message
from ..common.mapped import DTYPES, read_header

SAFETENSORS = (".safetensors", ".sft")
INDEX = ".safetensors.index.json"  # ending of the list of a sharded set's files, as huggingface writes it
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
WRAPPERS = ("generator_ema", "generator", "model", "state_dict", "module")  # of training code; the first with tensors
FSDP = "_fsdp_wrapped_module."  # stands in the middle of names that were saved from a sharded model
RELEASE_BYTES = 1 << 28  # opening a torch file anew costs about 0.1 s, so it is done once per so many bytes read


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file: its key there, dtype, shape (of the weight it stands for, where it is packed) and bytes.

    more: keys of the tensors that are put below it. swapped: its lower half comes first.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int
    more: tuple[str, ...] = ()
    swapped: bool = False


class TensorFile(Protocol):
    """An open file. headers: by key. metadata: of the file. note: for the report, what had to be unwrapped, or ""."""

    headers: dict[str, TensorHeader]
    metadata: dict[str, str]
    note: str

    def get(self, key: str) -> torch.Tensor:
        """The tensor, as a view of the mapped file."""

    def release(self) -> None:
        """Give back the RAM of the tensors handed out so far, once the caller has let go of them."""

    def close(self) -> None:
        """Let go of the file; tensors that the caller holds stay valid."""


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Open a checkpoint for reading; raises ValueError for files that are broken, or not only tensors."""
    file = ShardedFile(path) if is_sharded(path) else SafetensorsFile(path) if is_safetensors(path) else TorchFile(path)
    try:
        yield file
    finally:
        file.close()


def read_tensor(file: TensorFile, header: TensorHeader) -> torch.Tensor:
    """The tensor that a header speaks of, as a view of the mapped file where it lies there in one piece."""
    tensor = file.get(header.key)
    if header.more:
        tensor = torch.cat([tensor, *map(file.get, header.more)])
    return torch.cat(tensor.chunk(2)[::-1]) if header.swapped else tensor


def is_sharded(path: str | Path) -> bool:
    """Whether the file is one of a sharded set, or the list of one."""
    name = Path(path).name
    return name.endswith(INDEX) or SHARD.fullmatch(name) is not None


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The files that hold the tensors: `path`, or all of its sharded set; raises ValueError where one is missing."""
    path = Path(path)
    if not is_sharded(path):
        return (path,)
    shard = SHARD.fullmatch(path.name)
    if shard is None:
        names = sorted(set(_weight_map(path).values()))
    else:
        count = int(shard["count"])
        names = [f"{shard['stem']}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing or not names:
        raise ValueError(message(
            f"'{path.name}' must lie beside all files of its set", f"a folder without {', '.join(missing[:3])}",
            f"all {len(names)} files in one folder", "Download the missing ones."))
    return tuple(path.parent / name for name in names)


def is_safetensors(path: str | Path) -> bool:
    """By the file's ending, as ComfyUI decides it."""
    return Path(path).suffix.lower() in SAFETENSORS


class SafetensorsFile:
    """A TensorFile; opening it costs less than a millisecond."""

    note = ""

    def __init__(self, path: str | Path) -> None:
        self.path, self._file = path, None
        try:
            entries, _, self.metadata = read_header(path)
            self.release()
        except SafetensorError as error:
            raise ValueError(message(
                f"'{Path(path).name}' must be a whole safetensors file", f"one that cannot be read ({error})",
                "safetensors, fully downloaded", "Download it again.")) from error
        self.headers = {key: _header(key, entry) for key, entry in entries.items()}

    def get(self, key: str) -> torch.Tensor:
        return self._file.get_tensor(key)

    def release(self) -> None:
        if isinstance(self._file, UnmappedFile):
            return  # it holds nothing
        self._file = UnmappedFile(self.path) if sys.platform == "win32" else _mapped(self.path)

    def close(self) -> None:
        self._file = None


class UnmappedFile:
    """Stands in for safe_open where a map that could be written to is refused or too dear: of a file larger than RAM on
    Linux, of every file on Windows (common/mapped.py says why). Each tensor is read into memory of its own."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._entries, self._start, _ = read_header(path)

    def get_tensor(self, key: str) -> torch.Tensor:
        entry = self._entries[key]
        start, end = entry["data_offsets"]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        if end > start:
            with open(self._path, "rb") as file:
                file.seek(self._start + start)
                file.readinto(memoryview(tensor.view(-1).view(torch.uint8).numpy()))
        return tensor


def _mapped(path: str | Path) -> Any:
    """The file, mapped so that ComfyUI may change weights in place: that wants memory for all of it."""
    try:
        return safe_open(path, framework="pt")
    except RuntimeError:
        return UnmappedFile(path)


class ShardedFile:
    """A TensorFile of a sharded set of safetensors; one of its files is open at a time."""

    def __init__(self, path: str | Path) -> None:
        self.headers, self.metadata, self._part_of = {}, {}, {}
        parts = files_of(path)
        for part in parts:
            file = SafetensorsFile(part)
            self.headers |= file.headers
            self.metadata |= file.metadata
            self._part_of |= dict.fromkeys(file.headers, part)
        lost = set(_weight_map(Path(path))) - set(self.headers) if Path(path).name.endswith(INDEX) else ()
        if lost:
            raise ValueError(message(
                f"'{Path(path).name}' must list tensors of its files", f"{min(lost)}, which is in none of them",
                f"the tensors of {len(parts)} files", "Download the whole set again."))
        self.note = f"sharded: {len(parts)} files"
        self._open: SafetensorsFile | None = None

    def get(self, key: str) -> torch.Tensor:
        if self._open is None or self._open.path != self._part_of[key]:
            self._open = SafetensorsFile(self._part_of[key])
        return self._open.get(key)

    def release(self) -> None:
        if self._open is not None:
            self._open.release()

    def close(self) -> None:
        self._open = None


class TorchFile:
    """A TensorFile of torch.save; keys are without FSDP's part.

    The format from before torch 1.6, and compressed archives, cannot be mapped: they are read into RAM as a whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.metadata = Path(path), {}
        self._open()
        self.headers = {key: TensorHeader(key, tensor.dtype, tuple(tensor.shape), tensor.nbytes)
                        for key, tensor in self._tensors.items()}

    def get(self, key: str) -> torch.Tensor:
        self._bytes_read += self.headers[key].bytes
        return self._tensors[key]

    def release(self) -> None:
        if self._is_mapped and self._bytes_read >= RELEASE_BYTES:
            self._open()

    def close(self) -> None:
        self._tensors = {}

    def _open(self) -> None:
        try:
            self._is_mapped = _can_be_mapped(self.path)
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._is_mapped)
        except (FileNotFoundError, PermissionError, MemoryError):
            raise
        except pickle.UnpicklingError as error:
            asked_for = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(message(
                f"'{self.path.name}' must hold only tensors and plain values",
                f"a pickle that asks for {asked_for[1] if asked_for else 'other things'}",
                "what torch.load accepts with weights_only=True",
                "Nothing in it was run. Take the model's safetensors file, or download this one again.")) from None
        except Exception as error:  # a damaged pickle can fail in any way
            raise ValueError(message(
                f"'{self.path.name}' must be a whole file of torch.save",
                f"one that cannot be read ({type(error).__name__}: {str(error)[:120]})",
                "safetensors, or .pt, .pth, .ckpt and .bin files of tensors, fully downloaded",
                "Download it again; where the reason is memory, take the model's safetensors file.")) from error
        wrappers, self._tensors = _unwrap(content)
        self.note = _describe(wrappers, self._is_mapped)
        self._bytes_read = 0


def _weight_map(path: Path) -> dict[str, str]:
    """The file of each tensor, out of the list of a sharded set."""
    try:
        names = json.loads(path.read_bytes())["weight_map"]
        if all(Path(name).name == name for name in names.values()):  # a list from a stranger points into its own folder
            return names
        got = "files of other folders"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        got = f"one that cannot be read ({type(error).__name__})"
    raise ValueError(message(
        f"'{path.name}' must be the list of a sharded set", got, 'JSON with "weight_map": tensor -> file beside it',
        "Download it again."))


def _header(key: str, entry: dict) -> TensorHeader:
    dtype, shape = DTYPES.get(entry["dtype"], torch.uint8), tuple(entry["shape"])
    return TensorHeader(key, dtype, shape, torch.Size(shape).numel() * dtype.itemsize)


def _can_be_mapped(path: Path) -> bool:
    """Whether the file is a zip archive whose members are not compressed: torch would map compressed bytes unseen."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _unwrap(content: Any) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The names of all wrappers with tensors, best first, and the tensors of the first one or of the top level."""
    wrapped = {name: _tensors_of(content.get(name)) for name in WRAPPERS} if isinstance(content, dict) else {}
    found = [name for name, tensors in wrapped.items() if tensors]
    return found, wrapped[found[0]] if found else _tensors_of(content)


def _tensors_of(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a dict by name, without gradients; nothing for anything else."""
    entries = content.items() if isinstance(content, dict) else ()
    return {str(key).replace(FSDP, ""): entry.detach()
            for key, entry in entries if isinstance(entry, torch.Tensor)}


def _describe(wrappers: list[str], is_mapped: bool) -> str:
    used, *others = [repr(name) for name in wrappers] or ["the top level"]
    return (f"torch file: weights from {used}" + (f", not used: {', '.join(others)}" if others else "")
            + ("" if is_mapped else "; a format that is read into RAM as a whole"))
