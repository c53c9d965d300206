import numpy as np
import pytest
import torch
from torch import Tensor

from models.where_when import contrast, total_variation, unimodality


def masks_like(values: list[list[float]]) -> Tensor:
    """One video of one frame."""
    return torch.tensor(values)[None, None]


def test_total_variation_by_hand() -> None:
    assert total_variation(torch.full((2, 3, 4, 4), 0.3)) == 0
    half = torch.zeros(1, 1, 4, 6)
    half[..., 3:] = 1
    assert total_variation(half) == 4  # the length of the edge
    square = torch.zeros(1, 1, 5, 5)
    square[..., 1:3, 1:4] = 1
    assert total_variation(square) == 10
    assert total_variation(masks_like([[0.0, 0.5], [1.0, 0.25]])).item() == pytest.approx(0.5 + 1 + 0.75 + 0.25)


def test_losses_add_over_frames_and_average_over_videos(rng) -> None:
    masks = torch.from_numpy(rng.random((3, 4, 5, 6)))
    m = masks.numpy()
    variation = sum(
        abs(m[v, i, j + 1, k] - m[v, i, j, k]) if j < 4 else 0.0
        for v in range(3)
        for i in range(4)
        for j in range(5)
        for k in range(6)
    ) + sum(
        abs(m[v, i, j, k + 1] - m[v, i, j, k]) if k < 5 else 0.0
        for v in range(3)
        for i in range(4)
        for j in range(5)
        for k in range(6)
    )
    assert total_variation(masks).item() == pytest.approx(variation / 3)
    assert total_variation(masks, reduce="batch_sum").item() == pytest.approx(variation)
    b = m > 0.5
    assert contrast(masks).item() == pytest.approx((-0.5 * m * b + 0.5 * m * (1 - b)).sum() / 3)

    w = rng.random((3, 4, 6))
    w /= w.sum(axis=2, keepdims=True)
    excess = [
        max(0.0, w[v, t, i - 1] * w[v, t, i + 1] - w[v, t, i] ** 2)
        for v in range(3)
        for t in range(4)
        for i in range(1, 5)
    ]
    assert unimodality(torch.from_numpy(w)).item() == pytest.approx(sum(excess) / 3)
    assert unimodality(torch.from_numpy(w), reduce="sqrt_mean").item() == pytest.approx(np.sqrt(excess).mean())


def test_contrast_pushes_masks_away_from_one_half() -> None:
    masks = masks_like([[0.2, 0.5], [0.500001, 0.9]]).repeat(2, 3, 1, 1).requires_grad_()
    contrast(masks).backward()
    want = masks_like([[0.5, 0.5], [-0.5, -0.5]]) / 2  # a batch of two
    torch.testing.assert_close(masks.grad, want.expand(2, 3, 2, 2))
    assert contrast(torch.full((1, 1, 2, 2), 0.9)).item() == pytest.approx(-4 * 0.45)  # negative, and rightly


def weights_of(energies: Tensor) -> Tensor:
    return energies.softmax(dim=-1)[None, None]


@pytest.mark.parametrize("reduce", ["sum", "sqrt_mean"])
def test_unimodal_weights_cost_nothing(reduce) -> None:
    frames = torch.arange(9.0)
    shapes = {
        "gaussian": weights_of(-((frames - 3.2) ** 2) / 4),
        "uniform": weights_of(torch.zeros(9)),
        "one-hot": torch.eye(9)[4][None, None],
        "two frames": torch.tensor([[[0.9, 0.1]]]),
        "one frame": torch.ones(1, 1, 1),
    }
    for name, w in shapes.items():
        assert unimodality(w, reduce=reduce).item() < 1e-9, name
    bimodal = weights_of(torch.tensor([2.0, 0, 0, 0, 2, 0]))
    assert unimodality(bimodal, reduce=reduce) > 1e-3


def test_gradient_of_square_roots_is_finite_where_they_are_zero() -> None:
    w = torch.tensor([[[0.25, 0.25, 0.25, 0.25], [0.4, 0.1, 0.4, 0.1]]], requires_grad=True)
    unimodality(w, reduce="sqrt_mean").backward()
    assert torch.isfinite(w.grad).all()
    assert not w.grad[0, 0].any()
    assert w.grad[0, 1].any()
