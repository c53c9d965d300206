"""What experiments share, and what one waits for: counted in dry runs, and once run to the end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models.flownet import SpatialAttentionNetwork, save_encoder
from pipeline.learning.scores import read_scores
from tests.workflow.project import OPTIM, Project, make_project

SAN = {"width": 0.03, "epochs": 1, "batch_size": 4, "crop": 32}


def experiments(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project.folder / "config.yaml").read_text())["experiments"]
    return found


def dry_run(project: Project, chosen: dict[str, Any], **changes: Any) -> Counter[str]:
    path = project.folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"experiments": chosen} | changes))
    return project.run("-n", target="train_all").jobs


def test_equal_work_is_one_job(project: Project) -> None:
    """Beside the two streams that have run: what differs in testing alone, what begins with them, and two SANs."""
    streams = experiments(project)
    flow, rgb = streams["flow"], streams["rgb"]
    hard = {"family": "sta_cnn", "spatial": "shared", "top": 1}
    testing = {"test_segments": 16}
    san = {
        "modality": "frames",
        "initial": "rgb",
        "model": {"family": "sta_cnn", "spatial": "san", "san": SAN},
        "sampling": {**rgb["sampling"], **testing, "snippet": 2},
        "optim": OPTIM,
    }
    more = {
        "flow_dcw": {**flow, "prediction": {"kind": "dcw", "top": 2}},
        "flow_again": {**flow, "paper": 88.3},
        "hard": {**flow, "initial": "flow", "model": hard, "sampling": {**flow["sampling"], **testing}},
        "hard_average": {
            **flow,
            "initial": "flow_dcw",
            "model": hard,
            "sampling": {**flow["sampling"], **testing},
            "prediction": {"kind": "average"},
        },
        "san": san,
        "san_slow": {**san, "optim": {**OPTIM, "lr": 0.001}},
    }
    ends = {"evaluate": 1, "report": 1}
    jobs = dry_run(project, {**more, **streams}, seeds=[0])  # written before the streams that have run
    once = ("predict_flow_dcw", "train_hard", "predict_hard", "predict_hard_average", "pretrain_san_san", "train_san")
    assert jobs == Counter({**dict.fromkeys((*once, "train_san_slow", "predict_san", "predict_san_slow"), 1), **ends})
    renamed = {"colour": rgb, "motion": flow}
    assert dry_run(project, renamed) == Counter(ends)
    two = dry_run(project, {**streams, **more}, seeds=[0, 1])
    assert two == jobs + jobs - Counter(ends) - Counter(["predict_flow_dcw"]) + Counter(
        ["train_rgb", "train_flow", "predict_rgb", "predict_flow", "predict_flow_dcw"]
    )


DEMO: dict[str, Any] = {
    "name": "small",
    "dataset": "demo",
    "demo": {"preset": "tiny"},
    "work": "work",
    "shards": 1,
    "frames": {"size": [64, 64]},
    "flow": {"size": [64, 64], "warps": 2},
}
TWO_EPOCHS = {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 0.002}
STREAMS: dict[str, Any] = {
    "flow_average": {
        "modality": "flow",
        "model": {"consensus": "avg"},
        "sampling": {"segments": 6, "snippet": 5, "test_segments": 16, "input_size": 64},
    },
    "flow": {
        "modality": "flow",
        "initial": "flow_average",
        "model": {"family": "sta_cnn", "spatial": "shared", "groups": 3, "top": 1},
        "sampling": {"segments": 6, "snippet": 5, "test_segments": 16, "input_size": 64},
    },
    "rgb_average": {
        "modality": "frames",
        "model": {"consensus": "avg"},
        "sampling": {"segments": 3, "test_segments": 16, "input_size": 64},
    },
    "rgb": {
        "modality": "frames",
        "initial": "rgb_average",
        "model": {"family": "sta_cnn", "spatial": "san", "san": {**SAN, "width": 0.05, "encoder": "encoder.pth"}},
        "sampling": {"segments": 3, "snippet": 2, "test_segments": 16, "input_size": 64},
    },
}


@pytest.mark.slow
def test_sta_cnn_from_videos_to_the_report(root: Path, tmp_path: Path) -> None:
    """The average first, then hard and spatial attention that begin with it; what a change afterwards runs again."""
    project = make_project(tmp_path / "sta_cnn", root)
    torch.manual_seed(0)
    save_encoder(project.folder / "encoder.pth", SpatialAttentionNetwork(width=0.05))
    streams = {name: {**stream, "optim": TWO_EPOCHS} for name, stream in STREAMS.items()}
    (project.folder / "config.yaml").write_text(yaml.safe_dump({**DEMO, "experiments": streams}))
    first = project.run(target="train_all")
    per_stream = {f"{job}_{name}": 1 for job in ("train", "predict") for name in streams}
    assert first.jobs.items() >= {**per_stream, "pretrain_san_rgb": 1}.items()

    runs = {run["experiment"]: run for run in json.loads((project.work / "plan/runs.json").read_text())}
    for name, stream in streams.items():
        log = (project.work / f"logs/train/{name}-split1-seed0.log").read_text()
        if source := stream.get("initial"):
            assert f"{runs[source]['folder']}/model.pt: " in log
        scores = read_scores(project.folder / runs[name]["scores"])
        assert (scores.maps is None) == (name.endswith("average"))
        np.testing.assert_allclose(scores.weights.sum(axis=1), 1, rtol=1e-4)
        if scores.maps is not None:
            assert ((scores.weights > 0).sum(axis=1) == 15).all()  # of 16: the paper's 15 most confident
            assert scores.maps.shape[1] == 16

    def again(**changes: dict[str, Any]) -> Counter[str]:
        chosen = {name: {**stream, **changes.get(name, {})} for name, stream in streams.items()}
        return dry_run(project, chosen)

    ends = {"evaluate": 1, "report": 1}
    assert again() == Counter()
    slower = {"optim": {**TWO_EPOCHS, "lr": 0.001}}
    retrained = ("train_flow", "train_flow_average", "predict_flow", "predict_flow_average")
    assert again(flow_average=slower) == Counter({**dict.fromkeys(retrained, 1), **ends})
    assert again(flow=slower) == Counter({"train_flow": 1, "predict_flow": 1, **ends})
    assert again(flow={"prediction": {"top": 3}}) == Counter({"predict_flow": 1, **ends})

    def with_san(**changes: Any) -> dict[str, Any]:
        model = STREAMS["rgb"]["model"]
        return {"model": {**model, "san": {**model["san"], **changes}}}

    rgb = {"pretrain_san_rgb": 1, "train_rgb": 1, "predict_rgb": 1}
    assert again(rgb=with_san(lr=0.5)) == Counter({**rgb, **ends})
    (project.folder / "encoder.pth").rename(project.folder / "moved.pth")
    assert set(again(rgb=with_san(encoder="moved.pth"))) <= {"report"}  # which shows the configuration
