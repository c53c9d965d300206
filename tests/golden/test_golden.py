"""Numbers that a stage gave when its version was last set.

If one of these moves, stored results no longer are what the code would compute: bump the stage in
``pipeline/dataset/keys.py``, then put the new numbers here. Tolerances are for other processors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from models.build import build
from models.flownet import FlowPredictor, flow_loss
from pipeline.config import SanConfig
from pipeline.dataset.keys import VERSIONS
from pipeline.demo.annotations import annotation_files
from pipeline.demo.clips import PRESETS, list_clips
from pipeline.demo.render import actor_boxes, render_clip
from pipeline.learning import augmentation, sampling, transforms
from pipeline.learning.flow_pairs import FlowTargets, Pair
from pipeline.media.probe import probe
from pipeline.optical_flow.quantise import quantise
from pipeline.optical_flow.solve import choose_solver, solve
from pipeline.optical_flow.warped import warped_flow
from stages import make_demo
from stages.pretrain_san import make_optimizer
from tests.workflow.project import render


def pattern(shift: float) -> np.ndarray:  # type: ignore[type-arg]
    """A smooth texture, moved to the right by ``shift`` pixels and turned a little with it."""
    y, x = np.mgrid[0:48, 0:64].astype(np.float64)
    x = x - shift + 0.02 * shift * (y - 24)
    image = 128 + 50 * np.sin(x / 3.1) * np.cos(y / 4.3) + 40 * np.sin((x + 2 * y) / 5.7)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def test_the_versions_that_these_numbers_belong_to() -> None:
    versions = {"probe": 1, "frames": 2, "flow": 2, "san": 1, "train": 2, "predict": 2}
    assert {name: VERSIONS[name] for name in versions} == versions


def test_probe(tmp_path: Path) -> None:
    render(tmp_path / "clip.avi", "bars", frames=9)
    found = probe(tmp_path / "clip.avi")
    assert (found.frames, found.fps, found.width, found.height, found.sar) == (9, 25.0, 48, 40, "1:1")


def test_flow() -> None:
    flow = solve(pattern(0.0), pattern(1.5))
    x, y = flow
    numbers = [x.mean(), x.std(), y.mean(), y.std(), np.abs(flow).max()]
    assert numbers == pytest.approx([1.5047, 0.3884, -0.0057, 0.0463, 2.1594], abs=2e-3)
    codes = quantise(np.linspace(-25, 25, 101, dtype=np.float32))
    assert hashlib.blake2b(codes.tobytes(), digest_size=4).hexdigest() == "c632e8a4"


def test_warped_flow() -> None:
    assert VERSIONS["warped_flow"] == 2
    (pair,) = warped_flow([pattern(0.0), pattern(1.5)], choose_solver())
    assert pair.inliers == pytest.approx(55, abs=3)
    assert pair.homography[0] == pytest.approx([1.0013, -0.0280, 2.172], abs=0.02)
    numbers = [pair.motion_px, pair.residual_px, pair.flow[0].mean(), pair.flow[0].std(), pair.flow[1].mean()]
    assert numbers == pytest.approx([1.5021, 0.0194, 0.0112, 0.0387, 0.0035], abs=5e-3)


def test_sampling_and_augmentation() -> None:
    rng = np.random.default_rng(7)
    assert sampling.train_positions(83, snippet=5, segments=6, rng=rng).tolist() == [12, 21, 34, 50, 59, 75]
    assert sampling.scoring_positions(83, snippet=5, segments=6).tolist() == [6, 19, 32, 46, 59, 72]
    images = np.stack([pattern(shift) for shift in (0.0, 1.0)])[None, :, None]  # 1 n 1 H W
    images = np.repeat(images, 2, axis=2)
    view = transforms.draw_view(48, 64, size=32, scales=(1.0, 0.75), flip=True, rng=rng)
    assert view == (12, 0, 36, 36, True)
    fields = torch.from_numpy(images).flatten(1, 2)
    snippet = augmentation.cut(fields, torch.tensor(view), size=32, flow_from=0)
    assert snippet[:, 1::2].double().mean() == pytest.approx(127.39, abs=0.05)


def test_training() -> None:
    """Losses of five steps of SGD on one batch; the optimiser's own arithmetic is torch's."""
    torch.manual_seed(0)
    model = build(num_classes=3, modality="rgb", in_channels=3, segments=2, dropout=0.0)
    clips = torch.from_numpy(np.stack([cv2.resize(pattern(s), (32, 32)) for s in range(12)]))
    x = clips.view(6, 2, 1, 32, 32).expand(6, 2, 3, 32, 32)  # B N C H W
    labels = torch.arange(6) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = functional.cross_entropy(model(x).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx([1.1936, 0.9412, 0.7693, 0.6044, 0.4761], rel=2e-3)


@dataclass(frozen=True)
class Drifting:
    """Pairs of the pattern, moved a little; see ``FlowTargets``."""

    def __len__(self) -> int:
        return 4

    def name(self, number: int) -> str:
        return f"pair {number}"

    def read(self, number: int, rng: np.random.Generator) -> Pair:
        frames = np.stack([pattern(0.0), pattern(float(number))])[:, None].repeat(3, axis=1)
        flow = np.stack([np.full((48, 64), number, np.float32), np.zeros((48, 64), np.float32)])
        return Pair(frames, flow)


def test_pre_training() -> None:
    """Draws, and losses of four steps of the SAN's own optimiser."""
    targets = FlowTargets(source=Drifting(), size=(32, 32), target_size=(16, 16), seed=0)
    frames, flow = (torch.stack(parts) for parts in zip(*(targets[0, number] for number in range(4)), strict=True))
    assert frames.float().mean().item() == pytest.approx(127.57, abs=0.05)
    assert flow[:, 0, 0, 0].tolist() == pytest.approx([0.0, -0.7619, 1.3333, -2.2857], abs=1e-3)
    torch.manual_seed(0)
    model = FlowPredictor(width=0.03)
    optimizer = make_optimizer(model, san=SanConfig(lr=0.002))
    losses = []
    for _ in range(4):
        loss = flow_loss(model(frames), flow)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx([0.9432, 0.8810, 0.8535, 0.8385], rel=5e-3)


def test_demo() -> None:
    """If this moves, bump ``VERSION`` in stages/make_demo.py: the demo is rendered anew."""
    assert make_demo.VERSION == 2
    clips = {clip.name: clip for clip in list_clips(PRESETS["tiny"], seed=0)}
    clip = clips["v_CircleBlue_g03_c01"]
    frames = render_clip(clip.scene, clip.acts)
    means = [frames[..., channel].mean() for channel in range(3)]
    assert [*means, frames.std()] == pytest.approx([133.56, 149.24, 142.43, 30.96], abs=0.05)
    assert [(slot.start, slot.end) for slot in clip.scene.slots] == [(9, 15)]
    assert actor_boxes(clip.scene, clip.acts)[12].tolist() == [28, 20, 45, 37]
    homography = clip.scene.camera.homographies(24, size_px=(64, 48))[3]
    assert homography[0] == pytest.approx([0.999974, -0.007274, 0.022353], abs=1e-5)
    long = clips["video_test_0000002"]
    assert [(slot.start, slot.end, act.label) for slot, act in zip(long.scene.slots, long.acts, strict=True)] == [
        (12, 21, None),
        (30, 37, "SpinViolet"),
        (56, 62, "BobRed"),
    ]
    files = annotation_files(list(clips.values()))
    lists = b"".join(files[name] for name in sorted(files) if name.endswith(".txt"))
    assert hashlib.blake2b(lists, digest_size=4).hexdigest() == "55953b7b"
