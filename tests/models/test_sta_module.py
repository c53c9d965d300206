"""Equations and tables: Li et al., "Spatio-Temporal Attention Networks for Action Recognition and Detection"."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.sta_module import STA, mars_loss, sta_module

torch.set_num_threads(1)

VARIANTS = ("sta", "ta", "sa", "se", "no_deconv")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def made(variant: str, channels: int, map_size: tuple[int, int, int], **options) -> nn.Module:
    """A module whose weights differ clearly from one another, in double precision."""
    torch.manual_seed(0)
    module = sta_module(variant, channels, map_size, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


@pytest.mark.parametrize(
    ("channels", "frames", "h", "w", "parameters"),
    [
        (2048, 4, 4, 4, 40_965),  # ResNeXt-101, 64 frames, layer4
        (1024, 8, 7, 7, 54_277),  # the paper's example for table 4
        (512, 2, 7, 7, 27_141),  # C3D, conv5b
        (256, 32, 28, 28, 201_733),  # ResNeXt-101, 64 frames, layer1
        (8, 1, 3, 5, 157),
    ],
)
def test_parameters_follow_table_4(channels, frames, h, w, parameters) -> None:
    with torch.device("meta"):
        module = sta_module("sta", channels, (frames, h, w))
    assert count(module) == parameters == channels * (h * w + 4) + 5


def test_parameters_of_the_other_variants() -> None:
    c, l, h, w = 64, 4, 3, 5  # noqa: E741
    sizes = {variant: count(sta_module(variant, c, (l, h, w))) for variant in VARIANTS}
    assert sizes["ta"] == (c * h * w + 1) + 4 + 4
    assert sizes["sa"] == (c * l * h * w + 1) + 2 * c
    assert sizes["no_deconv"] == sizes["sta"] - 4
    assert sizes["se"] == 2 * c * (c // 16) + c // 16 + c


def frame_weights(module: STA, x: np.ndarray, *, stride: int | None) -> np.ndarray:
    """(1)-(6) frame by frame: (B, c, T, h, w) -> (B, gates, T)."""
    frames = x.shape[2]
    z = np.stack(
        [(x[:, :, i] * module.conv1.weight.detach().numpy()[0, :, 0]).sum(axis=(1, 2, 3)) for i in range(frames)], 1
    )
    z = z + module.conv1.bias.item()
    conv2, bias2 = module.conv2.weight.detach().numpy()[:, 0, :, 0, 0], module.conv2.bias.detach().numpy()
    if stride is None:
        expanded, stride = np.pad(np.maximum(z, 0), ((0, 0), (1, 1))), 1
    else:
        kernel = module.deconv.weight.detach().numpy()[0, 0, :, 0, 0]
        expanded = np.full((len(x), (frames - 1) * stride + 3), module.deconv.bias.item())
        for i in range(frames):
            for k in range(3):
                expanded[:, i * stride + k] += z[:, i] * kernel[k]
        expanded = np.maximum(expanded, 0)
    out = np.empty((len(x), len(conv2), frames))
    for i in range(frames):
        out[:, :, i] = expanded[:, i * stride : i * stride + 3] @ conv2.T + bias2
    return sigmoid(out)


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "stride"), [("sta", 1), ("sta", 2), ("sta", 3), ("ta", 1), ("ta", 2), ("no_deconv", None)]
)
def test_weights_follow_the_equations(variant, stride) -> None:
    module = made(variant, 3, (4, 2, 3), **({} if stride is None else {"deconv_stride": stride}))
    x = torch.randn(2, 3, 4, 2, 3, dtype=torch.float64)
    w = frame_weights(module, x.numpy(), stride=stride)
    assert w.shape == (2, 1 if variant == "ta" else 3, 4)
    np.testing.assert_allclose(module.weights(x)[..., 0, 0], w, atol=1e-12)
    np.testing.assert_allclose(module(x), w[..., None, None] * x.numpy(), atol=1e-12)  # (7)


@torch.no_grad()
def test_spatial_attention_follows_equations_3_and_4() -> None:
    module = made("sa", 3, (4, 2, 3))
    x = torch.randn(2, 3, 4, 2, 3, dtype=torch.float64)
    z = (x.numpy() * module.conv1.weight.numpy()).sum(axis=(1, 2, 3, 4)) + module.conv1.bias.item()
    w = sigmoid(np.outer(np.maximum(z, 0), module.conv2.weight.numpy().ravel()) + module.conv2.bias.numpy())
    np.testing.assert_allclose(module.weights(x)[..., 0, 0, 0], w, atol=1e-12)
    np.testing.assert_allclose(module(x), w[..., None, None, None] * x.numpy(), atol=1e-12)


@torch.no_grad()
def test_squeeze_and_excitation() -> None:
    module = made("se", 32, (4, 2, 3))
    x = torch.randn(2, 32, 4, 2, 3, dtype=torch.float64)
    first, last = module.conv1.weight.numpy().reshape(2, 32), module.conv2.weight.numpy().reshape(32, 2)
    hidden = np.maximum(x.numpy().mean(axis=(2, 3, 4)) @ first.T + module.conv1.bias.numpy(), 0)
    w = sigmoid(hidden @ last.T + module.conv2.bias.numpy())
    np.testing.assert_allclose(module(x), w[..., None, None, None] * x.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("variant", "shape"), [("sta", (2, 6, 4, 1, 1)), ("ta", (2, 1, 4, 1, 1)), ("sa", (2, 6, 1, 1, 1))]
)
def test_weights_are_between_0_and_1_and_the_same_for_all_cells(variant, shape) -> None:
    module = made(variant, 6, (4, 2, 3))
    x = torch.randn(2, 6, 4, 2, 3, dtype=torch.float64)
    w = module.weights(x)
    assert w.shape == shape
    assert ((w > 0) & (w < 1)).all()
    ratio = module(x) / x
    torch.testing.assert_close(ratio, w.expand_as(x))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_one_leave_the_map_as_it_is(variant) -> None:
    module = sta_module(variant, 16, (4, 2, 3))
    nn.init.zeros_(module.conv2.weight)
    nn.init.constant_(module.conv2.bias, 50.0)  # sigmoid(50) is 1 in float32
    x = torch.randn(2, 16, 4, 2, 3)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_identity_init_starts_at_982(variant) -> None:
    module = sta_module(variant, 16, (4, 2, 3), identity_init=True)
    x = torch.randn(2, 16, 4, 2, 3)
    torch.testing.assert_close(module(x), x / (1 + math.exp(-4.0)))
    assert 1 / (1 + math.exp(-4.0)) == pytest.approx(0.982, abs=1e-4)


@pytest.mark.parametrize("variant", ["sta", "ta", "no_deconv"])
def test_any_number_of_frames_goes_through_the_same_parameters(variant) -> None:
    module = made(variant, 3, (4, 2, 3))
    for frames in (1, 4, 9):
        assert module(torch.randn(1, 3, frames, 2, 3, dtype=torch.float64)).shape == (1, 3, frames, 2, 3)
    assert count(module) == count(sta_module(variant, 3, (96, 2, 3)))


def test_every_cell_reaches_the_weights() -> None:
    module = made("sta", 3, (1, 2, 3))
    x = torch.randn(1, 3, 1, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        module.deconv.bias.fill_(5.0)  # keep the ReLU open
        before = module.weights(x)
        for cell in np.ndindex(3, 2, 3):
            moved = x.clone()
            moved[0, cell[0], 0, cell[1], cell[2]] += 1.0
            assert not torch.equal(module.weights(moved), before), cell


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_right(variant) -> None:
    module = made(variant, 3, (3, 2, 2))
    x = torch.randn(2, 3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_autocast_stays_close(variant) -> None:
    module = made(variant, 16, (4, 2, 3)).float()
    x = torch.randn(2, 16, 4, 2, 3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        w = module.weights(x).float()
    torch.testing.assert_close(w, module.weights(x), rtol=0.05, atol=0.05)


def test_maps_of_another_size_are_refused() -> None:
    """Broadcasting would let them through."""
    with pytest.raises(ValueError, match=r"maps of size \(2, 3\), got \(3, 3\)"):
        sta_module("sta", 3, (4, 2, 3))(torch.zeros(1, 3, 4, 3, 3))
    with pytest.raises(ValueError, match=r"maps of size \(4, 2, 3\), got \(5, 2, 3\)"):
        sta_module("sa", 3, (4, 2, 3))(torch.zeros(1, 3, 5, 2, 3))


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("cbam", {}, "variant 'cbam' is unknown; choose one of sta, ta, sa, se, no_deconv"),
        ("sta", {"deconv_stride": 0}, "deconv_stride=0"),
        ("no_deconv", {"deconv_stride": 2}, "deconv_stride=2 needs a Deconv"),
    ],
)
def test_unknown_switches_are_refused(variant, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        sta_module(variant, 3, (4, 2, 3), **options)


# ---- MARS


def test_mars_loss_is_cross_entropy_plus_alpha_squared_error() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 5)), np.array([0, 4, 2, 2])
    student, teacher = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[range(4), labels].mean() + 3.0 * ((student - teacher) ** 2).mean()
    tensors = (torch.from_numpy(array) for array in (logits, student, teacher, labels))
    assert mars_loss(*tensors, alpha=3.0).item() == pytest.approx(expected, rel=1e-5)


def test_mars_loss_is_cross_entropy_once_the_student_has_the_features() -> None:
    logits, features, labels = torch.randn(4, 5), torch.randn(4, 7), torch.tensor([0, 4, 2, 2])
    assert torch.equal(mars_loss(logits, features, features.clone(), labels), F.cross_entropy(logits, labels))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = nn.Linear(6, 7), nn.Linear(6, 7)
    x = torch.randn(4, 6)
    mars_loss(torch.randn(4, 5), student(x), teacher(x), torch.zeros(4, dtype=torch.long)).backward()
    assert student.weight.grad.abs().sum() > 0
    assert teacher.weight.grad is None


def test_mars_loss_in_half_precision_is_computed_in_float32() -> None:
    features = torch.full((2, 7), 300.0, dtype=torch.float16)  # its square would overflow
    loss = mars_loss(torch.zeros(2, 3, dtype=torch.float16), features, torch.zeros_like(features), torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(3) + 50 * 300.0**2)


def test_features_of_another_shape_are_refused() -> None:
    """Broadcasting would average over nonsense."""
    with pytest.raises(ValueError, match=r"\(4, 7\) cannot imitate a teacher's of \(4, 1\)"):
        mars_loss(torch.zeros(4, 5), torch.zeros(4, 7), torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))
