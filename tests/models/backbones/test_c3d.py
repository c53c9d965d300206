import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones.c3d import C3D, published_names
from models.backbones.res3d18 import Res3D18

torch.set_num_threads(1)

CONVS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("classes", "parameters"), [(487, 79_991_015), (101, 78_409_573), (51, 78_204_723)])
def test_parameter_counts_are_the_published_ones(classes, parameters) -> None:
    with torch.device("meta"):
        assert count(C3D(num_classes=classes)) == parameters


def test_the_convolutions_have_the_published_count() -> None:
    with torch.device("meta"):
        model = C3D()
        assert sum(count(getattr(model, name)) for name in CONVS) == 27_655_936


def test_stages_have_the_published_shapes() -> None:
    with torch.device("meta"):
        model = C3D()
        shapes: list[tuple[int, ...]] = []
        for convs in model.stages().values():
            convs[-1].register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
        features = model(torch.zeros(2, 3, 16, 112, 112))
    assert shapes == [(64, 16, 112, 112), (128, 16, 56, 56), (256, 8, 28, 28), (512, 4, 14, 14), (512, 2, 7, 7)]
    assert model.fc6.weight.shape == (4096, 8192)
    assert features.shape == (2, 4096)


def test_conv5b_keeps_time_for_detection() -> None:
    """R-C3D: 768 frames become 96."""
    with torch.device("meta"):
        assert C3D().feature_map(torch.zeros(1, 3, 768, 112, 112)).shape == (1, 512, 96, 7, 7)


def test_key_names_are_the_ports() -> None:
    with torch.device("meta"):
        names = set(C3D(num_classes=101).state_dict())
    assert names == {f"{layer}.{part}" for layer in (*CONVS, "fc6", "fc7", "fc8") for part in ("weight", "bias")}


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3x3 convolution as a sum over the kernel's positions, zero padding to the same size."""
    t, h, w = x.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    out = sum(
        np.einsum("oc,bcthw->bothw", weight[:, :, i, j, m], x[:, :, i : i + t, j : j + h, m : m + w])
        for i in range(3)
        for j in range(3)
        for m in range(3)
    )
    return out + bias[:, None, None, None]


def pool(x: np.ndarray, *, frames: int, pad: int = 0) -> np.ndarray:
    """Largest of `frames` x 2 x 2 voxels without overlap; what does not fill a window is left out."""
    x = np.pad(x, ((0, 0), (0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    b, c, t, h, w = x.shape
    x = x[:, :, : t // frames * frames, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, c, t // frames, frames, h // 2, 2, w // 2, 2).max(axis=(3, 5, 7))


@torch.no_grad()
def test_the_network_computes_what_the_paper_draws() -> None:
    torch.manual_seed(0)
    model = C3D(frames=16, size=48, width=2, num_classes=3).double().eval()
    x = torch.randn(2, 3, 16, 48, 48, dtype=torch.float64)

    def conv(name: str, y: np.ndarray) -> np.ndarray:
        layer = getattr(model, name)
        return convolve(y, layer.weight.numpy(), layer.bias.numpy()).clip(0)

    def full(name: str, y: np.ndarray) -> np.ndarray:
        layer = getattr(model, name)
        return y @ layer.weight.numpy().T + layer.bias.numpy()

    y = pool(conv("conv1", x.numpy()), frames=1)
    y = pool(conv("conv2", y), frames=2)
    y = pool(conv("conv3b", conv("conv3a", y)), frames=2)
    y = pool(conv("conv4b", conv("conv4a", y)), frames=2)
    y = conv("conv5b", conv("conv5a", y))
    np.testing.assert_allclose(model.feature_map(x), y, rtol=1e-9, atol=1e-12)
    y = pool(y, frames=2, pad=1)
    assert y.shape == (2, 16, 1, 2, 2)
    y = full("fc7", full("fc6", y.reshape(2, -1)).clip(0)).clip(0)
    np.testing.assert_allclose(model(x), full("fc8", y), rtol=1e-9, atol=1e-12)


def test_headless_it_gives_fc7() -> None:
    torch.manual_seed(1)
    model = C3D(frames=16, size=16, width=2, num_classes=3).eval()
    headless = C3D(frames=16, size=16, width=2).eval()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc8")})
    x = torch.randn(2, 3, 16, 16, 16)
    with torch.no_grad():
        features = headless(x)
        assert features.shape == (2, headless.feature_dim)
        torch.testing.assert_close(model.fc8(features), model(x))


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(2)
    model = C3D(frames=16, size=32, width=4, dropout=0.0, num_classes=3)
    F.cross_entropy(model(torch.randn(3, 3, 16, 32, 32)), torch.tensor([0, 2, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(3)
    model = C3D(frames=16, size=16, width=2)
    x = torch.randn(1, 3, 16, 16, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("frames", "size"), [(8, 112), (16, 8)])
def test_clips_that_vanish_are_refused(frames, size) -> None:
    with pytest.raises(ValueError, match=f"not {frames} frames of {size} pixels"):
        C3D(frames=frames, size=size)


def test_clips_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"built for clips of \(16, 16, 16\).*got \(16, 16, 32\)"):
        C3D(size=16, width=2)(torch.zeros(1, 3, 16, 16, 32))


# the pretrained file's nn.Sequential counts its ReLU and pool layers too
SEQUENTIAL = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3a",
    "features.8": "conv3b",
    "features.11": "conv4a",
    "features.13": "conv4b",
    "features.16": "conv5a",
    "features.18": "conv5b",
    "classifier.0": "fc6",
    "classifier.3": "fc7",
}


@pytest.mark.parametrize("with_classifier", [False, True])
def test_the_pretrained_file_becomes_the_same_network(with_classifier) -> None:
    model = C3D(size=16, width=2, num_classes=487)
    layers = SEQUENTIAL | ({"classifier.6": "fc8"} if with_classifier else {})
    file = {
        f"{theirs}.{part}": getattr(getattr(model, ours), part).detach().clone()
        for theirs, ours in layers.items()
        for part in ("weight", "bias")
    }
    names = published_names(file)
    copy = C3D(size=16, width=2, num_classes=487 if with_classifier else None)
    copy.load_state_dict(names)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copy.state_dict().items())
    assert published_names(expected).keys() == expected.keys()  # a trained file of the port


def test_files_of_other_networks_are_refused() -> None:
    vgg = {"features.0.weight": torch.zeros(64, 3, 3, 3), "classifier.0.weight": torch.zeros(4096, 25088)}
    with pytest.raises(ValueError, match="not one of C3D.*first tensors are features.0.weight, classifier.0.weight"):
        published_names(vgg)
    with torch.device("meta"):
        with pytest.raises(ValueError, match="not one of C3D"):
            published_names(Res3D18(width=2).state_dict())
        normed = C3D(size=16, width=2).state_dict() | {"bn1.weight": torch.zeros(2)}
        with pytest.raises(ValueError, match="not one of C3D"):
            published_names(normed)
