import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.bn_inception import BNInception


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def trunk() -> BNInception:
    """A headless float64 network whose BN statistics are not the trivial ones."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = BNInception().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return model.double()


@pytest.mark.parametrize(
    ("in_channels", "num_classes", "parameters"),
    [(3, 1000, 11_295_240), (3, None, 10_270_240), (3, 101, 10_373_765), (3, 51, 10_322_515), (10, 101, 10_395_717)],
)
def test_parameter_counts_are_the_published_ones(in_channels, num_classes, parameters) -> None:
    assert count(BNInception(in_channels=in_channels, num_classes=num_classes)) == parameters


def test_it_has_69_convolutions_and_69_batch_norms(trunk) -> None:
    assert sum(isinstance(module, nn.Conv2d) for module in trunk.modules()) == 69
    assert sum(isinstance(module, nn.BatchNorm2d) for module in trunk.modules()) == 69


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1_7x7_s2.weight", (64, 3, 7, 7)),
        ("conv1_7x7_s2.bias", (64,)),
        ("conv1_7x7_s2_bn.running_var", (64,)),
        ("conv2_3x3_reduce_bn.weight", (64,)),
        ("conv2_3x3.weight", (192, 64, 3, 3)),
        ("inception_3a_1x1.weight", (64, 192, 1, 1)),
        ("inception_3a_double_3x3_reduce.weight", (64, 192, 1, 1)),
        ("inception_3a_pool_proj_bn.running_mean", (32,)),
        ("inception_3c_3x3.weight", (160, 128, 3, 3)),
        ("inception_4d_double_3x3_1.weight", (192, 160, 3, 3)),
        ("inception_4e_double_3x3_2_bn.bias", (256,)),
        ("inception_5b_pool_proj.weight", (128, 1024, 1, 1)),
        ("fc.weight", (1000, 1024)),
    ],
)
def test_key_names_and_shapes_are_the_published_ones(name, shape) -> None:
    assert BNInception(num_classes=1000).state_dict()[name].shape == shape


def test_stride_2_blocks_have_neither_1x1_nor_projection(trunk) -> None:
    names = set(trunk.state_dict())
    for block in ("3c", "4e"):
        assert f"inception_{block}_1x1.weight" not in names
        assert f"inception_{block}_pool_proj.weight" not in names


def block_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each block receives: the input of its 3x3 reduction; and "out", the last feature map."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name.split("_")[1], args[0]))
        for name, module in model.named_modules()
        if name.startswith("inception") and name.endswith("_3x3_reduce") and "double" not in name
    ]
    with torch.no_grad():
        seen["out"] = model.feature_map(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_maps_have_the_sizes_of_the_table(trunk) -> None:
    seen = block_inputs(trunk, torch.zeros(1, 3, 224, 224, dtype=torch.float64))
    assert {name: tuple(x.shape[1:]) for name, x in seen.items()} == {
        "3a": (192, 28, 28),
        "3b": (256, 28, 28),
        "3c": (320, 28, 28),
        "4a": (576, 14, 14),
        "4b": (576, 14, 14),
        "4c": (576, 14, 14),
        "4d": (608, 14, 14),
        "4e": (608, 14, 14),
        "5a": (1056, 7, 7),
        "5b": (1024, 7, 7),
        "out": (1024, 7, 7),
    }


def conv(state: dict[str, Tensor], name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    """Convolution, BN by its formula, ReLU, straight from the published names."""
    weight = state[f"{name}.weight"]
    x = F.conv2d(x, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)
    mean, var, gain, shift = (
        state[f"{name}_bn.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (var + 1e-5).sqrt() * gain + shift).clamp(min=0)


@pytest.mark.parametrize(
    ("block", "following", "kind"),
    [("3a", "3b", "avg"), ("3c", "4a", "stride"), ("4d", "4e", "avg"), ("5b", "out", "max")],
)
def test_blocks_join_their_branches_as_published(trunk, block, following, kind) -> None:
    seen = block_inputs(trunk, torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double() * 50)
    x, state, name = seen[block], trunk.state_dict(), f"inception_{block}"
    stride = 2 if kind == "stride" else 1
    three = conv(state, f"{name}_3x3", conv(state, f"{name}_3x3_reduce", x), stride=stride)
    double = conv(state, f"{name}_double_3x3_1", conv(state, f"{name}_double_3x3_reduce", x))
    double = conv(state, f"{name}_double_3x3_2", double, stride=stride)
    if kind == "stride":
        # ceil mode without padding on an even map: one more row and column that no value fills
        bordered = F.pad(x, (0, 1, 0, 1), value=float("-inf"))
        expected = torch.cat([three, double, F.max_pool2d(bordered, 3, stride=2)], dim=1)
    else:
        filler = 0.0 if kind == "avg" else float("-inf")
        windows = F.pad(x, (1, 1, 1, 1), value=filler).unfold(2, 3, 1).unfold(3, 3, 1)
        pooled = windows.mean((-2, -1)) if kind == "avg" else windows.amax((-2, -1))
        one = conv(state, f"{name}_1x1", x)
        expected = torch.cat([one, three, double, conv(state, f"{name}_pool_proj", pooled)], dim=1)
    torch.testing.assert_close(seen[following], expected)


def test_features_are_the_spatial_mean_and_logits_their_linear_map() -> None:
    torch.manual_seed(0)
    model = BNInception(in_channels=10, num_classes=5).eval()
    x = torch.randn(2, 10, 64, 32)
    with torch.no_grad():
        features = model.feature_map(x).flatten(2).sum(-1) / (2 * 1)
        torch.testing.assert_close(model(x), features @ model.fc.weight.T + model.fc.bias)


@pytest.mark.parametrize("size", [(240, 224), (224, 100), (16, 32)])
def test_sides_that_break_the_pools_are_refused(trunk, size) -> None:
    with pytest.raises(ValueError, match=r"multiples of 32.*" + str(size[0])):
        trunk(torch.zeros(1, 3, *size))
