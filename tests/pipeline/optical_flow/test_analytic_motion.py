"""Motions known in closed form, found by every variant on every backend that runs on a CPU."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from pipeline.optical_flow.params import TVL1Params, Variant
from pipeline.optical_flow.solve import solve
from tests.pipeline.optical_flow.motions import affine_pair, inner_error, moved, texture

SOLVERS = [(backend, variant) for backend in ("numba", "torch") for variant in get_args(Variant)]
every_solver = pytest.mark.parametrize(("backend", "variant"), SOLVERS)


def flow_of(prev: np.ndarray, next: np.ndarray, backend: str, variant: str) -> np.ndarray:
    return solve(prev, next, backend=backend, params=TVL1Params(variant=variant))


@every_solver
@pytest.mark.parametrize(("dx", "dy"), [(3.0, 0.0), (1.5, -2.25), (-6.0, 4.0)])
def test_translation(backend, variant, dx, dy):
    prev = texture(128, 160)
    flow = flow_of(prev, moved(prev, np.full(prev.shape, dx), np.full(prev.shape, dy)), backend, variant)
    truth = np.broadcast_to(np.array([dx, dy])[:, None, None], flow.shape)
    assert inner_error(flow, truth) < 0.15


@every_solver
def test_zoom(backend, variant):
    prev, next, truth = affine_pair(np.diag([1.03, 1.03]))
    assert inner_error(flow_of(prev, next, backend, variant), truth) < 0.12


@every_solver
def test_rotation(backend, variant):
    angle = np.deg2rad(2)
    prev, next, truth = affine_pair(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]))
    assert inner_error(flow_of(prev, next, backend, variant), truth) < 0.12


@every_solver
def test_occlusion(backend, variant):
    """A patch moves over a still background: each keeps its motion up to the stripes that it covers and lays bare."""
    prev, next = texture(120, 150), texture(120, 150)
    patch = texture(50, 60, seed=7)
    prev[30:80, 40:100] = patch
    next[32:82, 44:104] = patch
    flow = flow_of(prev, next, backend, variant)
    inside, outside = flow[:, 38:72, 48:92], flow.copy()
    outside[:, 20:92, 30:114] = 0
    assert np.median(inside[0]) == pytest.approx(4, abs=0.1)
    assert np.median(inside[1]) == pytest.approx(2, abs=0.1)
    assert np.abs(inside - np.array([4, 2])[:, None, None]).mean() < 0.15
    assert np.abs(outside).mean() < 0.02


@every_solver
def test_channel_zero_is_x(backend, variant):
    prev = texture(64, 80)
    flow = flow_of(prev, np.roll(prev, 2, axis=1), backend, variant)
    assert flow.shape == (2, 64, 80)
    assert flow.dtype == np.float32
    assert np.median(flow[0]) == pytest.approx(2, abs=0.1)
    assert np.median(flow[1]) == pytest.approx(0, abs=0.1)


@every_solver
def test_no_motion_is_zero(backend, variant):
    """To the last bit: at a whole pixel the bicubic weights are exactly 0 and 1."""
    frame = texture(50, 70)
    assert not flow_of(frame, frame, backend, variant).any()


@every_solver
@pytest.mark.parametrize("values", [(0, 0), (255, 255), (10, 200)])
def test_constant_frames_have_no_flow(backend, variant, values):
    prev, next = (np.full((33, 45), value, np.uint8) for value in values)
    assert not flow_of(prev, next, backend, variant).any()


@every_solver
@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 61), (16, 16), (15, 33), (31, 32), (35, 67)])
def test_tiny_and_odd_sizes_give_finite_flow(backend, variant, height, width):
    prev = texture(height, width, seed=height + width, blur_px=1.0)
    flow = flow_of(prev, np.roll(prev, 1, axis=0), backend, variant)
    assert flow.shape == (2, height, width)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize(("backend", "variant"), [*SOLVERS, ("opencv", "opencv-cpu")])
def test_unrelated_frames_give_finite_flow(backend, variant, rng):
    prev, next = rng.integers(0, 256, (2, 37, 53)).astype(np.uint8)
    assert np.isfinite(flow_of(prev, next, backend, variant)).all()
