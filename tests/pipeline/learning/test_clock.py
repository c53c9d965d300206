"""Where the time goes, and the curves that a training leaves behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pipeline.learning.clock import PARTS, Clock, clocked
from pipeline.learning.curves import Curves


def test_each_part_has_its_own_seconds() -> None:
    """Sleeps are no shorter than asked for; what no mark follows belongs to nothing."""
    clock = Clock(torch.device("cpu"))
    time.sleep(0.05)
    clock.restart()

    def slow() -> object:
        for number in range(3):
            time.sleep(0.02)
            yield number

    def doubled(number: int) -> int:
        time.sleep(0.01)
        return 2 * number

    started = time.perf_counter()
    assert list(clocked(slow(), clock, then=doubled)) == [0, 2, 4]
    passed = time.perf_counter() - started
    taken = clock.take()
    assert tuple(taken) == PARTS
    assert taken["data_wait"] >= 0.06
    assert taken["cut"] >= 0.03
    assert taken["forward"] == taken["backward"] == taken["update"] == 0
    assert sum(taken.values()) <= passed
    assert set(clock.take().values()) == {0.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_waiting_is_the_devices_own() -> None:
    device = torch.device("cuda")
    clock = Clock(device)
    matrix = torch.randn(4096, 4096, device=device)
    for _ in range(3):
        clock.mark("data_wait")
        for _ in range(20):
            matrix @ matrix
        clock.mark("forward")
    time.sleep(0.01)  # while the device works
    clock.mark("data_wait")
    taken = clock.take()
    assert taken["forward"] > 10 * taken["data_wait"]


def test_curves_go_on_where_a_kill_has_left_them(tmp_path: Path) -> None:
    columns = ("epoch", "train_loss")
    first = Curves(tmp_path, columns=columns, step=0)
    for step in (10, 20, 30):
        first.add(step, {"epoch": 1, "train_loss": step / 7})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("40,1,0.")  # cut off
    again = Curves(tmp_path, columns=columns, step=20)
    again.add(30, {"epoch": 1, "train_loss": 1 / 3})
    again.close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,epoch,train_loss", f"10,1,{10 / 7}", f"20,1,{20 / 7}", f"30,1,{1 / 3}"]
    Curves(tmp_path, columns=columns, step=0).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,train_loss\n"
    assert len(list((tmp_path / "tensorboard").iterdir())) <= 1  # those of the training before are gone


def test_curves_of_other_columns_are_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,other\n10,1\n")
    Curves(tmp_path, columns=("epoch",), step=10).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch\n"
