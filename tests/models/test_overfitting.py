"""Every model learns eight real clips by heart, from pixels to labels, in a few steps."""

import itertools
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from models.build import build

SEGMENTS, SIDE = 3, 64


def read_clip(path: Path) -> np.ndarray:
    """Frames (T, S, S, 3) RGB."""
    video, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = video.read()
        if not there:
            return np.stack(frames)
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))


def flow_stack(frames: np.ndarray) -> np.ndarray:
    """Five fields between six frames, (10, S, S) bytes, 128 is still."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    fields = [
        cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 3, 9, 3, 5, 1.1, 0) for one, two in itertools.pairwise(gray)
    ]
    stack = np.concatenate([field.transpose(2, 0, 1) for field in fields])
    return np.clip(np.rint(128 + stack * 255 / 40), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def eight_clips(shared_data) -> dict[str, Tensor]:
    """Two UT-Interaction clips of each of four classes: rgb (8, 3, 6, S, S), flow (8, 3, 10, S, S), labels (8,)."""
    by_class = defaultdict(list)
    for path in sorted((shared_data / "actions" / "ut_interaction_set1").glob("*.avi")):
        by_class[path.stem.split("_")[2]].append(path)  # number_sequence_class
    paths = [path for name in sorted(by_class)[:4] for path in by_class[name][:2]]
    assert len(paths) == 8
    rgb, flow = [], []
    for path in paths:
        frames = read_clip(path)
        starts = np.linspace(0, len(frames) - 6, SEGMENTS).astype(int)
        rgb.append([frames[s : s + 2].transpose(0, 3, 1, 2).reshape(6, SIDE, SIDE) for s in starts])
        flow.append([flow_stack(frames[s : s + 6]) for s in starts])
    labels = torch.arange(4).repeat_interleave(2)
    return {"rgb": torch.from_numpy(np.array(rgb)), "flow": torch.from_numpy(np.array(flow)), "labels": labels}


STA = {"family": "sta_cnn"}
RGB_STREAM = {**STA, "spatial": "san", "san_width": 1 / 8}


@pytest.mark.parametrize(
    ("backbone", "channels", "switches", "steps", "lr"),
    [
        ("tiny", 3, {"family": "atw"}, 30, 0.01),
        ("tiny", 10, {"family": "atw", "consensus": "avg"}, 30, 0.01),
        ("tiny", 10, STA, 30, 0.01),
        ("tiny", 10, {**STA, "spatial": "shared", "top": 1}, 30, 0.01),
        ("tiny", 10, {**STA, "spatial": "shared", "top": 2, "select_loss": "mean_loss"}, 30, 0.01),
        ("tiny", 10, {**STA, "spatial": "shared", "pool_weights": "raw", "pool_scale": "mean"}, 30, 0.01),
        ("tiny", 10, {**STA, "spatial": "shared", "sal_weights": "shared", "aux_lambda": 0.0}, 30, 0.01),
        ("tiny", 6, RGB_STREAM, 40, 0.001),
        ("tiny", 6, {**RGB_STREAM, "san_last_pool_stride": 2}, 40, 0.001),
        ("bn_inception", 10, {**STA, "spatial": "shared"}, 12, 0.001),
    ],
)
def test_eight_real_clips_are_learnt(eight_clips, backbone, channels, switches, steps, lr) -> None:
    modality = "flow" if channels == 10 else "rgb"
    x, labels = eight_clips[modality][:, :, :channels], eight_clips["labels"]
    options = {"num_classes": 4, "segments": SEGMENTS, "dropout": 0.0, "input_size": SIDE}
    torch.manual_seed(0)
    model = build(backbone=backbone, modality=modality, in_channels=channels, **options, **switches)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    first = None
    for _ in range(steps):
        optimiser.zero_grad()
        out = model(x)
        loss = model.loss(out, labels, label_smoothing=0.0)
        first = loss.item() if first is None else first
        loss.backward()
        optimiser.step()
    assert out.logits.argmax(dim=1).tolist() == labels.tolist()
    assert loss.item() < 0.5 * first
