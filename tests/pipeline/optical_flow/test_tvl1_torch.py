"""The torch solver's image operations against OpenCV and numba's, and batches against single pairs."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from pipeline.optical_flow import pyramid_numba, tvl1_torch
from pipeline.optical_flow.params import TVL1Params
from pipeline.optical_flow.solve import solve
from tests.pipeline.optical_flow import cuda_reference
from tests.pipeline.optical_flow.motions import endpoint_error, moved, texture

VARIANTS = ("opencv-cpu", "opencv-cuda", "opencv24-cuda")
of_every_variant = pytest.mark.parametrize("variant", VARIANTS)


def pairs_of_different_speed() -> tuple[np.ndarray, np.ndarray]:
    """Frames (5, 48, 60) and next ones: still, slow, fast, unrelated and constant, which stop at different times."""
    prev = np.stack([texture(48, 60, seed=seed) for seed in range(5)])
    prev[4] = 90
    next = prev.copy()
    for pair, speed in ((1, 0.4), (2, 3.0)):
        next[pair] = moved(prev[pair], np.full((48, 60), speed), np.full((48, 60), -speed))
    next[3] = texture(48, 60, seed=11)
    return prev, next


@pytest.mark.parametrize(("height", "width"), [(3, 3), (16, 16), (17, 40), (31, 5)])
def test_median_is_opencvs(height, width, rng):
    planes = rng.normal(0, 5, (2, 3, height, width)).astype(np.float32)
    medians = tvl1_torch.median(torch.from_numpy(planes)).numpy()
    for plane, median in zip(planes.reshape(-1, height, width), medians.reshape(-1, height, width), strict=True):
        np.testing.assert_array_equal(median, cv2.medianBlur(plane, 5))


@of_every_variant
@pytest.mark.parametrize(("height", "width"), [(131, 174), (37, 66), (5, 9)])
def test_pyramid_is_numbas(variant, height, width, rng):
    params = TVL1Params(variant=variant)
    frames = rng.integers(0, 256, (3, height, width)).astype(np.uint8)
    prepared = tvl1_torch.prepare(frames, params=params)
    assert len(prepared) == 3
    for frame, levels in zip(frames, prepared, strict=True):
        for level, wanted in zip(levels, pyramid_numba.pyramid(frame, params=params), strict=True):
            np.testing.assert_allclose(level.cpu().numpy(), wanted, atol=1e-3)


@of_every_variant
def test_warp_is_the_references_also_across_the_frame(variant, rng):
    height, width = 40, 55
    frame = rng.integers(0, 256, (height, width)).astype(np.float32)
    u = rng.normal(0, 4, (2, height, width)).astype(np.float32)
    u[:, :5], u[:, :, 50:] = -1000, 1000
    traits = TVL1Params(variant=variant).discretisation
    image = tvl1_torch.with_gradients(torch.from_numpy(frame[None]), edges_repeat=traits.edges_repeat)
    data = tvl1_torch.warp(image, torch.zeros(1, height, width), torch.from_numpy(u[None]), cubic=traits.cubic)
    (gx, gy), rho = data.g[0].numpy(), data.rho[0, 0].numpy()

    y, x = np.mgrid[:height, :width].astype(np.float32)
    channels = [frame, *cuda_reference.gradient(frame)]
    if variant == "opencv-cpu":
        expected = [cv2.remap(image, x + u[0], y + u[1], cv2.INTER_CUBIC) for image in channels]
    else:
        expected = cuda_reference.sampled(channels, y.astype(float) + u[1], x.astype(float) + u[0])
    tolerance = 0.01 if variant != "opencv-cpu" or int(cv2.__version__.split(".")[0]) >= 5 else 8
    np.testing.assert_allclose(gx, expected[1], atol=tolerance)
    np.testing.assert_allclose(gy, expected[2], atol=tolerance)
    np.testing.assert_allclose(rho + gx * u[0] + gy * u[1], expected[0], atol=2 * tolerance, rtol=1e-3)


@of_every_variant
def test_a_pair_does_not_depend_on_its_batch(variant):
    """Pairs stop at different times, and a stopped pair waits unchanged."""
    params = TVL1Params(variant=variant)
    prev, next = pairs_of_different_speed()
    batch = solve(prev, next, backend="torch", params=params)
    for pair in range(len(prev)):
        alone = solve(prev[pair], next[pair], backend="torch", params=params)
        assert endpoint_error(batch[pair], alone).mean() <= 1e-3
    assert not batch[0].any()
    assert not batch[4].any()


@of_every_variant
def test_a_batch_agrees_with_numba(variant):
    params = TVL1Params(variant=variant)
    prev, next = pairs_of_different_speed()
    related = [0, 1, 2, 4]
    ours = solve(prev[related], next[related], backend="torch", params=params)
    for flow, wanted in zip(ours, solve(prev[related], next[related], backend="numba", params=params), strict=True):
        assert endpoint_error(flow, wanted).mean() <= 0.02


def test_large_batches_are_solved_in_parts(monkeypatch):
    prev, next = pairs_of_different_speed()
    whole = solve(prev, next, backend="torch")
    sizes = []
    solve_prepared = tvl1_torch.solve_prepared

    def counted(prev, next, *, params):
        sizes.append(len(prev))
        return solve_prepared(prev, next, params=params)

    monkeypatch.setattr(tvl1_torch, "pairs_at_once", lambda height, width: 2)
    monkeypatch.setattr(tvl1_torch, "solve_prepared", counted)
    parts = solve(prev, next, backend="torch")
    assert sizes == [2, 2, 1]
    for part, wanted in zip(parts, whole, strict=True):
        assert endpoint_error(part, wanted).mean() <= 1e-3


def test_an_empty_batch_has_no_flow():
    nothing = np.zeros((0, 20, 30), np.uint8)
    for backend in ("numba", "torch", "opencv"):
        assert solve(nothing, nothing, backend=backend).shape == (0, 2, 20, 30)


def test_the_batch_bounds_the_memory():
    assert tvl1_torch.pairs_at_once(2160, 3840) == 1
    for height, width in ((256, 340), (3, 3), (112, 112)):
        assert 1 <= tvl1_torch.pairs_at_once(height, width) * height * width <= 2**23


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@of_every_variant
def test_the_cuda_device_agrees_with_numba(variant):
    params = TVL1Params(variant=variant)
    frames = np.stack([texture(96, 128)] * 3)
    frames[1], frames[2] = (moved(frames[0], np.full((96, 128), s), np.full((96, 128), 0.5 * s)) for s in (0.8, 3.0))
    for prev, next in pairwise(frames):
        ours = solve(prev, next, backend="torch", params=params)
        assert endpoint_error(ours, solve(prev, next, backend="numba", params=params)).mean() <= 0.06
