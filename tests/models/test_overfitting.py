"""Every model learns eight real clips by heart, from pixels to labels, in a few steps."""

import itertools
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
def eight_videos(shared_data) -> list[np.ndarray]:
    """Two UT-Interaction videos of each of four classes, frames (T, S, S, 3) RGB of each; T is 18 or more."""
    by_class = defaultdict(list)
    for path in sorted((shared_data / "actions" / "ut_interaction_set1").glob("*.avi")):
        by_class[path.stem.split("_")[2]].append(path)  # number_sequence_class
    paths = [path for name in sorted(by_class)[:4] for path in by_class[name][:2]]
    assert len(paths) == 8
    return [read_clip(path) for path in paths]


LABELS = torch.arange(4).repeat_interleave(2)


@pytest.fixture(scope="module")
def eight_clips(eight_videos) -> dict[str, Tensor]:
    """Three snippets of each: rgb (8, 3, 6, S, S), flow (8, 3, 10, S, S)."""
    rgb, flow = [], []
    for frames in eight_videos:
        starts = np.linspace(0, len(frames) - 6, SEGMENTS).astype(int)
        rgb.append([frames[s : s + 2].transpose(0, 3, 1, 2).reshape(6, SIDE, SIDE) for s in starts])
        flow.append([flow_stack(frames[s : s + 6]) for s in starts])
    return {"rgb": torch.from_numpy(np.array(rgb)), "flow": torch.from_numpy(np.array(flow))}


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
    x = eight_clips[modality][:, :, :channels]
    options = {"num_classes": 4, "segments": SEGMENTS, "dropout": 0.0, "input_size": SIDE}
    torch.manual_seed(0)
    model = build(backbone=backbone, modality=modality, in_channels=channels, **options, **switches)
    assert_learnt(model, x, steps=steps, lr=lr)


def assert_learnt(model: nn.Module, x: Tensor, *, steps: int, lr: float) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    first = None
    for _ in range(steps):
        optimiser.zero_grad()
        out = model(x)
        loss = model.loss(out, LABELS, label_smoothing=0.0)
        first = loss.item() if first is None else first
        loss.backward()
        optimiser.step()
    assert out.logits.argmax(dim=1).tolist() == LABELS.tolist()
    assert loss.item() < 0.5 * first


FRAMES, CLIP_SIDE = 16, 32


@pytest.fixture(scope="module")
def clips_of_16(eight_videos) -> dict[str, Tensor]:
    """A clip of the middle of each video: rgb (8, 1, 3 x 16, 32, 32), flow (8, 1, 2 x 16, 32, 32)."""
    rgb, flow = [], []
    for frames in eight_videos:
        start = (len(frames) - FRAMES - 1) // 2
        taken = frames[start : start + FRAMES + 1, ::2, ::2]
        rgb.append(taken[:-1].transpose(0, 3, 1, 2).reshape(1, 3 * FRAMES, CLIP_SIDE, CLIP_SIDE))
        flow.append(flow_stack(taken)[None])
    return {"rgb": torch.from_numpy(np.array(rgb)), "flow": torch.from_numpy(np.array(flow))}


def network_of_clips(modality: str, **switches) -> nn.Module:
    channels = (3 if modality == "rgb" else 2) * FRAMES
    options = {"num_classes": 4, "in_channels": channels, "snippet": FRAMES, "input_size": CLIP_SIDE, "dropout": 0.0}
    torch.manual_seed(0)
    return build(modality=modality, **options, **switches)


@pytest.mark.parametrize(
    ("modality", "switches", "steps", "lr"),
    [
        ("rgb", {"family": "jsta", "backbone": "res3d18", "width": 4}, 15, 0.003),
        ("flow", {"family": "jsta", "backbone": "resnet3d18", "width": 4, "sa_position": "none"}, 15, 0.003),
        ("rgb", {"family": "sta_net", "backbone": "resnet3d18", "width": 4}, 15, 0.003),
        (
            "flow",
            {"family": "sta_net", "backbone": "resnet3d18", "width": 4, "variant": "sa", "identity_init": True},
            15,
            0.003,
        ),
        ("rgb", {"family": "sta_net", "backbone": "c3d", "width": 4, "stages": ["conv5"], "blocks": "last"}, 60, 0.001),
    ],
)
def test_eight_real_clips_are_learnt_by_networks_of_clips(clips_of_16, modality, switches, steps, lr) -> None:
    assert_learnt(network_of_clips(modality, **switches), clips_of_16[modality], steps=steps, lr=lr)


def test_eight_real_clips_are_learnt_from_a_teacher_too(clips_of_16) -> None:
    options = {"family": "sta_net", "backbone": "resnet3d18", "width": 4}
    teacher, student = network_of_clips("flow", **options), network_of_clips("rgb", **options)
    assert_learnt(teacher, clips_of_16["flow"], steps=10, lr=0.003)
    student.teach(teacher, alpha=1.0)
    assert_learnt(student, torch.cat([clips_of_16["rgb"], clips_of_16["flow"]], dim=2), steps=15, lr=0.003)


@torch.no_grad()
def test_eight_real_videos_are_learnt_by_the_heads(eight_clips) -> None:
    """From what untrained networks make of them: as a T-step on the features of an S-step, and from maps."""
    torch.manual_seed(0)
    snippets = eight_clips["rgb"]  # of two frames
    options = {"num_classes": 4, "modality": "rgb", "dropout": 0.0}
    s_step = build(**options, family="jsta", backbone="res3d18", width=4, in_channels=6, snippet=2, input_size=SIDE)
    features = s_step.clip_features(snippets.flatten(0, 1)).unflatten(0, snippets.shape[:2])
    network = build(**options, family="atw", backbone="tiny", in_channels=6, segments=SEGMENTS)
    maps = network.backbone.feature_map(network.normalise(snippets.flatten(0, 1))).unflatten(0, snippets.shape[:2])
    with torch.enable_grad():
        for family, x in (("jsta_temporal", features), ("where_when", maps)):
            head = build(family=family, num_classes=4, feature_shape=list(x.shape[2:]), hidden=16, dropout=0.0)
            assert_learnt(head, x, steps=80, lr=0.02)
