import numpy as np
import pytest
import torch

from models.backbones.bn_inception import CAFFE_INPUT
from models.backbones.convention import Normalise
from models.backbones.resnet import IMAGENET_INPUT
from models.backbones.tiny import TINY_INPUT


def image() -> torch.Tensor:
    """2 x 3 x 4 x 5 RGB bytes, all different."""
    return torch.arange(120, dtype=torch.uint8).view(2, 3, 4, 5)


def test_caffe_images_become_bgr_minus_the_mean() -> None:
    raw = image().numpy().astype(np.float32)
    expected = np.stack([raw[:, 2] - 104, raw[:, 1] - 117, raw[:, 0] - 123], axis=1)
    got = Normalise(CAFFE_INPUT, modality="rgb", in_channels=3)(image())
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_imagenet_images_stay_rgb_on_the_unit_scale() -> None:
    raw = image().numpy().astype(np.float64) / 255
    expected = np.stack([(raw[:, 0] - 0.485) / 0.229, (raw[:, 1] - 0.456) / 0.224, (raw[:, 2] - 0.406) / 0.225], axis=1)
    got = Normalise(IMAGENET_INPUT, modality="rgb", in_channels=3)(image())
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_two_stacked_images_are_each_reversed() -> None:
    raw = torch.arange(6.0).view(6, 1, 1) * 10 + 100
    got = Normalise(CAFFE_INPUT, modality="rgb", in_channels=6)(raw)
    assert got.flatten().tolist() == [120 - 104, 110 - 117, 100 - 123, 150 - 104, 140 - 117, 130 - 123]


@pytest.mark.parametrize("spec", [CAFFE_INPUT, TINY_INPUT])
@pytest.mark.parametrize("modality", ["flow", "warped_flow"])
def test_no_motion_is_zero_and_channels_keep_their_order(spec, modality) -> None:
    raw = torch.full((1, 10, 2, 2), 128, dtype=torch.uint8)
    raw[:, 3] = 144
    got = Normalise(spec, modality=modality, in_channels=10)(raw)
    assert got[:, 3].unique().tolist() == [16 / spec.flow_std]
    assert got[:, [0, 1, 2, 4, 5, 6, 7, 8, 9]].abs().max() == 0


def test_flow_of_torchvision_backbones_is_on_the_unit_scale() -> None:
    raw = torch.tensor([0, 128, 255, 51], dtype=torch.uint8).view(1, 4, 1, 1)
    got = Normalise(IMAGENET_INPUT, modality="flow", in_channels=4)(raw)
    expected = [(value / 255 - 0.5) / 0.226 for value in (0, 128, 255, 51)]
    np.testing.assert_allclose(got.flatten().numpy(), expected, atol=1e-6)


def test_bytes_and_floats_give_the_same() -> None:
    normalise = Normalise(IMAGENET_INPUT, modality="rgb", in_channels=3)
    assert torch.equal(normalise(image()), normalise(image().float()))


def test_constants_stay_out_of_checkpoints_and_follow_the_dtype() -> None:
    normalise = Normalise(IMAGENET_INPUT, modality="rgb", in_channels=3)
    assert normalise.state_dict() == {}
    assert normalise.to(torch.float64)(image()).dtype == torch.float64


@pytest.mark.parametrize(
    ("modality", "channels", "message"),
    [
        ("rgb", 10, "multiple of 3"),
        ("rgb", 0, "multiple of 3"),
        ("flow", 5, "even"),
        ("flow", 0, "even"),
        ("depth", 3, "rgb, flow, warped_flow"),
    ],
)
def test_channels_that_do_not_fit_are_refused(modality, channels, message) -> None:
    with pytest.raises(ValueError, match=message):
        Normalise(CAFFE_INPUT, modality=modality, in_channels=channels)


def test_an_input_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10 channels.*\(2, 3, 4, 5\)"):
        Normalise(CAFFE_INPUT, modality="flow", in_channels=10)(image())
