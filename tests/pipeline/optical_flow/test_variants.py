"""The variants' parameters, and the CUDA variants against a plain float64 version of what those kernels compute."""

from __future__ import annotations

from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.optical_flow import tvl1_numba
from pipeline.optical_flow.params import TVL1Params, Variant
from pipeline.optical_flow.solve import solve
from tests.pipeline.optical_flow.cuda_reference import cuda_flow, level_flow
from tests.pipeline.optical_flow.motions import endpoint_error, grey_clip, moved, texture

CUDA_VARIANTS = [variant for variant in get_args(Variant) if variant != "opencv-cpu"]
BACKENDS = ("numba", "torch")

on_both_backends = pytest.mark.parametrize("backend", BACKENDS)
of_both_variants = pytest.mark.parametrize("variant", CUDA_VARIANTS)


def reference(prev: np.ndarray, next: np.ndarray, variant: str, **changed: float) -> np.ndarray:
    return cuda_flow(prev, next, gaussian=variant == "opencv24-cuda", **changed)


# --- the CUDA variants against the reference -------------------------------------------------------------------------


@on_both_backends
@of_both_variants
@pytest.mark.parametrize(("height", "width"), [(96, 128), (61, 83), (16, 16), (17, 47), (40, 21)])
def test_cuda_variants_are_the_reference_on_synthetic_pairs(backend, variant, height, width):
    prev = texture(height, width, seed=height)
    y, x = np.mgrid[:height, :width]
    next = moved(prev, 1.5 + np.sin(y / 9), 0.8 * np.cos(x / 7))
    flow = solve(prev, next, backend=backend, params=TVL1Params(variant=variant))
    difference = endpoint_error(flow, reference(prev, next, variant))
    assert difference.mean() <= 0.01
    assert np.median(difference) <= 0.001


@on_both_backends
@of_both_variants
@pytest.mark.parametrize("first", [0, 40], ids=["still", "moving"])
def test_cuda_variants_are_the_reference_on_a_real_clip(shared_data, backend, variant, first):
    frames = grey_clip(shared_data / "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi", first, 2)
    prev, next = (cv2.resize(frame, (170, 128), interpolation=cv2.INTER_AREA) for frame in frames)
    flow = solve(prev, next, backend=backend, params=TVL1Params(variant=variant))
    assert endpoint_error(flow, reference(prev, next, variant)).mean() <= 0.01


@on_both_backends
@pytest.mark.parametrize(
    "changed",
    [
        {"tau": 0.1},
        {"lambda_": 0.05},
        {"theta": 0.5},
        {"nscales": 1},
        {"warps": 2},
        {"epsilon": 0.001},
        {"epsilon": 0.0, "iterations": 9},
        {"iterations": 7},
        {"scale_step": 0.6},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_every_parameter_means_what_it_means_in_the_reference(backend, changed):
    prev = texture(60, 72)
    next = moved(prev, np.full(prev.shape, 2.3), np.full(prev.shape, -1.2))
    ours = {"inner_iterations" if name == "iterations" else name: value for name, value in changed.items()}
    flow = solve(prev, next, backend=backend, params=TVL1Params(variant="opencv-cuda", **ours))
    assert endpoint_error(flow, reference(prev, next, "opencv-cuda", **changed)).mean() <= 0.02
    unchanged = solve(prev, next, backend=backend, params=TVL1Params(variant="opencv-cuda"))
    assert np.abs(flow - unchanged).max() > 1e-3, "the parameter changes nothing here"


@pytest.mark.parametrize("epsilon", [0.003, 0.01, 0.03, 0.1])
def test_the_stopping_rule_counts_as_many_iterations(monkeypatch, epsilon):
    """One level, several warps: numba's own counts against the reference's."""
    prev = texture(40, 56)
    next = moved(prev, np.full(prev.shape, 1.1), np.full(prev.shape, -0.6))
    parameters = {"tau": 0.25, "lambda_": 0.15, "theta": 0.3, "warps": 5, "epsilon": epsilon}
    _, expected = level_flow(
        prev.astype(float), next.astype(float), np.zeros((2, *prev.shape)), iterations=300, **parameters
    )
    counts, relax = [], tvl1_numba._relax
    monkeypatch.setattr(tvl1_numba, "_relax", lambda *arguments: counts.append(relax(*arguments)))
    solve(prev, next, backend="numba", params=TVL1Params(variant="opencv-cuda", nscales=1, **parameters))
    assert counts == expected
    assert all(count % 2 == 0 for count in counts), "the change is looked at after the second, fourth, ... iteration"


@settings(max_examples=20, deadline=None)
@given(
    backend=st.sampled_from(BACKENDS),
    variant=st.sampled_from(CUDA_VARIANTS),
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    seed=st.integers(0, 1000),
)
def test_cuda_variants_are_the_reference_at_any_size(backend, variant, height, width, seed):
    prev = texture(height, width, seed=seed, blur_px=1.0)
    next = moved(prev, np.full((height, width), 0.6), np.full((height, width), -0.4))
    flow = solve(prev, next, backend=backend, params=TVL1Params(variant=variant))
    assert np.median(endpoint_error(flow, reference(prev, next, variant))) <= 0.01


def test_the_variants_differ(shared_data):
    """By tenths of a pixel where there is motion: a store has to say which one it holds."""
    prev, next = grey_clip(shared_data / "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi", 40, 2)
    flows = [solve(prev, next, backend="numba", params=TVL1Params(variant=variant)) for variant in get_args(Variant)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert endpoint_error(flows[first], flows[second]).mean() > 0.02


# --- parameters ------------------------------------------------------------------------------------------------------


def test_a_variant_brings_its_defaults():
    named = ("inner_iterations", "outer_iterations", "scale_step", "median_filtering")
    defaults = {v: tuple(getattr(TVL1Params(variant=v), name) for name in named) for v in get_args(Variant)}
    assert defaults == {
        "opencv-cpu": (30, 10, 0.8, 5),
        "opencv-cuda": (300, 1, 0.8, 1),
        "opencv24-cuda": (300, 1, 0.5, 1),
    }
    assert TVL1Params() == TVL1Params(variant="opencv-cpu", inner_iterations=None, scale_step=0.8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variant": "opencv"}, "no TV-L1 variant 'opencv'; use one of opencv-cpu, opencv-cuda, opencv24-cuda"),
        ({"variant": None}, "no TV-L1 variant None"),
        ({"variant": "opencv-cuda", "median_filtering": 5}, r"median_filtering is 5; it must be 1 \(no median\)"),
        ({"variant": "opencv-cuda", "outer_iterations": 10}, "outer_iterations is 10; it must be 1"),
        ({"variant": "opencv24-cuda", "scale_step": 0.8}, "scale_step is 0.8; it must be 0.5"),
        ({"variant": "opencv-cuda", "gamma": 0.1}, "gamma is 0.1; it must be 0"),
    ],
)
def test_what_a_variant_does_not_have_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TVL1Params(**wrong)


@of_both_variants
def test_opencvs_cpu_solver_has_no_cuda_variant(variant):
    grey = np.zeros((20, 30), np.uint8)
    with pytest.raises(ValueError, match=f"no variant {variant}; use 'numba'"):
        solve(grey, grey, backend="opencv", params=TVL1Params(variant=variant))


@pytest.mark.parametrize(
    ("variant", "height", "width", "expected"),
    [
        ("opencv-cpu", 256, 340, [(256, 340), (205, 272), (164, 218), (131, 174), (105, 139)]),
        ("opencv24-cuda", 256, 340, [(256, 340), (128, 170), (64, 85), (32, 43), (16, 22)]),
        ("opencv-cuda", 20, 300, [(20, 300), (16, 240)]),
        ("opencv24-cuda", 31, 31, [(31, 31), (16, 16)]),
        ("opencv24-cuda", 30, 31, [(30, 31)]),
        ("opencv-cpu", 3, 3, [(3, 3)]),
    ],
)
def test_levels(variant, height, width, expected):
    assert TVL1Params(variant=variant).level_shapes(height, width) == expected
