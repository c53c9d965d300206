import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from models.where_when import (
    ConvLSTMCell,
    SpatialMask,
    WhereWhen,
    contrast,
    total_variation,
    unimodality,
    weighted_frames,
)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def head(*, std: float = 0.3, **switches) -> WhereWhen:
    """Small, with random weights and BN statistics, so that masks and weights are far from uniform."""
    made = WhereWhen(**{"num_classes": 4, "channels": 6, "hidden": 3, **switches})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std)
    for norm in (module for module in made.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return made.eval()


def maps(videos: int = 2, frames: int = 5, size: tuple[int, int] = (4, 3)) -> Tensor:
    return torch.randn(videos, frames, 6, *size).relu() * 2


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def conv(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """x C h w."""
    windows = sliding_window_view(np.pad(x, [(0, 0), (1, 1), (1, 1)]), (3, 3), axis=(1, 2))
    out = np.einsum("chwij,ocij->ohw", windows, array(layer.weight))
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def norm_relu(x: np.ndarray, layer: nn.BatchNorm2d) -> np.ndarray:
    mean, var, weight, bias = (
        array(t)[:, None, None] for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return np.maximum((x - mean) / np.sqrt(var + layer.eps) * weight + bias, 0)


def two(x: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    return norm_relu(conv(norm_relu(conv(x, layers[0]), layers[1]), layers[3]), layers[4])


def step(y: np.ndarray, h: np.ndarray, c: np.ndarray, cell: ConvLSTMCell) -> tuple[np.ndarray, np.ndarray]:
    i, f, o, g = np.split(conv(np.concatenate([y, h]), cell.gates), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def pool(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=(-2, -1))


def by_hand(made: WhereWhen, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Equations (1) to (6) for one video (n, C, h, w) -> logits (K,), scores of the states (T, K), w, M."""
    n = len(x)
    masks = np.ones((n, *x.shape[2:]))
    if made.mask is not None:
        masks = np.stack([sigmoid(conv(two(frame, made.mask.features), made.mask.score))[0] for frame in x])
    x = x * masks[:, None]  # (1)
    h = c = np.zeros((3, *x.shape[2:]))
    if made.temporal != "post_lstm":
        h, c = two(x.mean(axis=0), made.initial_h), two(x.mean(axis=0), made.initial_c)  # (5)
    states, attention = [], []
    for t in range(n):
        y = x[t]
        if made.energy is not None:
            raw = [
                array(made.energy.of_state.weight) @ pool(h) + array(made.energy.of_frames.weight) @ pool(f) for f in x
            ]
            if made.energy.joint is not None:
                raw = [array(made.energy.joint.weight) @ np.tanh(e) for e in raw]
            w = softmax(np.array([e[0] for e in raw]))  # (2), (3)
            y = sum(w[i] * x[i] for i in range(n)) / (n if made.y_scale == "inv_n" else 1)  # (4)
            attention.append(w)
        h, c = step(y, h, c, made.cell)
        states.append(h)
    fc, bias = array(made.fc.weight), array(made.fc.bias)
    scores = np.stack([fc @ pool(h) + bias for h in states])
    if made.state_energy is not None:
        energy = [array(made.state_energy.weight)[0] @ pool(h) + float(made.state_energy.bias.detach()) for h in states]
        w = softmax(np.array(energy))
        return fc @ sum(w[t] * pool(states[t]) for t in range(n)) + bias, scores, w[None], masks
    logits = fc @ pool(sum(states) / n) + bias  # (6)
    return logits, scores, np.array(attention), masks


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize(
    ("temporal", "energy", "y_scale"),
    [
        ("paper", "additive", "none"),
        ("paper", "additive", "inv_n"),
        ("paper", "joint_tanh", "none"),
        ("paper", "joint_tanh", "inv_n"),
        ("post_lstm", "additive", "none"),
        ("none", "additive", "none"),
    ],
)
def test_equations_1_to_6_against_numpy(spatial, temporal, energy, y_scale) -> None:
    made, x = head(std=0.5, spatial=spatial, temporal=temporal, energy=energy, y_scale=y_scale), maps()
    if made.state_energy is not None:
        nn.init.normal_(made.state_energy.weight, std=5.0)  # pooled states are small
    out = made(x)
    for video in range(2):
        logits, scores, attention, masks = by_hand(made, array(x[video]))
        np.testing.assert_allclose(array(out.logits[video]), logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(array(out.segment_logits[video]), scores, rtol=1e-4, atol=1e-5)
        if spatial:
            np.testing.assert_allclose(array(out.masks[video]), masks, rtol=1e-4)
        if temporal == "none":
            np.testing.assert_allclose(array(out.weights[video]), 1 / 5, rtol=1e-6)
        else:
            np.testing.assert_allclose(array(out.attention[video]), attention, rtol=1e-4)
            np.testing.assert_allclose(array(out.weights[video]), attention.mean(axis=0), rtol=1e-4)
            assert attention.max() > 1.2 * attention.min()
    assert (out.masks is None) is (not spatial)
    assert (out.attention is None) is (temporal == "none")


@pytest.mark.parametrize(("classes", "count"), [(51, 118_009_395), (101, 118_035_045), (339, 118_157_139)])
def test_published_counts(classes, count) -> None:
    def size(part: nn.Module) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    with torch.device("meta"):
        made = WhereWhen(num_classes=classes)
    assert size(made) == count
    assert size(made.mask) == 23_600_640
    assert size(made.cell) == 47_187_968
    assert size(made.initial_c) == size(made.initial_h) == 23_596_032
    assert size(made.energy) == 512 + 2048


def test_switches_drop_what_they_do_not_need() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(parameter.numel() for parameter in WhereWhen(num_classes=51, **switches).parameters())
            for name, switches in {
                "no mask": {"spatial": False},
                "post_lstm": {"temporal": "post_lstm"},
                "none": {"temporal": "none"},
                "joint": {"energy": "joint_tanh"},
            }.items()
        }
    full = 118_009_395
    assert sizes == {
        "no mask": full - 23_600_640,
        "post_lstm": full - 2 * 23_596_032 - 2560 + 513,
        "none": full - 2560,
        "joint": full - 2560 + 512 * (512 + 2048 + 1),
    }


def test_conv_lstm_with_maps_of_one_cell_is_an_lstm_cell() -> None:
    cell, reference = ConvLSTMCell(6, 3), nn.LSTMCell(6, 3)
    order = [0, 1, 3, 2]  # ours is i f o g, torch's i f g o
    centre = torch.stack(cell.gates.weight[:, :, 1, 1].detach().chunk(4))[order].flatten(0, 1)
    with torch.no_grad():
        reference.weight_ih.copy_(centre[:, :6])
        reference.weight_hh.copy_(centre[:, 6:])
        reference.bias_ih.copy_(torch.stack(cell.gates.bias.chunk(4))[order].flatten())
        reference.bias_hh.zero_()
    h, c = torch.randn(2, 3), torch.randn(2, 3)
    ours = h[..., None, None], c[..., None, None]
    for _ in range(3):
        x = torch.randn(2, 6)
        h, c = reference(x, (h, c))
        ours = cell(x[..., None, None], ours)
        torch.testing.assert_close(ours[0][..., 0, 0], h)
        torch.testing.assert_close(ours[1][..., 0, 0], c)


def test_masks_lie_between_zero_and_one() -> None:
    masks = SpatialMask(6, 3)(torch.randn(4, 6, 5, 5) * 3)
    assert masks.shape == (4, 5, 5)
    assert masks.min() > 0
    assert masks.max() < 1


@pytest.mark.parametrize("energy", ["additive", "joint_tanh"])
def test_weights_over_the_frames_sum_to_one_at_every_step(energy) -> None:
    out = head(energy=energy)(maps())
    torch.testing.assert_close(out.attention.sum(dim=2), torch.ones(2, 5))
    torch.testing.assert_close(out.weights.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("temporal", ["paper", "post_lstm"])
@pytest.mark.parametrize("energy", ["additive", "joint_tanh"])
def test_identical_frames_weigh_the_same(temporal, energy) -> None:
    out = head(temporal=temporal, energy=energy)(maps(frames=1).expand(-1, 4, -1, -1, -1))
    if temporal == "paper":
        torch.testing.assert_close(out.attention, torch.full((2, 4, 4), 0.25))
    else:  # the states differ although the frames do not
        assert out.attention.std() > 1e-3


def test_additive_energy_weighs_alike_at_every_step_and_joint_energy_does_not() -> None:
    x = maps()
    additive, joint = head()(x).attention, head(energy="joint_tanh", std=1.0)(x).attention
    torch.testing.assert_close(additive, additive[:, :1].expand(-1, 5, -1))
    assert (joint - joint[:, :1]).abs().max() > 1e-3


def test_uniform_weights_make_the_mean() -> None:
    x = maps()
    uniform = torch.full((2, 5), 0.2)
    torch.testing.assert_close(weighted_frames(x, uniform), x.mean(dim=1))
    torch.testing.assert_close(weighted_frames(x, uniform, scale="inv_n"), x.mean(dim=1) / 5)
    picked = weighted_frames(x, torch.eye(5)[[3, 1]])
    assert torch.equal(picked, torch.stack([x[0, 3], x[1, 1]]))


@pytest.mark.parametrize("temporal", ["paper", "post_lstm", "none"])
@pytest.mark.parametrize("energy", ["additive", "joint_tanh"])
def test_gradients_reach_every_part_of_the_attention(temporal, energy) -> None:
    made = head(temporal=temporal, energy=energy, lambda_unimodal=0.0).train()
    made.loss(made(maps()), torch.tensor([0, 3])).backward()
    largest = {name: parameter.grad.abs().max().item() for name, parameter in made.named_parameters()}
    if temporal == "paper" and energy == "additive":
        assert largest.pop("energy.of_state.weight") < 1e-6  # cancels in the softmax
    dead = [name for name, value in largest.items() if value < 1e-7 and name != "state_energy.bias"]
    assert not dead
    assert not made.state_energy or largest["state_energy.bias"] < 1e-6  # likewise: the same for all frames


def test_dropout_takes_a_channel_from_all_frames() -> None:
    made = head(dropout=0.5).train()
    seen = []
    made.mask.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.ones(16, 4, 6, 3, 3)
    made(x)
    dropped = seen[0].unflatten(0, (16, 4))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped == dropped[:, :1, :, :1, :1]).all()
    assert 0.3 < (dropped[:, 0, :, 0, 0] == 0).float().mean() < 0.7
    made.eval()(x)
    assert torch.equal(seen[1], x.flatten(0, 1))


def test_loss_is_equation_7() -> None:
    made = head(lambda_tv=0.3, lambda_contrast=0.2, lambda_unimodal=5.0, tv_reduce="batch_sum", unimodal="sqrt_mean")
    out, labels = made(maps()), torch.tensor([1, 2])
    terms = (
        nn.functional.cross_entropy(out.logits, labels, label_smoothing=0.1),
        0.3 * total_variation(out.masks, reduce="batch_sum"),
        0.2 * contrast(out.masks),
        5.0 * unimodality(out.attention, reduce="sqrt_mean"),
    )
    assert all(term.abs() > 1e-6 for term in terms)
    torch.testing.assert_close(made.loss(out, labels, label_smoothing=0.1), sum(terms))
    bare = head(spatial=False, temporal="none")
    out = bare(maps())
    torch.testing.assert_close(bare.loss(out, labels), nn.functional.cross_entropy(out.logits, labels))
    defaults = WhereWhen(num_classes=2, channels=6, hidden=3)
    assert (defaults.lambda_tv, defaults.lambda_contrast, defaults.lambda_unimodal) == (1e-5, 1e-4, 1.0)


def test_number_and_size_of_frames_are_free() -> None:
    made = head()
    for frames, size in ((1, (4, 3)), (2, (7, 7)), (8, (1, 1)), (3, (8, 8))):
        out = made(maps(1, frames, size))
        assert out.attention.shape == (1, frames, frames)
        assert out.masks.shape == (1, frames, *size)
        assert torch.isfinite(made.loss(out, torch.tensor([0])))


def test_a_video_scores_the_same_alone_and_in_a_batch() -> None:
    made, x = head(energy="joint_tanh"), maps(3)
    together = made(x)
    alone = made(x[1:2])
    for mine, other in zip(alone, together, strict=True):
        torch.testing.assert_close(mine, other[1:2])
    made.train()
    made.loss(made(x[:1]), torch.tensor([2])).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())


@pytest.mark.parametrize(
    "switches",
    [{}, {"energy": "joint_tanh"}, {"temporal": "post_lstm"}, {"temporal": "none", "spatial": False}],
    ids=str,
)
def test_eight_videos_are_learnt_by_heart(switches) -> None:
    made = WhereWhen(num_classes=4, channels=12, hidden=8, **switches)
    x, labels = torch.randn(8, 4, 12, 3, 3).relu(), torch.arange(8) % 4
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        made.loss(made(x), labels, label_smoothing=0.0).backward()
        optimizer.step()
    out = made.eval()(x)
    assert (out.logits.argmax(dim=1) == labels).all()
    assert nn.functional.cross_entropy(out.logits, labels).item() < 0.3


def test_bfloat16_scores_as_float32() -> None:
    made, x = head(energy="joint_tanh"), maps()
    exact = made(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(x.half())
        loss = made.loss(out, torch.tensor([1, 2]))
    assert all(part.dtype == torch.float32 for part in out)
    torch.testing.assert_close(out.attention.sum(dim=2), torch.ones(2, 5))
    for mine, other in zip(out, exact, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.02)
    torch.testing.assert_close(loss, made.loss(exact, torch.tensor([1, 2])), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("temporal", "lstm"),
        ("energy", "joint"),
        ("y_scale", "1/n"),
        ("tv_reduce", "sum"),
        ("unimodal", "mean"),
        ("dropout", 1.0),
        ("lambda_tv", -1.0),
        ("lambda_unimodal", math.inf),
    ],
)
def test_impossible_switches(switch, value) -> None:
    with pytest.raises(ValueError, match=f"{switch}={value!r}"):
        head(**{switch: value})


@pytest.mark.parametrize("shape", [(5, 6, 4, 3), (2, 0, 6, 4, 3), (2, 5, 7, 4, 3)])
def test_maps_of_another_shape(shape) -> None:
    with pytest.raises(ValueError, match=r"takes maps \(videos, frames, 6, height, width\)"):
        head()(torch.zeros(shape))
