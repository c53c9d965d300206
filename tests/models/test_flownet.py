import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.build import build
from models.flownet import (
    FlowPredictor,
    SpatialAttentionNetwork,
    endpoint_error,
    flow_loss,
    load_encoder,
    relaxed_error,
    save_encoder,
)

SLIM = 1 / 32
# published names and shapes of FlowNetS's encoder
ENCODER = {
    "conv1": (64, 6, 7, 7),
    "conv2": (128, 64, 5, 5),
    "conv3": (256, 128, 5, 5),
    "conv3_1": (256, 256, 3, 3),
    "conv4": (512, 256, 3, 3),
    "conv4_1": (512, 512, 3, 3),
    "conv5": (512, 512, 3, 3),
    "conv5_1": (512, 512, 3, 3),
    "conv6": (1024, 512, 3, 3),
    "conv6_1": (1024, 1024, 3, 3),
}
# some of its decoder, which has no place here
DECODER = {"deconv5.0.weight": (1024, 512, 4, 4), "predict_flow6.weight": (2, 1024, 3, 3)}


def predictor(*, seed: int = 0, **options) -> FlowPredictor:
    torch.manual_seed(seed)
    return FlowPredictor(**{"width": SLIM} | options)


def frames(*shape: int, seed: int = 1) -> Tensor:
    """B 6 H W bytes."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# the networks


def test_counts_names_and_shapes_are_those_of_flownet_s() -> None:
    with torch.device("meta"):
        model = FlowPredictor()
    state = {name: tuple(tensor.shape) for name, tensor in model.san.state_dict().items()}
    expected = {f"{name}.0.weight": shape for name, shape in ENCODER.items()}
    expected |= {f"{name}.0.bias": shape[:1] for name, shape in ENCODER.items()}
    assert state == expected
    assert sum(p.numel() for p in model.san.parameters()) == 24_050_752
    assert sum(p.numel() for p in model.expanded.parameters()) == 6_196_354
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(("stride", "side"), [(1, 7), (2, 4)])
def test_the_map_at_224_pixels(stride, side) -> None:
    with torch.device("meta"):
        model = FlowPredictor(last_pool_stride=stride)
        x = torch.zeros(1, 6, 224, 224)
        assert model.san(x).shape == (1, 1024, side, side)
        assert model(x).shape == (1, 2, 16 * side, 16 * side)
        assert model.san.map_side(224) == side


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [16, 32, 33, 64, 100, 160])
def test_the_side_of_the_map_is_known_without_running(stride, size) -> None:
    san = SpatialAttentionNetwork(width=1 / 64, last_pool_stride=stride)
    assert san(torch.zeros(1, 6, size, size)).shape[-2:] == (san.map_side(size),) * 2


def test_width_multiplies_every_number_of_channels() -> None:
    full = [*(shape[0] for shape in ENCODER.values()), 512, 256, 128, 2]
    slim = [module.out_channels for module in predictor(width=1 / 8).modules() if isinstance(module, nn.Conv2d)]
    assert slim == [*(channels // 8 for channels in full[:-1]), 2]


@pytest.mark.parametrize("width", [0.0, -1.0, 1.5])
def test_widths_that_are_no_fraction_are_refused(width) -> None:
    with pytest.raises(ValueError, match=f"san_width={width}"):
        SpatialAttentionNetwork(width=width)


def convolve(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Convolution with zero padding as a sum over the kernel's positions."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    k = weight.shape[-1]
    x = F.pad(x, (k // 2,) * 4)
    rows, cols = x.shape[-2] - k + 1, x.shape[-1] - k + 1
    out = sum(
        torch.einsum("oc,bchw->bohw", weight[:, :, i, j], x[:, :, i : i + rows, j : j + cols])
        for i in range(k)
        for j in range(k)
    )
    return out + bias.view(-1, 1, 1)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_equation_3_layer_by_layer(stride) -> None:
    model = predictor(last_pool_stride=stride).double()
    for p in model.parameters():
        p += 0.05 * torch.randn_like(p)
    raw = frames(2, 6, 64, 128)
    x = raw.double() / 255
    x = x - torch.tensor([0.411, 0.432, 0.45] * 2, dtype=torch.float64).view(6, 1, 1)
    state = model.state_dict()
    for name in ENCODER:
        x = leaky(convolve(x, state, f"san.{name}.0"))
        if name in ("conv1", "conv2", "conv3_1", "conv4_1", "conv5_1") or (name == "conv6_1" and stride == 2):
            x = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax(dim=(-3, -1))  # halves of even maps
    if stride == 1:
        x = F.pad(x, (1, 1, 1, 1), value=-math.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax(dim=(-2, -1))
    torch.testing.assert_close(model.san(raw), x)
    for layer in (1, 4, 7, 10):
        x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        x = convolve(x, state, f"expanded.{layer}")
        x = leaky(x) if layer != 10 else x
    torch.testing.assert_close(model(raw), x)


# equation (4)


@pytest.mark.parametrize(("theta", "share"), [("exp2", 0.1353352832366127), ("hundredth", 0.01)])
def test_equation_4_against_loops(theta, share, rng) -> None:
    predicted = rng.normal(size=(3, 2, 4, 6)).astype(np.float32)
    flow = rng.normal(scale=25, size=(3, 2, 8, 12)).astype(np.float32)
    expected = 0.0
    for b in range(3):
        for c in range(2):
            for i in range(4):
                for j in range(6):
                    f = flow[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() / 20
                    expected += max(abs(predicted[b, c, i, j] - f) - share * abs(f), 0) ** 2 / 3
    got = flow_loss(torch.from_numpy(predicted), torch.from_numpy(flow), theta=theta)
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_without_theta_it_is_the_squared_error() -> None:
    predicted, target = torch.randn(2, 2, 5, 5), torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(relaxed_error(predicted, target, share=0.0), (predicted - target) ** 2)
    still = torch.zeros(2, 2, 10, 10)  # theta is a share of the flow
    torch.testing.assert_close(flow_loss(predicted, still), (predicted**2).sum() / 2)


def test_residuals_below_theta_give_no_gradient_and_those_above_do() -> None:
    flow = torch.full((1, 2, 4, 4), -40.0)  # -2 in units of 20 px, theta 0.27
    predicted = torch.full((1, 2, 4, 4), -2.0)
    predicted[:, 0, 0] += 0.26
    predicted[:, 0, 1] -= 0.26
    predicted[:, 1, 0] += 0.28
    predicted[:, 1, 1] -= 0.28
    predicted.requires_grad_()
    flow_loss(predicted, flow).backward()
    expected = torch.zeros(1, 2, 4, 4)
    expected[:, 1, 0] = 2 * (0.28 - 2 * math.exp(-2))
    expected[:, 1, 1] = -2 * (0.28 - 2 * math.exp(-2))
    torch.testing.assert_close(predicted.grad, expected, rtol=1e-3, atol=1e-6)


def test_an_unknown_theta_is_refused() -> None:
    with pytest.raises(ValueError, match="'exp3' is unknown; choose one of exp2, hundredth"):
        flow_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), theta="exp3")


def test_the_endpoint_error_is_in_pixels() -> None:
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0, :, :4] = 3.0
    flow[:, 1, :, :4] = 4.0
    assert endpoint_error(torch.zeros(1, 2, 4, 4), flow).item() == pytest.approx(2.5)
    assert endpoint_error(flow / 20, flow).item() == pytest.approx(0, abs=1e-5)


def test_flow_is_learnt_from_frames() -> None:
    """A texture that moves by one of four vectors: after training the error is a fraction of that of no motion."""
    texture = F.interpolate(torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)), size=80)
    moves = [(-6, 0), (6, 0), (0, -6), (0, 6)]
    x, flow = torch.zeros(4, 6, 64, 64), torch.zeros(4, 2, 64, 64)
    for number, (dx, dy) in enumerate(moves):
        x[number, :3] = 255 * texture[0, :, 8:72, 8:72]
        x[number, 3:] = 255 * texture[0, :, 8 - dy : 72 - dy, 8 - dx : 72 - dx]
        flow[number] = torch.tensor([dx, dy]).view(2, 1, 1)
    model = predictor(width=1 / 8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimiser.zero_grad()
        flow_loss(model(x), flow).backward()
        optimiser.step()
    with torch.no_grad():
        assert endpoint_error(model(x), flow) < 0.4 * endpoint_error(torch.zeros(4, 2, 32, 32), flow)


# weights


def flownet_s(*, width: float = 1.0, prefix: str = "") -> dict[str, Tensor]:
    """Encoder and some decoder tensors as the published files have them."""
    generator, state = torch.Generator().manual_seed(3), {}
    for name, shape in ENCODER.items():
        shape = (int(shape[0] * width), *(int(n * width) if n > 7 else n for n in shape[1:]))
        state[f"{prefix}{name}.0.weight"] = torch.randn(shape, generator=generator)
        state[f"{prefix}{name}.0.bias"] = torch.randn(shape[0], generator=generator)
    return state | {f"{prefix}{name}": torch.zeros(shape[0]) for name, shape in DECODER.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights_load_by_name_and_the_rest_is_reported(prefix, tmp_path) -> None:
    state = flownet_s(width=SLIM, prefix=prefix)
    torch.save({"arch": "flownets", "state_dict": state, "div_flow": 20}, tmp_path / "flownets.pth")
    san = SpatialAttentionNetwork(width=SLIM)
    report = load_encoder(san, tmp_path / "flownets.pth")
    for name, tensor in san.state_dict().items():
        assert torch.equal(tensor, state[prefix + name]), name
    assert len(report.loaded) == 20
    assert report.unexpected == tuple(DECODER)
    assert f"{len(DECODER)} unexpected ({', '.join(DECODER)})" in str(report)


def test_published_weights_fit_at_full_width(tmp_path) -> None:
    model = {"num_classes": 4, "modality": "rgb", "in_channels": 6, "segments": 1, "dropout": 0.0, "input_size": 32}
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in flownet_s().items()}  # a few bytes each
    torch.save({"state_dict": state}, tmp_path / "flownets.pth")
    path = str(tmp_path / "flownets.pth")
    built = build(**model, family="sta_cnn", spatial="san", san_pretrained=path)
    assert built.san.conv6_1[0].weight.abs().max() == 0
    assert built.san_load_report.unexpected == tuple(DECODER)


def test_a_pretrained_network_moves_into_the_classifier(tmp_path) -> None:
    model = predictor()
    save_encoder(tmp_path / "san.pt", model.san)
    save_encoder(tmp_path / "again.pt", model.san)
    assert (tmp_path / "san.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()
    options = {"num_classes": 4, "modality": "rgb", "in_channels": 6, "segments": 1, "dropout": 0.0, "input_size": 32}
    options |= {"family": "sta_cnn", "spatial": "san", "san_width": SLIM, "san_pretrained": str(tmp_path / "san.pt")}
    built = build(**options)
    for name, tensor in model.san.state_dict().items():
        assert torch.equal(built.san.state_dict()[name], tensor), name
    assert built.san_load_report.unexpected == ()
    (tmp_path / "san.pt").unlink()
    build(**options, read_pretrained=False)
    with pytest.raises(FileNotFoundError):
        build(**options)


def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path) -> None:
    san = SpatialAttentionNetwork(width=SLIM)
    before = {name: tensor.clone() for name, tensor in san.state_dict().items()}
    save_encoder(tmp_path / "wide.pt", SpatialAttentionNetwork(width=2 * SLIM))
    with pytest.raises(
        ValueError, match=r"20 of 20 tensors.*conv1.0.weight \(4, 6, 7, 7\) for \(2, 6, 7, 7\).*san_width"
    ):
        load_encoder(san, tmp_path / "wide.pt")
    batch_norm = {name: tensor for name, tensor in flownet_s(width=SLIM).items() if not name.endswith("0.bias")}
    torch.save({"state_dict": batch_norm}, tmp_path / "bn.pth")
    with pytest.raises(ValueError, match=r"10 of 20 tensors are missing.*conv1.0.bias.*without BatchNorm"):
        load_encoder(san, tmp_path / "bn.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth cannot be read"):
        load_encoder(san, tmp_path / "text.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in san.state_dict().items())
