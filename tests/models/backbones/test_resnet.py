import pytest
import torch
from torch import Tensor, nn

from models.backbones.resnet import BasicBlock, Bottleneck, ResNet


@pytest.mark.parametrize(
    ("depth", "with_1000_classes", "trunk"),
    [
        (18, 11_689_512, 11_176_512),
        (34, 21_797_672, 21_284_672),
        (50, 25_557_032, 23_508_032),
        (101, 44_549_160, 42_500_160),
        (152, 60_192_808, 58_143_808),
    ],
)
def test_parameter_counts_are_the_published_ones(depth, with_1000_classes, trunk) -> None:
    with torch.device("meta"):
        full, headless = ResNet(depth, num_classes=1000), ResNet(depth)
    assert sum(parameter.numel() for parameter in full.parameters()) == with_1000_classes
    assert sum(parameter.numel() for parameter in headless.parameters()) == trunk


@pytest.mark.parametrize(
    ("depth", "name", "shape"),
    [
        (18, "conv1.weight", (64, 3, 7, 7)),
        (18, "bn1.running_mean", (64,)),
        (18, "layer1.1.conv2.weight", (64, 64, 3, 3)),
        (18, "layer4.0.downsample.0.weight", (512, 256, 1, 1)),
        (18, "layer4.0.downsample.1.num_batches_tracked", ()),
        (18, "fc.bias", (1000,)),
        (50, "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        (50, "layer3.5.conv3.weight", (1024, 256, 1, 1)),
        (50, "layer4.2.bn3.weight", (2048,)),
        (101, "layer3.22.conv2.weight", (256, 256, 3, 3)),
        (152, "layer2.7.conv1.weight", (128, 512, 1, 1)),
        (152, "fc.weight", (1000, 2048)),
    ],
)
def test_key_names_and_shapes_are_torchvisions(depth, name, shape) -> None:
    with torch.device("meta"):
        assert ResNet(depth, num_classes=1000).state_dict()[name].shape == shape


def test_the_first_basic_layer_has_no_projection_and_no_convolution_has_a_bias() -> None:
    with torch.device("meta"):
        names = list(ResNet(18).state_dict())
    assert not [name for name in names if name.startswith("layer1") and "downsample" in name]
    assert not [name for name in names if "conv" in name and name.endswith("bias")]


@pytest.mark.parametrize(("depth", "channels"), [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
@pytest.mark.parametrize(("size", "sides"), [(64, (16, 8, 4, 2)), (72, (18, 9, 5, 3))])
def test_layers_halve_the_map(depth, channels, size, sides) -> None:
    model = ResNet(depth).eval()
    shapes: list[tuple[int, ...]] = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        features = model(torch.zeros(1, 3, size, size))
    assert shapes == [(c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert features.shape == (1, model.feature_dim)


def test_the_maps_at_224_and_256_are_7_and_8_wide() -> None:
    with torch.device("meta"):
        model = ResNet(101).eval()
        assert model.feature_map(torch.zeros(1, 3, 224, 224)).shape == (1, 2048, 7, 7)
        assert model.feature_map(torch.zeros(1, 3, 256, 256)).shape == (1, 2048, 8, 8)


def convolve(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """Convolution as a sum over the kernel's positions, zero padding to the same size."""
    k = weight.shape[-1]
    pad = k // 2
    x = nn.functional.pad(x, (pad, pad, pad, pad))
    rows, cols = x.shape[-2] - k + 1, x.shape[-1] - k + 1
    out = sum(
        torch.einsum("oc,bchw->bohw", weight[:, :, i, j], x[:, :, i : i + rows, j : j + cols])
        for i in range(k)
        for j in range(k)
    )
    return out[:, :, ::stride, ::stride]


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, var, gain, shift = (
        t.detach().view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + shift


@torch.no_grad()
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_blocks_compute_residual_plus_projection(kind) -> None:
    torch.manual_seed(0)
    block = kind(8, 4, stride=2).eval().double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 8, 6, 10, dtype=torch.float64)
    shortcut = batch_norm(convolve(x, block.downsample[0].weight, stride=2), block.downsample[1])
    if kind is BasicBlock:
        y = batch_norm(convolve(x, block.conv1.weight, stride=2), block.bn1).clamp(min=0)
        y = batch_norm(convolve(y, block.conv2.weight), block.bn2)
    else:
        y = batch_norm(convolve(x, block.conv1.weight), block.bn1).clamp(min=0)
        y = batch_norm(convolve(y, block.conv2.weight, stride=2), block.bn2).clamp(min=0)
        y = batch_norm(convolve(y, block.conv3.weight), block.bn3)
    torch.testing.assert_close(block(x), (y + shortcut).clamp(min=0))


def test_a_block_of_the_same_shape_passes_its_input_on() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="20 is unknown.*18, 34, 50, 101, 152"):
        ResNet(20)
