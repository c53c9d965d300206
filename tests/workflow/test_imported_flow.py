"""A run on flow that another tool has computed: our own flow, written as dense_flow writes it, and taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config import load
from pipeline.stores.exchange import export_folders, import_folders
from tests.workflow.project import CONFIG, Project


def scores(project: Project, work: str) -> np.ndarray:
    (file,) = (project.folder / work / "runs").glob("flow-*/split1-seed0/scores-*.npz")
    with np.load(file) as found:
        return np.asarray(found["logits"])


def flow_outcomes(project: Project) -> dict[str, tuple[str, str | None]]:
    receipts = [json.loads(path.read_text()) for path in (project.folder / "other/receipts").glob("flow-*/*.json")]
    videos = {name: outcome for receipt in receipts for name, outcome in receipt["videos"].items()}
    return {name: (outcome["status"], outcome["reason"]) for name, outcome in sorted(videos.items())}


@pytest.mark.slow
def test_a_run_on_imported_flow(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without loss (PNG) the stream is what it is on the flow that was computed here, to the last bit."""
    monkeypatch.chdir(project.folder)
    root = Path("dense_flow")
    own = load(Path("config.yaml"))
    assert export_folders(own, root=root, tool="dense_flow", what=["flow", "frames"], images="png", jobs=1) == 0
    shutil.move(root / "bars/bars1", "away")
    (root / "bars/bars0/flow_x_00003.png").unlink()

    flow = {"bound": 20, "imported": {"tool": "dense_flow", "images": "png", "solver": "opencv-cpu"}}
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "work": "other", "flow": flow}))
    config = load(Path("config.yaml"))
    project.run("--dry-run", target="train_all")
    assert import_folders(config, root=root, stage="flow", jobs=1) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "flow: 8 videos, 6 imported, 0 already there, 1 refused, 1 without a folder"
    assert "bars0: not imported: dense_flow/bars/bars0: it holds 4 images of x and 5 of y" in told.err
    assert "1 videos have no folder: bars1" in told.err

    first = project.run()
    assert first.computed["flow"] == 0
    reason = "no flow was imported for it; import its folder by `python -m stages.store import`"
    lacking = dict.fromkeys(("bars0", "bars1"), ("quarantined", reason))
    assert flow_outcomes(project) == dict.fromkeys(flow_outcomes(project), ("reused", None)) | lacking

    shutil.rmtree(root / "bars/bars0")
    shutil.move("away", root / "bars/bars1")
    assert export_folders(own, root=root, tool="dense_flow", what=["flow", "frames"], images="png", jobs=1) == 0
    assert import_folders(config, root=root, stage="flow", jobs=1) == 0
    again = project.run(target="train_all")
    assert again.computed["flow"] == 0
    assert {status for status, _ in flow_outcomes(project).values()} == {"reused"}
    assert np.array_equal(scores(project, "other"), scores(project, "work"))
    assert (project.folder / "other/report.html").is_file()
    assert project.run("--dry-run", target="train_all").jobs.total() == 0
