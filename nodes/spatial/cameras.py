"""Camera paths in words: one move per line, made into one pose per frame.

A line is a move, its amount, and its seconds, for example `pan 90 in 2`. Moves follow each other; each begins where
the one before ended. Axes: x right, y down, z forward, of the first camera; angles in degrees.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..common.errors import message
from .values import CameraPath, make_path

FORMS = {
    "hold": "hold in S", "dolly": "dolly M in S (forward)", "truck": "truck M in S (to the right)",
    "crane": "crane M in S (up)", "pan": "pan DEG in S (to the right)", "tilt": "tilt DEG in S (up)",
    "orbit": "orbit DEG around M in S (to the right, around the point M ahead)",
    "key": "key X Y Z PAN TILT in S (to this pose)", "back": "back (everything so far, backwards)",
}
AMOUNTS = {"hold": 0, "dolly": 1, "truck": 1, "crane": 1, "pan": 1, "tilt": 1, "key": 5}
LONGEST_S = 3600.0
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_LINE = re.compile(rf"(?P<move>[a-z]+)(?P<amounts>(?:\s+{_NUMBER})*)(?:\s+around\s+(?P<around>{_NUMBER}))?"
                   rf"(?:\s+in\s+(?P<seconds>{_NUMBER})\s*s?)?")


@dataclass(frozen=True)
class Stand:
    """Where a camera is: x, y, z in world units, pan to the right and tilt up in degrees."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    pan: float = 0.0
    tilt: float = 0.0

    def matrix(self) -> torch.Tensor:
        """[4, 4] camera to world."""
        pan, tilt = math.radians(self.pan), math.radians(self.tilt)
        cp, sp, ct, st = math.cos(pan), math.sin(pan), math.cos(tilt), math.sin(tilt)
        return torch.tensor([[cp, -sp * -st, sp * ct, self.x], [0.0, ct, -st, self.y],
                             [-sp, -cp * -st, cp * ct, self.z], [0.0, 0.0, 0.0, 1.0]])

    def moved(self, right: float = 0.0, down: float = 0.0, forward: float = 0.0) -> Stand:
        """Moved on the ground plane in the direction of the pan; down is the world's."""
        cp, sp = math.cos(math.radians(self.pan)), math.sin(math.radians(self.pan))
        return Stand(self.x + cp * right + sp * forward, self.y + down, self.z - sp * right + cp * forward, self.pan,
                     self.tilt)


@dataclass(frozen=True)
class Move:
    """Seconds it takes, and where the camera stands at a part 0..1 of it."""

    seconds: float
    at: Callable[[float], Stand]


def path_from_text(text: str, width: int, height: int, fps: float, fov: float) -> CameraPath:
    """The path of a text; ValueError names the line that is not understood. fov: horizontal, in degrees."""
    moves = _moves(text)
    total = sum(move.seconds for move in moves)
    if total > LONGEST_S:
        raise ValueError(message("Camera Path is too long", f"{total:g} s", f"{LONGEST_S:g} s", "Take moves out."))
    count = round(total * fps) + 1
    poses = torch.stack([_at(moves, frame / fps).matrix() for frame in range(count)])
    k = intrinsics_from_fov(width, height, fov)
    return make_path(poses, k.repeat(count, 1, 1), width, height, fps)


def intrinsics_from_fov(width: int, height: int, fov: float) -> torch.Tensor:
    """[3, 3] of a camera with square pixels and a horizontal field of view in degrees, between 1 and 170."""
    if not 1.0 <= fov <= 170.0:
        raise ValueError(message("Camera Path: field of view", fov, "1 to 170 degrees",
                                 "50 is a normal lens, 90 a very wide one."))
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def _moves(text: str) -> list[Move]:
    moves: list[Move] = []
    stand = Stand()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].strip().lower()
        if not words:
            continue
        if words == "back":
            moves += [_reversed(move) for move in reversed(moves)]
        else:
            moves.append(_move(words, number, stand))
        stand = moves[-1].at(1.0) if moves else stand
    if not moves:
        raise ValueError(message("Camera Path needs a move", "an empty text", "; ".join(FORMS.values()),
                                 "Write for example: pan 90 in 2"))
    return moves


def _move(words: str, number: int, stand: Stand) -> Move:
    match = _LINE.fullmatch(words)
    amounts = [float(one) for one in match["amounts"].split()] if match else []
    seconds = float(match["seconds"]) if match and match["seconds"] else 0.0
    kind = match["move"] if match else ""
    wanted = 1 if kind == "orbit" else AMOUNTS.get(kind, -1)
    has_around = bool(match and match["around"])
    if len(amounts) != wanted or seconds <= 0 or has_around != (kind == "orbit"):
        raise ValueError(message(f"Camera Path does not understand line {number}", repr(words),
                                 "; ".join(FORMS.values()), "Write the move in one of these forms, seconds above 0."))
    if kind == "orbit":
        return Move(seconds, _orbit(stand, amounts[0], float(match["around"])))
    return Move(seconds, _straight(kind, stand, amounts))


def _straight(kind: str, stand: Stand, amounts: list[float]) -> Callable[[float], Stand]:
    def at(part: float) -> Stand:
        amount = amounts[0] * part if amounts else 0.0
        if kind in ("dolly", "truck", "crane"):
            return stand.moved(**{"dolly": {"forward": amount}, "truck": {"right": amount},
                                  "crane": {"down": -amount}}[kind])
        if kind == "key":
            begin = (stand.x, stand.y, stand.z, stand.pan, stand.tilt)
            return Stand(*(a + (b - a) * part for a, b in zip(begin, amounts, strict=True)))
        pan, tilt = (amount, 0.0) if kind == "pan" else (0.0, amount)
        return Stand(stand.x, stand.y, stand.z, stand.pan + pan, stand.tilt + tilt)

    return at


def _orbit(stand: Stand, degrees: float, radius: float) -> Callable[[float], Stand]:
    centre = stand.moved(forward=radius)

    def at(part: float) -> Stand:
        turned = Stand(centre.x, stand.y, centre.z, stand.pan - degrees * part, stand.tilt)
        return turned.moved(forward=-radius)

    return at


def _reversed(move: Move) -> Move:
    return Move(move.seconds, lambda part: move.at(1.0 - part))


def _at(moves: list[Move], time_s: float) -> Stand:
    for move in moves:
        if time_s <= move.seconds:
            return move.at(time_s / move.seconds)
        time_s -= move.seconds
    return moves[-1].at(1.0)
