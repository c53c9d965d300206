"""How a training goes while it runs: ``metrics.csv`` and TensorBoard's event files, in its folder."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

from tensorboardX import SummaryWriter

from pipeline.stores.publish import write_text

TABLE = "metrics.csv"
EVENTS = "tensorboard"


class Curves:
    """Both, of one training; only one process may write them.

    Args:
        folder: of the training.
        columns: of the table, beside ``step``.
        step: of the whole training that it continues after; later rows, of steps that are made again, are forgotten.
            0 begins anew.
    """

    def __init__(self, folder: Path, *, columns: tuple[str, ...], step: int) -> None:
        self._table = folder / TABLE
        self._columns = ("step", *columns)
        if step == 0:
            shutil.rmtree(folder / EVENTS, ignore_errors=True)
        write_text(self._table, self._written(step))
        self._writer = SummaryWriter(str(folder / EVENTS), purge_step=step + 1, flush_secs=30)

    def add(self, step: int, row: dict[str, float | int | None]) -> None:
        """A row of the table, and a point of each curve. Numbers have all their digits."""
        line = io.StringIO()
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow({"step": step, **row})
        with self._table.open("a") as file:  # one write; of a line that a kill cuts off nothing is read
            file.write(line.getvalue())
        self.points(step, {name: value for name, value in row.items() if name != "epoch"})

    def points(self, step: int, values: dict[str, float | int | None]) -> None:
        """A point of each curve that has one; not in the table."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard does not have yet."""
        self._writer.close()

    def _written(self, step: int) -> str:
        """The table up to a step, as a kill has left it."""
        header = ",".join(self._columns)
        lines = self._table.read_text().split("\n")[:-1] if step and self._table.exists() else []
        if not lines or lines[0] != header:
            return f"{header}\n"
        kept = [line for line in lines[1:] if int(line.partition(",")[0]) <= step]
        return "\n".join([header, *kept, ""])
