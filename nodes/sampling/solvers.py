"""One chunk from noise to clean latents: the solvers that causal checkpoints were distilled with.

Flow matching: x = (1 - sigma) * x0 + sigma * noise. A solver object lives for one chunk; step(i, x, x0) takes the
model's clean estimate x0 at sigmas[i] and returns x at sigmas[i + 1]. After the last step (sigma 0) every solver
returns x0 itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..common.errors import message

Draw = Callable[[], torch.Tensor]  # fresh standard noise of the chunk's shape


class Renoise:
    """Jump to the clean estimate, then add fresh noise for the next level (Self-Forcing, LongLive 1, the toy world)."""

    def __init__(self, sigmas: tuple[float, ...], draw: Draw) -> None:
        self.sigmas, self.draw = sigmas, draw

    def step(self, i: int, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        following = self.sigmas[i + 1]
        return x0 if following == 0 else (1 - following) * x0 + following * self.draw().to(x0)


class Euler:
    """The plain flow step: deterministic, first order."""

    def __init__(self, sigmas: tuple[float, ...], draw: Draw) -> None:
        self.sigmas = sigmas

    def step(self, i: int, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        return x0 + (x - x0) * (self.sigmas[i + 1] / self.sigmas[i])


class UniPC:
    """UniPC-2 (bh2) for flow matching, data prediction (arXiv 2302.04867), as LongLive 2 samples every chunk.

    With a = 1 - sigma, lambda = ln(a / sigma), h = the step in lambda and P = expm1(-h): the predictor of order one is
    x' = sigma'/sigma * x - a' P m; its second-order term is -a' P D/2 with D = (m_previous - m) / r, r the ratio of the
    previous step to this one. Before each predictor the corrector repairs x with the newest estimate m.
    """

    def __init__(self, sigmas: tuple[float, ...], draw: Draw) -> None:
        self.sigmas = sigmas
        self.estimates: list[torch.Tensor] = []
        self.previous_x: torch.Tensor | None = None

    def step(self, i: int, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        if self.sigmas[i + 1] == 0:
            return x0
        if self.estimates:
            x = self._correct(i, x0)
        self.estimates = [*self.estimates[-1:], x0]
        self.previous_x = x
        return self._predict(i, x)

    def _predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        newest = self.estimates[-1]
        growth, base = self._base(i, x, newest)
        if len(self.estimates) < 2:
            return base
        ratio = self._h(i - 1) / self._h(i)
        return base + growth * 0.5 * (newest - self.estimates[-2]) / ratio

    def _correct(self, i: int, x0: torch.Tensor) -> torch.Tensor:
        """x at sigmas[i] again, now knowing the estimate x0 there."""
        before = self.estimates[-1]
        growth, base = self._base(i - 1, self.previous_x, before)
        if len(self.estimates) < 2:
            return base + growth * 0.5 * (x0 - before)
        h = self._h(i - 1)
        r = -self._h(i - 2) / h  # position of the older estimate, in units of this step
        weight_old, weight_new = _second_order_weights(h, r)
        return base + growth * (weight_old * (self.estimates[-2] - before) / r + weight_new * (x0 - before))

    def _base(self, i: int, x: torch.Tensor, estimate: torch.Tensor) -> tuple[float, torch.Tensor]:
        sigma, following = self.sigmas[i], self.sigmas[i + 1]
        growth = -(1 - following) * math.expm1(-self._h(i))
        return growth, (following / sigma) * x + growth * estimate

    def _h(self, i: int) -> float:
        return self._lambda(i + 1) - self._lambda(i)

    def _lambda(self, i: int) -> float:
        sigma = min(self.sigmas[i], 1 - 1e-7)  # pure noise has lambda = -infinity
        return math.log1p(-sigma) - math.log(sigma)


def _second_order_weights(h: float, r: float) -> tuple[float, float]:
    """Solve the 2x2 system of UniC-2 (bh2, B(h) = expm1(-h)) for estimates at positions r and 1."""
    hh = -h
    b_h = math.expm1(hh)
    phi = b_h / hh - 1
    b1 = phi / b_h
    phi = phi / hh - 0.5
    b2 = phi * 2 / b_h
    # rows: [1, 1] . w = b1 ; [r, 1] . w = b2
    weight_old = (b2 - b1) / (r - 1)
    return weight_old, b1 - weight_old


SOLVERS: dict[str, type] = {"renoise": Renoise, "euler": Euler, "unipc": UniPC}


def make_solver(name: str, sigmas: tuple[float, ...], draw: Draw) -> Renoise | Euler | UniPC:
    """A solver for one chunk; raises ValueError for an unknown name."""
    if name not in SOLVERS:
        raise ValueError(message("Clip Sampler: unknown solver", name, ", ".join(SOLVERS), "Correct the preset."))
    return SOLVERS[name](sigmas, draw)
