import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.res3d18 import BasicBlock, Res3D18, published_names
from models.backbones.resnet import ResNet

torch.set_num_threads(1)

BLOCKS = ("2a", "2b", "3a", "3b", "4a", "4b", "5a", "5b")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def unsettled(model: nn.Module) -> nn.Module:
    """The same network with batch statistics that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("classes", "parameters"), [(487, 33_420_327), (101, 33_222_309), (51, 33_196_659), (15, 33_178_191)]
)
def test_parameter_counts_are_the_published_ones(classes, parameters) -> None:
    with torch.device("meta"):
        assert count(Res3D18(num_classes=classes)) == parameters


def test_sixteen_frames_keep_two_in_the_features() -> None:
    """S-CNN: 1024 features and 21 classes."""
    with torch.device("meta"):
        model = Res3D18(frames=16, num_classes=21)
        assert model.feature_dim == 1024
        assert count(model) == 33_192_021


@pytest.mark.parametrize(("frames", "lengths"), [(8, (8, 8, 4, 2, 1)), (16, (16, 16, 8, 4, 2))])
def test_stages_have_the_published_shapes(frames, lengths) -> None:
    with torch.device("meta"):
        model = Res3D18(frames=frames)
        x = torch.zeros(2, 3, frames, 112, 112)
        stem = model.conv1(x)
        shapes: list[tuple[int, ...]] = [tuple(stem.shape[1:])]
        for _, last in model.stages().values():
            last.register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
        features = model(x)
    sides, channels = (56, 56, 28, 14, 7), (64, 64, 128, 256, 512)
    assert shapes == [(c, t, s, s) for c, t, s in zip(channels, lengths, sides, strict=True)]
    assert features.shape == (2, 512 * lengths[-1])


def test_key_names() -> None:
    with torch.device("meta"):
        names = set(Res3D18(num_classes=2).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{part}" for part in norm}
    for block in BLOCKS:
        expected |= {f"res{block}.conv1.weight", f"res{block}.conv2.weight"}
        expected |= {f"res{block}.{bn}.{part}" for bn in ("bn1", "bn2") for part in norm}
        if block.endswith("a"):  # stage 2 has a projection too
            expected |= {f"res{block}.downsample.0.weight"} | {f"res{block}.downsample.1.{part}" for part in norm}
    assert names == expected


def convolve(x: np.ndarray, weight: np.ndarray, *, stride: int) -> np.ndarray:
    """3D convolution as a sum over the kernel's positions, zero padding to the same size."""
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


@torch.no_grad()
@pytest.mark.parametrize(("stride", "project"), [(1, False), (1, True), (2, True)])
def test_a_block_is_two_convolutions_and_a_shortcut(stride, project) -> None:
    torch.manual_seed(0)
    block = unsettled(BasicBlock(3, 3, stride=stride, project=project)).double()
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    y = batch_norm(convolve(x.numpy(), block.conv1.weight.numpy(), stride=stride), block.bn1).clip(0)
    y = batch_norm(convolve(y, block.conv2.weight.numpy(), stride=1), block.bn2)
    shortcut = x.numpy()
    if project:
        conv, norm = block.downsample
        shortcut = batch_norm(convolve(shortcut, conv.weight.numpy(), stride=stride), norm)
    np.testing.assert_allclose(block(x), (y + shortcut).clip(0), atol=1e-12)


@torch.no_grad()
def test_features_average_space_and_keep_time_channel_by_channel() -> None:
    torch.manual_seed(1)
    model = unsettled(Res3D18(frames=16, width=2))
    x = torch.randn(2, 3, 16, 32, 48)
    maps = model.feature_map(x)
    assert maps.shape == (2, 16, 2, 2, 3)
    features = model(x)
    for channel in range(16):
        for frame in range(2):
            expected = maps[:, channel, frame].flatten(1).mean(dim=1)
            torch.testing.assert_close(features[:, 2 * channel + frame], expected)


def test_a_clip_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="built for clips of 8 frames, got a clip of 16"):
        Res3D18(width=2)(torch.zeros(1, 3, 16, 16, 16))


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(2)
    model = Res3D18(width=4, num_classes=3)
    F.cross_entropy(model(torch.randn(2, 3, 8, 32, 32)), torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def caffe_file(model: Res3D18, *, classifier: str, batches: float) -> dict[str, Tensor]:
    """The blobs that Caffe would hold for `model` after `batches` weighted batches, layer by layer."""
    blobs: dict[str, Tensor] = {}

    def convolution_and_norm(layer: str, norm: str, scale: str, conv: nn.Conv3d, bn: nn.BatchNorm3d) -> None:
        blobs[f"{layer}.0"] = conv.weight
        blobs[f"{norm}.0"], blobs[f"{norm}.1"] = bn.running_mean * batches, bn.running_var * batches
        blobs[f"{norm}.2"] = torch.tensor([batches])
        blobs[f"{scale}.0"], blobs[f"{scale}.1"] = bn.weight, bn.bias

    convolution_and_norm("conv1", "bn_conv1", "scale_conv1", model.conv1, model.bn1)
    for name in BLOCKS:
        block = getattr(model, f"res{name}")
        parts = {"branch2a": (block.conv1, block.bn1), "branch2b": (block.conv2, block.bn2)}
        if name.endswith("a"):
            parts["branch1"] = tuple(block.downsample)
        for branch, (conv, bn) in parts.items():
            convolution_and_norm(f"res{name}_{branch}", f"bn{name}_{branch}", f"scale{name}_{branch}", conv, bn)
    blobs[f"{classifier}.0"], blobs[f"{classifier}.1"] = model.fc.weight, model.fc.bias
    return {name: blob.detach().clone() for name, blob in blobs.items()}


@torch.no_grad()
@pytest.mark.parametrize("classifier", ["fc8", "fc8-pro", "fc8_new"])
def test_caffe_blobs_become_the_same_network(classifier) -> None:
    torch.manual_seed(3)
    model = unsettled(Res3D18(width=2, num_classes=5))
    ours = published_names(caffe_file(model, classifier=classifier, batches=999.98))
    copy = Res3D18(width=2, num_classes=5).eval()
    missing, unexpected = copy.load_state_dict(ours, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(copy(x), model(x), rtol=1e-4, atol=1e-5)


def test_statistics_without_batches_are_zero_as_in_caffe() -> None:
    blobs = caffe_file(Res3D18(width=2, num_classes=5), classifier="fc8", batches=0.0)
    ours = published_names(blobs)
    assert torch.equal(ours["res3b.bn2.running_mean"], torch.zeros(4))
    assert torch.equal(ours["res3b.bn2.running_var"], torch.zeros(4))


def test_spelled_out_parameters_and_own_names_are_understood() -> None:
    model = Res3D18(width=2, num_classes=5)
    blobs = caffe_file(model, classifier="fc8", batches=1.0)
    spelled = {}
    for name, blob in blobs.items():
        layer, number = name.split(".")
        if not layer.startswith("bn"):
            spelled[f"{layer}.{('weight', 'bias')[int(number)]}"] = blob
        elif number != "2":
            spelled[f"{layer}.{('running_mean', 'running_var')[int(number)]}"] = blob
    ours = published_names(spelled)
    own = model.state_dict()
    assert ours.keys() == {name for name in own if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, own[name]) for name, tensor in ours.items())
    assert published_names(own).keys() == own.keys()


def test_files_of_other_networks_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(ValueError, match="not one of Res3D-18.*conv1.weight, bn1.weight, bn1.bias"):
            published_names(ResNet(18).state_dict())
        blobs = caffe_file(Res3D18(width=2, num_classes=5), classifier="fc8", batches=1.0)
    with pytest.raises(ValueError, match="Res3D-18, which has no res2c_branch2a.0"):
        published_names(blobs | {"res2c_branch2a.0": torch.zeros(1)})
    with pytest.raises(ValueError, match="Res3D-18, which has no fc8.running_mean"):
        published_names(blobs | {"fc8.running_mean": torch.zeros(1)})
    del blobs["res5b_branch2b.0"]
    with pytest.raises(ValueError, match="not one of Res3D-18.*first tensors are conv1.0"):
        published_names(blobs)
