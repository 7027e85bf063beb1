"""What the policy says to the same fixed prompts over time, as tables, figures and samples.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.rank_zero import rank_zero_only

from rlhf_lightning.callbacks.showing import show_figure, show_table, shows_figures
from rlhf_lightning.runs.files import write_text

COLUMNS = ("prompt", "response", "score", "gold", "kl_k1")
TOKEN_ROWS = ("kl_k1", "value", "advantage")


class SampleTables(pl.Callback):
    """After each validation, show `pl_module.validation_samples`: a list of dicts, one for each fixed prompt, with

        prompt, response   text
        score, gold, kl_k1 numbers (kl_k1: sum over the response)
        tokens             the response's tokens as text
        token_kl_k1, token_value, token_advantage   one number for each token

    of which all but the first two may be absent. The x axis is `pl_module.log_step` (else Lightning's global step).
    Each logger gets what it can show (see `showing`); one that can show neither is passed over.
    """

    def __init__(self, path: Path | str, figures: int = 8) -> None:
        self.path = Path(path)
        self.figures = figures
        """Prompts that get a heat strip (a figure takes some tenths of a second)."""

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows: list[dict[str, Any]] | None = getattr(pl_module, "validation_samples", None)
        if not rows or trainer.sanity_checking:
            return
        step = int(getattr(pl_module, "log_step", trainer.global_step))
        self._append(rows, step)
        show_table(trainer.loggers, "samples", COLUMNS, rows, step)
        artists = [logger for logger in trainer.loggers if shows_figures(logger)]
        for number, row in enumerate(rows[: self.figures]):
            strips = token_rows(row)
            if strips and artists:
                from rlhf_lightning.evaluation.figures import heat_strip

                strip = heat_strip(row["tokens"], strips)
                show_figure(artists, f"tokens/prompt_{number}", strip, step)

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Forget samples past `step` (they are about to be made again), and a last line that a kill cut short."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        # not splitlines(): a response may hold other marks that it would break at
        lines = text.split("\n")[:-1]
        kept = [f"{line}\n" for line in lines if json.loads(line)["step"] <= step]
        write_text(self.path, "".join(kept))

    def _append(self, rows: list[dict[str, Any]], step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows
            )


def token_rows(row: dict[str, Any]) -> dict[str, list[float]]:
    """The per-token numbers that a sample has."""
    return {name: row[f"token_{name}"] for name in TOKEN_ROWS if row.get(f"token_{name}")}
