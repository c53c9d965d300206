"""The Triton kernels, on a CUDA device where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from pipeline.optical_flow import tvl1_torch
from pipeline.optical_flow.params import TVL1Params
from pipeline.optical_flow.solve import _missing_for_triton, choose_solver, solve, solve_video
from tests.pipeline.optical_flow.motions import endpoint_error, grey_clip, moved, texture

VARIANTS = ("opencv-cpu", "opencv-cuda", "opencv24-cuda")
DEVICE = tvl1_torch.best_device()

of_every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The solver's module. Triton decides when a kernel is defined whether it is compiled or interpreted."""
    if find_spec("triton") is None:
        pytest.skip("the package triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
            for name in [name for name in sys.modules if name.split(".")[0] == "triton" and "._C" not in name]:
                patch.delitem(sys.modules, name)  # torch may have imported it, to compile
        yield importlib.import_module("pipeline.optical_flow.tvl1_triton")


def planes(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0, scale, shape)
    return torch.from_numpy(values.astype(np.float32)).to(DEVICE)


# --- kernels against torch's operations, which are tested against OpenCV ---------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(3, 3), (16, 17), (31, 40)])
def test_median_of_the_pairs_that_still_move(kernels, height, width):
    u = planes(3, 2, height, width, scale=5)
    error = torch.tensor([2.0, 0.5, 1.1], device=DEVICE)
    filtered = kernels.median(u, error, 1.0)
    assert torch.equal(filtered[[0, 2]], tvl1_torch.median(u)[[0, 2]])
    assert torch.equal(filtered[1], u[1])


@of_every_variant
def test_warp(kernels, variant):
    height, width = 30, 37
    traits = TVL1Params(variant=variant).discretisation
    image = tvl1_torch.with_gradients(planes(2, height, width, scale=40), edges_repeat=traits.edges_repeat)
    prev, u = planes(2, height, width, scale=40, seed=1), planes(2, 2, height, width, scale=3, seed=2)
    u[:, :, :3], u[:, :, :, 33:] = -1000, 1000
    ours = kernels.warp(image, prev, u, cubic=traits.cubic)
    expected = tvl1_torch.warp(image, prev, u, cubic=traits.cubic)
    assert torch.allclose(ours.g, expected.g, atol=1e-3)
    assert torch.allclose(ours.inverse, expected.inverse, rtol=1e-2)
    assert torch.allclose(ours.rho, expected.rho, atol=2e-3, rtol=1e-4)


@of_every_variant
@pytest.mark.parametrize(("height", "width"), [(3, 3), (16, 17), (60, 75), (5, 1500), (1500, 3)])
def test_iterations(kernels, variant, height, width):
    """Levels of one strip and of several, and pairs that stop at different times."""
    params = TVL1Params(variant=variant, inner_iterations=9, **_one_round(variant))
    g, prev = planes(3, 2, height, width, scale=8), planes(3, 1, height, width, scale=10, seed=1)
    g[1] *= 0  # no data: stops when the flow is smooth
    data = tvl1_torch.Linearised(g, 1 / (g * g).sum(1, keepdim=True).clamp(min=1e-30), prev)
    u, p = planes(3, 2, height, width, scale=0.1, seed=3), torch.zeros(3, 2, 2, height, width, device=DEVICE)
    u[1] = 0.5
    expected_u, expected_p = u.clone(), p.clone()
    with torch.inference_mode():
        tvl1_torch._relax(expected_u, expected_p, data, params=params)
    u = kernels.relax(u, p, data, params=params)
    assert torch.allclose(u, expected_u, atol=1e-4)
    assert torch.allclose(p, expected_p, atol=1e-4)


def _one_round(variant: str) -> dict[str, int]:
    """No medians, which would hide what the iterations do."""
    return {"median_filtering": 1, "outer_iterations": 1} if variant == "opencv-cpu" else {}


# --- the solver against numba's --------------------------------------------------------------------------------------


@of_every_variant
@pytest.mark.parametrize(("height", "width", "pairs"), [(20, 31, 2), (3, 3, 1), (16, 17, 1)])
def test_agrees_with_numba(kernels, variant, height, width, pairs):
    few = {"inner_iterations": 8, "outer_iterations": 3} if variant == "opencv-cpu" else {"inner_iterations": 24}
    params = TVL1Params(variant=variant, nscales=2, warps=2, **few)
    prev = np.stack([texture(height, width, seed=seed, blur_px=1.5) for seed in range(pairs)])
    next = np.stack([moved(frame, np.full(frame.shape, 0.8), np.full(frame.shape, -0.4)) for frame in prev])
    next[1:2] = prev[1:2]
    ours = solve(prev, next, backend="triton", params=params)
    assert not ours[1:2].any()
    for flow, wanted in zip(ours, solve(prev, next, backend="numba", params=params), strict=True):
        assert endpoint_error(flow, wanted).mean() <= 0.02


@of_every_variant
def test_agrees_with_numba_on_a_real_clip(kernels, shared_data, variant):
    """All levels and warps of a moving pair, small and with a coarse stop, for the interpreter takes its time."""
    frames = grey_clip(shared_data / "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi", 40, 2)
    prev, next = (cv2.resize(frame, (32, 24), interpolation=cv2.INTER_AREA) for frame in frames)
    params = TVL1Params(variant=variant, epsilon=0.03)
    ours = solve(prev, next, backend="triton", params=params)
    assert endpoint_error(ours, solve(prev, next, backend="numba", params=params)).mean() <= 0.06


def test_video_equals_pairs(kernels):
    params = TVL1Params(nscales=1, warps=1, inner_iterations=10, outer_iterations=2)
    first = texture(20, 24)
    clip = [moved(first, np.full((20, 24), 0.5 * t), np.zeros((20, 24))) for t in range(4)]
    flows = list(solve_video(clip, step=2, reverse=True, backend="triton", params=params))
    assert len(flows) == 2
    for t, flow in enumerate(flows):
        alone = solve(clip[t + 2], clip[t], backend="triton", params=params)
        assert endpoint_error(flow, alone).max() <= 1e-3


def test_the_batch_bounds_the_memory(kernels):
    assert kernels.pairs_at_once(6000, 8000) == 1
    for height, width in ((256, 340), (3, 3)):
        assert 1 <= 2 * kernels.pairs_at_once(height, width) <= 65535, "a grid's second dimension ends there"
        assert kernels.pairs_at_once(height, width) * height * width <= 2**25


def test_four_jobs_fit_a_small_device(kernels):
    """About 100 bytes a pixel, and some 400 MiB of CUDA's own a job; found once, whatever is free later."""
    for free in (6 << 30, 8 << 30, 12 << 30):
        assert 4 * (kernels.pixels_that_fit(free) * 100 + (300 << 20)) < free
        assert kernels.pixels_that_fit(free) > 20 * 340 * 256
    assert kernels.pixels_that_fit(80 << 30) == 2**25


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_too_little_memory_is_one_sentence(kernels, monkeypatch, backend):
    """torch raises a RuntimeError, which no command expects."""

    def exhausted(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    grey = np.zeros((20, 30), np.uint8)
    for step in ("start_of_level", "pyramid"):
        monkeypatch.setattr(tvl1_torch, step, exhausted)
        with pytest.raises(OSError, match="the memory of the GPU is too small .*--resources flow_gpu=1"):
            solve(grey, grey, backend=backend)


# --- without a device ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    grey = np.zeros((20, 30), np.uint8)
    with pytest.raises(ValueError, match="triton backend cannot run here: there is no .*; use 'numba' or 'torch'"):
        solve(grey, grey, backend="triton")


def test_without_the_package_it_is_refused_even_to_be_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    _missing_for_triton.cache_clear()
    try:
        with pytest.raises(ValueError, match="triton backend cannot run here: there is no package triton"):
            choose_solver(backend="triton")
    finally:
        _missing_for_triton.cache_clear()


@pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")
def test_kernels_compile_for_a_gpu_that_is_not_here(root: Path, tmp_path: Path):
    """Machine code for compute capability 9.0; u is stored before a barrier and p after it."""
    code = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.optical_flow import median_triton, tvl1_triton

POINTERS = {"u", "p", "g", "inverse", "rho", "errors", "expectations", "image", "prev", "filtered"}
INTEGERS = {"height", "width", "iterations"}

def compiled(kernel, warps, **constants):
    kinds = {name: "*fp32" if name in POINTERS else "i32" if name in INTEGERS else "fp32" for name in kernel.arg_names}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, **tvl1_triton._FUSED})
    assert len(made.asm["cubin"]) > 1000
    return made.asm["ptx"]

compiled(median_triton._median_kernel, 4, tile=256)
compiled(tvl1_triton._warp_kernel, 4, border=4, tile=256)
for rule in (True, False):
    ptx = compiled(tvl1_triton._relax_kernel, 16, stops_anywhere=rule, strip=2048)
    sweep = re.sub("(.)\\\\1+", "\\\\1", "".join(
        {"ld.global": "l", "st.global": "s", "bar.sync": "|", "shfl.sync": "x"}[word] for word in
        re.findall("ld.global|st.global|bar.sync|shfl.sync", ptx)
    ))
    print(sweep)
    assert "ls|ls" in sweep, "u is stored, then p is updated"
    assert "|x" in sweep, "all of p is stored, then the change is summed and the next iteration begins"
    assert "fma.rn.f32" in ptx
"""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
