import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones.p3d import P3D, PlaneBlock, PseudoBlock, published_names
from models.backbones.resnet3d import ResNet3D

torch.set_num_threads(1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("classes", "parameters"), [(400, 66_492_240), (600, 66_902_040), (101, 65_879_589), (51, 65_777_139)]
)
def test_parameter_counts_are_the_published_ones(classes, parameters) -> None:
    with torch.device("meta"):
        assert count(P3D(199, num_classes=classes)) == parameters


@pytest.mark.parametrize(("size", "last"), [(160, 5), (224, 7)])
def test_layers_have_the_published_shapes(size, last) -> None:
    with torch.device("meta"):
        model = P3D(199)
        shapes: list[tuple[int, ...]] = []
        model.conv1.register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
        for blocks in model.stages().values():
            blocks[-1].register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
        maps = model.feature_map(torch.zeros(2, 3, 16, size, size))
    s = size // 4
    assert shapes == [
        (64, 16, 2 * s, 2 * s),
        (256, 8, s, s),
        (512, 4, s // 2, s // 2),
        (1024, 2, s // 4, s // 4),
        (2048, last, last),
    ]
    assert maps.shape == (2, 2048, 1, last, last)
    assert model.feature_dim == 2048


def test_forms_cycle_through_the_first_47_blocks() -> None:
    with torch.device("meta"):
        blocks = [block for stage in P3D(199).stages().values() for block in stage]
    forms = "".join(block.form if isinstance(block, PseudoBlock) else "-" for block in blocks)
    assert forms == "ABC" * 15 + "AB" + "---"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.weight", (64, 3, 1, 7, 7)),
        ("layer1.0.conv2.weight", (64, 64, 1, 3, 3)),
        ("layer1.0.conv3.weight", (64, 64, 3, 1, 1)),
        ("layer1.0.downsample.0.weight", (256, 64, 1, 1, 1)),
        ("layer2.7.bn4.running_var", (512,)),
        ("layer3.35.conv4.weight", (1024, 256, 1, 1, 1)),
        ("layer4.0.conv_normal.weight", (512, 512, 3, 3)),
        ("layer4.0.downsample.0.weight", (2048, 1024, 1, 1)),
        ("layer4.2.bn_normal.bias", (512,)),
        ("fc.weight", (400, 2048)),
    ],
)
def test_key_names_and_shapes_are_the_ports(name, shape) -> None:
    with torch.device("meta"):
        assert P3D(199, num_classes=400).state_dict()[name].shape == shape


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3D convolution as a sum over the kernel's positions, zero padding to the same size."""
    kernel = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), *((k // 2, k // 2) for k in kernel)))
    t, h, w = (n - k + 1 for n, k in zip(x.shape[2:], kernel, strict=True))
    return sum(
        np.einsum("oc,bcthw->bothw", weight[:, :, i, j, m], x[:, :, i : i + t, j : j + h, m : m + w])
        for i in range(kernel[0])
        for j in range(kernel[1])
        for m in range(kernel[2])
    )


def batch_norm(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    mean, var, gain, shift = (
        tensor.detach().numpy()[:, None, None, None]
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gain + shift


def unsettled(model: nn.Module) -> nn.Module:
    """The same network with batch statistics that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("form", ["A", "B", "C"])
@pytest.mark.parametrize("stride", [1, 2])
def test_pseudo_blocks_compute_the_papers_three_forms(form, stride) -> None:
    torch.manual_seed(0)
    block = unsettled(PseudoBlock(3, 2, stride=stride, project=True, form=form)).double()
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    strided = x.numpy()[:, :, :, ::stride, ::stride]  # a 1x1x1 convolution with a stride over space

    def unit(y: np.ndarray, number: int) -> np.ndarray:
        conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        return batch_norm(convolve(y, conv.weight.numpy()), norm)

    y = unit(strided, 1).clip(0)
    space = unit(y, 2).clip(0)
    match form:
        case "A":
            y = unit(space, 3).clip(0)
        case "B":
            y = space + unit(y, 3).clip(0)
        case "C":
            y = space + unit(space, 3).clip(0)
    conv, norm = block.downsample
    expected = unit(y, 4) + batch_norm(convolve(strided, conv.weight.numpy()), norm)
    np.testing.assert_allclose(block(x), expected.clip(0), atol=1e-12)


@torch.no_grad()
def test_the_plane_block_is_a_2d_bottleneck() -> None:
    torch.manual_seed(1)
    block = unsettled(PlaneBlock(3, 2, stride=2, project=True)).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    strided = x.numpy()[:, :, None, ::2, ::2]

    def unit(y: np.ndarray, conv: nn.Conv2d, norm: nn.Module) -> np.ndarray:
        return batch_norm(convolve(y, conv.weight.numpy()[:, :, None]), norm)

    y = unit(strided, block.conv1, block.bn1).clip(0)
    y = unit(y, block.conv_normal, block.bn_normal).clip(0)
    expected = unit(y, block.conv4, block.bn4) + unit(strided, *block.downsample)
    np.testing.assert_allclose(block(x), expected.clip(0)[:, :, 0], atol=1e-12)


def test_every_parameter_of_a_slim_network_gets_a_gradient() -> None:
    torch.manual_seed(2)
    model = P3D(63, in_channels=2, width=4, num_classes=3)
    F.cross_entropy(model(torch.randn(2, 2, 16, 64, 64)), torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_before_the_classifier_alone() -> None:
    torch.manual_seed(3)
    model = P3D(63, width=2, num_classes=3).eval()
    headless = P3D(63, width=2).eval()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 17, 32, 32)
    with torch.no_grad():
        features = headless(x)
        torch.testing.assert_close(model(x), model.fc(features))
        model.dropout.train()
        assert not torch.equal(model(x), model.fc(features))


@pytest.mark.parametrize("frames", [8, 15, 32])
def test_clips_that_do_not_leave_one_frame_are_refused(frames) -> None:
    with torch.device("meta"):
        model = P3D(63, width=2)
        with pytest.raises(ValueError, match=f"16 to 31 frames, got {frames}"):
            model(torch.zeros(1, 3, frames, 32, 32))


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="depth 101 is unknown.*63, 131, 199"):
        P3D(101)


def test_the_ports_file_becomes_the_same_network() -> None:
    with torch.device("meta"):
        model = P3D(199, num_classes=400)
    expected = model.state_dict()
    file = {
        name.replace("conv1.", "conv1_custom.") if name.startswith("conv1.") else name: t
        for name, t in expected.items()
    }
    assert "conv1_custom.weight" in file
    assert "layer1.0.conv1.weight" in file
    assert published_names(file) == expected
    assert published_names(expected) == expected


def test_files_of_other_networks_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(ValueError, match="not one of P3D.*first tensors are conv1.weight"):
            published_names(ResNet3D(50, width=2).state_dict())
        partial = {k: v for k, v in P3D(63, width=2).state_dict().items() if not k.startswith("layer4")}
        with pytest.raises(ValueError, match="not one of P3D"):
            published_names(partial)
