import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones.p3d import P3D
from models.backbones.resnet import ResNet
from models.backbones.resnet3d import BasicBlock, Bottleneck, ResNet3D, ZeroPadShortcut, published_names
from models.weights import load_pretrained

torch.set_num_threads(1)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "options", "classes", "parameters"),
    [
        (18, {"shortcut": "A"}, 400, 33_235_280),
        (18, {"shortcut": "A"}, 101, 33_081_893),
        (18, {}, 400, 33_409_104),
        (18, {}, 101, 33_255_717),
        (152, {}, 400, 118_223_440),
        (152, {}, 101, 117_610_789),
        (152, {}, 51, 117_508_339),
        (101, {"cardinality": 32}, 400, 48_340_816),
        (101, {"cardinality": 32}, 101, 47_728_165),
        (101, {"cardinality": 32}, 51, 47_625_715),
        (101, {"cardinality": 32}, None, 47_521_216),
        (101, {"cardinality": 32, "in_channels": 2}, None, 47_521_216 - 21_952),
    ],
)
def test_parameter_counts_are_the_published_ones(depth, options, classes, parameters) -> None:
    with torch.device("meta"):
        assert count(ResNet3D(depth, num_classes=classes, **options)) == parameters


@pytest.mark.parametrize(
    ("depth", "cardinality", "channels"),
    [(18, 1, (64, 128, 256, 512)), (152, 1, (256, 512, 1024, 2048)), (101, 32, (256, 512, 1024, 2048))],
)
@pytest.mark.parametrize(("frames", "lengths"), [(16, (8, 4, 2, 1)), (64, (32, 16, 8, 4))])
def test_layers_have_the_published_shapes(depth, cardinality, channels, frames, lengths) -> None:
    with torch.device("meta"):
        model = ResNet3D(depth, cardinality=cardinality)
        shapes: list[tuple[int, ...]] = []
        for blocks in model.stages().values():
            blocks[-1].register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
        features = model(torch.zeros(2, 3, frames, 112, 112))
    assert shapes == [(c, t, s, s) for c, t, s in zip(channels, lengths, (28, 14, 7, 4), strict=True)]
    assert features.shape == (2, channels[-1])


@pytest.mark.parametrize(
    ("depth", "options", "name", "shape"),
    [
        (18, {}, "conv1.weight", (64, 3, 7, 7, 7)),
        (18, {}, "layer1.1.conv2.weight", (64, 64, 3, 3, 3)),
        (18, {}, "layer4.0.downsample.0.weight", (512, 256, 1, 1, 1)),
        (18, {}, "layer4.0.downsample.1.running_var", (512,)),
        (152, {}, "layer1.0.downsample.0.weight", (256, 64, 1, 1, 1)),
        (152, {}, "layer3.35.conv2.weight", (256, 256, 3, 3, 3)),
        (101, {"cardinality": 32}, "layer1.0.conv1.weight", (128, 64, 1, 1, 1)),
        (101, {"cardinality": 32}, "layer3.22.conv2.weight", (512, 16, 3, 3, 3)),
        (101, {"cardinality": 32}, "layer4.2.conv3.weight", (2048, 1024, 1, 1, 1)),
        (101, {"cardinality": 32}, "fc.weight", (400, 2048)),
    ],
)
def test_key_names_and_shapes_are_those_of_the_files(depth, options, name, shape) -> None:
    with torch.device("meta"):
        assert ResNet3D(depth, num_classes=400, **options).state_dict()[name].shape == shape


def test_type_a_differs_from_type_b_by_the_projections_alone() -> None:
    with torch.device("meta"):
        plain, projected = set(ResNet3D(18, shortcut="A").state_dict()), set(ResNet3D(18).state_dict())
    assert plain < projected
    assert {name.rsplit(".", 2)[0] for name in projected - plain} == {f"layer{i}.0.downsample" for i in (2, 3, 4)}


def convolve(x: np.ndarray, weight: np.ndarray, *, stride: int = 1, groups: int = 1) -> np.ndarray:
    """3D convolution as a sum over the kernel's positions, zero padding to the same size."""
    if groups > 1:
        parts = zip(np.split(x, groups, axis=1), np.split(weight, groups, axis=0), strict=True)
        return np.concatenate([convolve(part, kernel, stride=stride) for part, kernel in parts], axis=1)
    k = weight.shape[-1]
    pad = k // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (pad, pad)))
    t, h, w = (n - k + 1 for n in x.shape[2:])
    out = sum(
        np.einsum("oc,bcthw->bothw", weight[:, :, i, j, m], x[:, :, i : i + t, j : j + h, m : m + w])
        for i in range(k)
        for j in range(k)
        for m in range(k)
    )
    return out[:, :, ::stride, ::stride, ::stride]


def batch_norm(x: np.ndarray, norm: nn.BatchNorm3d) -> np.ndarray:
    mean, var, gain, shift = (
        tensor.detach().numpy()[:, None, None, None]
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gain + shift


def unsettled(model: nn.Module) -> nn.Module:
    """The same network with batch statistics that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def expected_shortcut(block: nn.Module, x: np.ndarray, *, kind: str, channels: int) -> np.ndarray:
    if kind == "B":
        conv, norm = block.downsample
        return batch_norm(convolve(x, conv.weight.numpy(), stride=2), norm)
    out = np.zeros((x.shape[0], channels, *((n + 1) // 2 for n in x.shape[2:])))
    out[:, : x.shape[1]] = x[:, :, ::2, ::2, ::2]
    return out


@torch.no_grad()
@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_basic_block_computes_what_the_paper_draws(kind) -> None:
    torch.manual_seed(0)
    block = unsettled(BasicBlock(3, 5, stride=2, shortcut=kind)).double()
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    y = batch_norm(convolve(x.numpy(), block.conv1.weight.numpy(), stride=2), block.bn1).clip(0)
    y = batch_norm(convolve(y, block.conv2.weight.numpy()), block.bn2)
    y += expected_shortcut(block, x.numpy(), kind=kind, channels=5)
    np.testing.assert_allclose(block(x), y.clip(0), atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_bottleneck_computes_what_the_paper_draws(groups) -> None:
    torch.manual_seed(1)
    block = unsettled(Bottleneck(3, 4, 8, stride=2, groups=groups, shortcut="B")).double()
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    y = batch_norm(convolve(x.numpy(), block.conv1.weight.numpy()), block.bn1).clip(0)
    y = batch_norm(convolve(y, block.conv2.weight.numpy(), stride=2, groups=groups), block.bn2).clip(0)
    y = batch_norm(convolve(y, block.conv3.weight.numpy()), block.bn3)
    y += expected_shortcut(block, x.numpy(), kind="B", channels=8)
    np.testing.assert_allclose(block(x), y.clip(0), atol=1e-12)


def test_the_type_a_shortcut_passes_gradients() -> None:
    """The released code cut them."""
    x = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ZeroPadShortcut(3, stride=2), (x,))
    ZeroPadShortcut(3, stride=2)(x).sum().backward()
    expected = torch.zeros_like(x)
    expected[:, :, ::2, ::2, ::2] = 1.0
    assert torch.equal(x.grad, expected)


def test_a_block_of_the_same_shape_passes_its_input_on() -> None:
    block = Bottleneck(8, 4, 8, stride=1, groups=2, shortcut="A").eval()
    nn.init.zeros_(block.bn3.weight)
    x = torch.rand(1, 8, 2, 3, 3)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("options", [{"depth": 18, "shortcut": "A"}, {"depth": 50, "cardinality": 4, "in_channels": 2}])
def test_every_parameter_of_a_slim_network_gets_a_gradient(options) -> None:
    torch.manual_seed(2)
    model = ResNet3D(width=4, num_classes=3, **options)
    x = torch.randn(3, model.in_channels, 16, 48, 48)
    F.cross_entropy(model(x), torch.tensor([0, 2, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_features_are_the_mean_of_the_map() -> None:
    torch.manual_seed(3)
    model = ResNet3D(18, width=2).eval()
    x = torch.randn(1, 3, 20, 40, 72)
    with torch.no_grad():
        maps = model.feature_map(x)
        assert maps.shape == (1, 16, 2, 2, 3)
        torch.testing.assert_close(model(x), maps.flatten(2).mean(dim=2))


def test_releases_have_their_pixel_convention() -> None:
    with torch.device("meta"):
        old, new = ResNet3D(18, width=2).input_spec, ResNet3D(18, width=2, release="2020").input_spec
    assert (old.max_value, old.mean, old.std) == (255.0, (114.7748, 107.7354, 99.475), (1.0, 1.0, 1.0))
    assert (old.flow_mean, old.flow_std) == (127.5, 1.0)
    assert (new.max_value, new.mean, new.std) == (1.0, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
    assert old.channel_order == new.channel_order == "RGB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 10}, "depth 10 is unknown.*18, 34, 50, 101, 152"),
        ({"depth": 18, "cardinality": 32}, "cardinality=32 does not fit depth 18"),
        ({"depth": 101, "cardinality": 0}, "cardinality=0"),
        ({"depth": 18, "shortcut": "C"}, "shortcut='C'"),
        ({"depth": 18, "release": "2019"}, "release='2019'.*2018, 2020"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet3D(**options)


def old_file(model: nn.Module) -> dict:
    """As DataParallel and an old PyTorch wrote it: a prefix, no num_batches_tracked, the training beside it."""
    tensors = {
        f"module.{name}": tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return {"epoch": 200, "arch": "resnet-18", "state_dict": tensors, "optimizer": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_an_old_file_loads(shortcut, tmp_path) -> None:
    torch.manual_seed(4)
    trained = unsettled(ResNet3D(18, shortcut=shortcut, width=2, num_classes=7))
    torch.save(old_file(trained), tmp_path / "resnet-18-kinetics.pth")
    model = ResNet3D(18, shortcut=shortcut, width=2, num_classes=7).eval()
    report = load_pretrained(model, tmp_path / "resnet-18-kinetics.pth")
    assert report.missing == report.unexpected == report.dropped == ()
    x = torch.randn(1, 3, 16, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), trained(x))


def test_a_file_of_the_other_shortcut_does_not_load(tmp_path) -> None:
    torch.save(old_file(ResNet3D(18, shortcut="A", width=2)), tmp_path / "resnet-18-kinetics.pth")
    with pytest.raises(ValueError, match=r"missing \(layer2.0.downsample.0.weight"):
        load_pretrained(ResNet3D(18, width=2), tmp_path / "resnet-18-kinetics.pth")


def test_colour_filters_become_flow_filters(tmp_path) -> None:
    trained = ResNet3D(18, width=2)
    torch.save(trained.state_dict(), tmp_path / "r3d18.pth")
    model = ResNet3D(18, width=2, in_channels=2)
    assert load_pretrained(model, tmp_path / "r3d18.pth").reshaped == ("conv1.weight",)
    torch.testing.assert_close(model.conv1.weight[:, 1], trained.conv1.weight.mean(dim=1))


def test_published_names_are_ours_and_other_networks_are_refused() -> None:
    with torch.device("meta"):
        for release in ("2018", "2020"):
            state = ResNet3D(50, release=release, width=2, num_classes=3).state_dict()
            assert published_names(state) == state
        for other in (ResNet(18), P3D(63, width=2)):
            with pytest.raises(ValueError, match="not one of a 3D ResNet or ResNeXt.*first tensors are conv1.weight"):
                published_names(other.state_dict())
    with pytest.raises(ValueError, match="first tensors are features.conv0.weight"):
        published_names({"features.conv0.weight": torch.zeros(64, 3, 7, 7, 7)})
