"""One table of everything that was compared: agreements, and differences that are meant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 1e-5
"""Largest relative difference where both mean the same; fp32 rounds at 6e-8 an operation."""

NOTHING = 1e-6
"""Share of the largest gradient below which a tensor of gradients holds nothing but rounding."""


@dataclass(frozen=True)
class Row:
    quantity: str
    model: str
    ours: float
    theirs: float
    difference: float
    """Largest |ours − theirs| / largest |theirs|; of gradients, that of the worst parameter."""
    verdict: str

    def cells(self) -> list[str]:
        return [
            self.quantity,
            self.model,
            f"{self.ours:.6g}",
            f"{self.theirs:.6g}",
            f"{self.difference:.1e}",
            self.verdict,
        ]


HEAD = ["quantity", "model", "ours", "theirs", "max rel. difference", "verdict"]
ROWS: list[Row] = []


def same(
    quantity: str, model: str, ours: Tensor, theirs: Tensor, *, terms: Tensor | None = None
) -> None:
    """Record a pair that must agree. Shown is the root mean square, of a scalar the number itself.

    terms: of a mean whose terms cancel, their sizes in the same shape (or one for all): the difference is relative to
    these, because rounding is.
    Raises: AssertionError if the largest difference is beyond LIMIT.
    """
    _record_same(quantity, model, shown(ours), shown(theirs), relative(ours, theirs, terms=terms))


def same_gradients(
    quantity: str, model: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> None:
    """Record the gradients of all parameters. Shown is their global norm.

    Where exact arithmetic gives 0 (the last bias, under a loss of differences) there is only rounding to compare: a
    tensor below NOTHING times the largest gradient is measured against that one.
    Raises: AssertionError if names differ, all are zero, or a parameter's difference is beyond LIMIT.
    """
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    largest = torch.stack([g.abs().max() for g in theirs.values()]).max()
    worst = 0.0
    for name, gradient in theirs.items():
        nothing = bool(gradient.abs().max() < NOTHING * largest)
        worst = max(worst, relative(ours[name], gradient, terms=largest if nothing else None))
    _record_same(f"{quantity} ({len(theirs)} tensors)", model, norm(ours), norm(theirs), worst)


def differs(
    quantity: str, model: str, ours: Tensor, theirs: Tensor, why: str, *, at_least: float
) -> None:
    """Record a pair that differs on purpose, with the reason.

    Raises: AssertionError if the largest relative difference is below `at_least`: the reason would be moot.
    """
    difference = relative(ours, theirs)
    ROWS.append(Row(quantity, model, shown(ours), shown(theirs), difference, f"on purpose: {why}"))
    assert difference >= at_least, f"{quantity} ({model}): {difference:.1e} < {at_least:.1e}"


def relative(ours: Tensor, theirs: Tensor, *, terms: Tensor | None = None) -> float:
    """max |ours − theirs| / max |theirs| (or / terms, each); infinite where a number is not finite."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if torch.equal(ours, theirs):
        return 0.0
    scale = theirs.abs().max() if terms is None else terms.double()
    found = float(((ours - theirs).abs() / scale).max())
    return torch.inf if math.isnan(found) else found


def shown(x: Tensor) -> float:
    """A number to print for a tensor."""
    return float(x) if x.dim() == 0 else float(x.double().square().mean().sqrt())


def norm(gradients: Mapping[str, Tensor]) -> float:
    """Global norm of all gradients."""
    return float(torch.stack([g.double().norm() for g in gradients.values()]).norm())


def printed() -> list[str]:
    """The table in Markdown, columns aligned; agreements first."""
    rows = sorted(ROWS, key=lambda row: row.verdict.startswith("on purpose"))
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD) - 1)]
    lines = [
        "| "
        + " | ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        + " |"
        for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|---|", *lines[1:]]


def _record_same(quantity: str, model: str, ours: float, theirs: float, found: float) -> None:
    assert theirs != 0, f"{quantity} ({model}): zero on both sides would prove nothing"
    agrees = found <= LIMIT
    ROWS.append(Row(quantity, model, ours, theirs, found, "agrees" if agrees else "DIFFERS"))
    assert agrees, f"{quantity} ({model}): relative difference {found:.1e}, allowed {LIMIT:.0e}"
