from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from models.backbones.convention import InputSpec
from models.backbones.res3d18 import SPORTS1M_INPUT, Res3D18
from models.jsta import JSTASpatial, SpatialAttentionBlock, attention_map, insert_spatial_attention

BLUE_FIRST = InputSpec(
    channel_order="BGR", max_value=255.0, mean=(0.0,) * 3, std=(1.0,) * 3, flow_mean=0.0, flow_std=1.0
)
AXES = {"channel": (1,), "spatial": (3, 4), "st": (2, 3, 4)}


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def block(channels: int = 4, *, std: float = 0.3, **switches) -> SpatialAttentionBlock:
    """A block with random weights and biases of order one, so that its softmaxes are far from uniform."""
    made = SpatialAttentionBlock(channels, **switches)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std)
    return made


def maps(batch: int = 2, channels: int = 4, size: tuple[int, int, int] = (3, 4, 5)) -> Tensor:
    return torch.randn(batch, channels, *size).relu()


def slim(*, classes: int = 4, **switches) -> JSTASpatial:
    backbone = Res3D18(width=4)
    return JSTASpatial(backbone, num_classes=classes, modality="rgb", in_channels=24, **switches)


def clips(videos: int = 2, count: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (videos, count, 24, side, side), dtype=torch.uint8)


def listen(model: SpatialAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """F and O of the equations."""
    heard: list[Tensor] = []
    handle = model.attended.register_forward_hook(lambda *args: heard.append(args[-1]))
    out = model(x)
    handle.remove()
    return out, heard[0]


def conv3d(x: np.ndarray, conv: nn.Conv3d) -> np.ndarray:
    """Correlation with zero padding to the same size: x B C T H W."""
    weight = conv.weight.detach().double().numpy()  # O C t h w
    pad = [(k // 2, k // 2) for k in weight.shape[2:]]
    windows = sliding_window_view(np.pad(x, [(0, 0), (0, 0), *pad]), weight.shape[2:], axis=(2, 3, 4))
    out = np.einsum("bcTHWthw,octhw->boTHW", windows, weight)
    return out if conv.bias is None else out + conv.bias.detach().double().numpy()[:, None, None, None]


def softmax(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    e = np.exp(x - x.max(axis=axes, keepdims=True))
    return e / e.sum(axis=axes, keepdims=True)


@pytest.mark.parametrize("output", ["identity", "softmax"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_equations_12_to_17_against_numpy(axis, bias, output) -> None:
    model, x = block(softmax_axis=axis, bias=bias, output=output), maps()
    array = x.double().numpy()
    gate = softmax(conv3d(array, model.spatial) + conv3d(array, model.temporal), AXES[axis])
    addition = softmax(conv3d(conv3d(array, model.point), model.cube), AXES[axis])
    attended = np.maximum(np.maximum(gate * array, 0) * addition, 0)
    want = attended + array
    if output == "softmax":
        want = softmax(want, AXES[axis])
    out, heard = listen(model, x)
    np.testing.assert_allclose(heard.detach().numpy(), attended, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-4, atol=1e-6)
    assert out.shape == x.shape


@pytest.mark.parametrize(("axis", "cells"), [("channel", 4), ("spatial", 4 * 5), ("st", 3 * 4 * 5)])
def test_without_weights_the_attention_is_uniform(axis, cells) -> None:
    x = maps()
    out = block(softmax_axis=axis, std=0.0)(x)
    torch.testing.assert_close(out, x * (1 + 1 / cells**2))


def test_channel_softmaxes_sum_to_one_at_every_voxel() -> None:
    model, x = block(), torch.ones(2, 4, 3, 4, 5)
    nn.init.zeros_(model.cube.weight)  # A = 1/C, so that O = G/C
    _, attended = listen(model, x)
    torch.testing.assert_close(attended.sum(dim=1), torch.full((2, 3, 4, 5), 1 / 4))
    model = block()
    nn.init.zeros_(model.spatial.weight)
    nn.init.zeros_(model.temporal.weight)  # G = 1/C, so that O = A/C
    _, attended = listen(model, x)
    torch.testing.assert_close(attended.sum(dim=1), torch.full((2, 3, 4, 5), 1 / 4))
    assert attended.std(dim=1).min() > 0.001


def test_attention_only_adds_to_rectified_maps() -> None:
    x = maps()
    out = block()(x)
    assert (out >= x).all()
    assert (out > x)[x > 0].all()


def test_every_weight_gets_a_gradient() -> None:
    model = block(bias=True)
    (model(maps()) * torch.randn(2, 4, 3, 4, 5)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_weights_start_at_a_hundredth() -> None:
    model = SpatialAttentionBlock(32, bias=True)
    assert model.cube.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.cube.bias.any()


def test_attention_keeps_float32_under_autocast() -> None:
    model, x = block(16), maps(channels=16)
    _, exact = listen(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, attended = listen(model, x.bfloat16())
    assert attended.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(attended, exact, rtol=0.1, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x) - x, exact, rtol=0.1, atol=1e-4)  # bfloat16 would lose what is added


@pytest.mark.parametrize(
    ("position", "bias", "classes", "count"),
    [
        ("none", False, 101, 33_222_309),
        ("after_3b", False, 101, 33_877_669),
        ("after_3b", True, 101, 33_877_669 + 512),
        ("replace_3b", False, 101, 32_992_421),
    ],
)
def test_published_counts(position, bias, classes, count) -> None:
    with torch.device("meta"):
        model = JSTASpatial(
            Res3D18(), num_classes=classes, modality="rgb", in_channels=24, sa_position=position, sa_bias=bias
        )
        assert sum(parameter.numel() for parameter in SpatialAttentionBlock(128).parameters()) == 655_360
        assert sum(parameter.numel() for parameter in SpatialAttentionBlock(128, bias=True).parameters()) == 655_872
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("position", ["after_3b", "replace_3b"])
def test_eight_frames_become_512_features_through_a_block_of_28x28x128(position) -> None:
    with torch.device("meta"):
        model = JSTASpatial(Res3D18(), num_classes=5, modality="rgb", in_channels=24, sa_position=position)
        arriving = []
        inserted = next(module for module in model.modules() if isinstance(module, SpatialAttentionBlock))
        inserted.register_forward_pre_hook(lambda _, args: arriving.append(tuple(args[0].shape)))
        assert model.clip_features(torch.empty(2, 24, 112, 112)).shape == (2, 512)
        assert arriving == [(2, 128, 4, 28, 28)]
        assert model(torch.empty(2, 3, 24, 112, 112)).segment_logits.shape == (2, 3, 5)


def test_appending_keeps_the_names_of_the_backbone() -> None:
    plain = Res3D18(width=4)
    attended = Res3D18(width=4)
    insert_spatial_attention(attended)
    result = attended.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    names = [f"res3b.after_add.{conv}.weight" for conv in ("spatial", "temporal", "point", "cube")]
    assert sorted(result.missing_keys) == sorted(names)


def test_replacing_leaves_the_other_blocks_alone() -> None:
    plain, attended = Res3D18(width=4), Res3D18(width=4)
    insert_spatial_attention(attended, position="replace_3b")
    result = attended.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in result.unexpected_keys} == {"res3b"}
    assert sorted(result.missing_keys) == sorted(
        f"res3b.{conv}.weight" for conv in ("spatial", "temporal", "point", "cube")
    )


def test_a_block_without_weights_scales_what_follows_by_next_to_nothing() -> None:
    plain, attended = Res3D18(width=4).eval(), Res3D18(width=4).eval()
    inserted = insert_spatial_attention(attended)
    attended.load_state_dict(plain.state_dict(), strict=False)
    for parameter in inserted.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 8, 16, 16)
    torch.testing.assert_close(
        attended.res3b(torch.ones(1, 8, 4, 2, 2)), plain.res3b(torch.ones(1, 8, 4, 2, 2)) * 65 / 64
    )
    torch.testing.assert_close(attended(x), plain(x), rtol=0.1, atol=0.01)


class Probe(nn.Module):
    """Keeps the clip that it sees; its features are the channel means."""

    feature_dim = 3
    input_spec: ClassVar[InputSpec] = BLUE_FIRST

    def feature_map(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.mean(dim=(2, 3, 4))


def test_the_backbone_sees_frames_in_order_and_its_own_colours() -> None:
    probe = Probe()
    model = JSTASpatial(probe, num_classes=2, modality="rgb", in_channels=12, sa_position="none")
    x = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 2, 2)  # frame t has R = 3t, G = 3t + 1, B = 3t + 2
    model.clip_features(x)
    assert probe.seen.shape == (1, 3, 4, 2, 2)
    assert probe.seen[0, :, :, 0, 0].tolist() == [[2, 5, 8, 11], [1, 4, 7, 10], [0, 3, 6, 9]]


def test_flow_fields_become_frames_of_two_channels() -> None:
    probe = Probe()
    probe.feature_dim = 2
    model = JSTASpatial(probe, num_classes=2, modality="flow", in_channels=8, sa_position="none")
    model.clip_features(torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 2, 2))
    assert probe.seen[0, :, :, 0, 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_the_clips_of_a_video_count_alike() -> None:
    model, x = slim(fc_std=1.0).eval(), clips()
    out = model(x)
    scores = model.score_snippets(x.flatten(0, 1))
    torch.testing.assert_close(out.segment_logits, scores.logits.unflatten(0, (2, 3)))
    torch.testing.assert_close(out.logits, scores.logits.unflatten(0, (2, 3)).mean(dim=1))
    torch.testing.assert_close(out.weights, torch.full((2, 3), 1 / 3))
    again = model.consensus(out.segment_logits, scores.energy.view(2, 3))
    assert torch.equal(again.logits, out.logits)
    torch.testing.assert_close(model.fc(model.clip_features(x[0])), out.segment_logits[0])


def test_maps_say_where_the_block_adds() -> None:
    model = slim(softmax_axis="spatial").eval()
    inserted = model.backbone.res3b.after_add
    seen: list[Tensor] = []
    handle = inserted.register_forward_hook(lambda _, args, out: seen.append(out - args[0]))
    x = clips(1, 2, side=32)[0]
    got = model.score_snippets(x).maps
    handle.remove()
    added = seen[0].sum(dim=(1, 2))  # M h w
    torch.testing.assert_close(got, added / added.sum(dim=(1, 2), keepdim=True), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(got.sum(dim=(1, 2)), torch.ones(2))
    assert not inserted.attended._forward_hooks
    assert slim(sa_position="none").score_snippets(x).maps is None


def test_attention_map_by_hand() -> None:
    attended = torch.zeros(2, 3, 4, 2, 2)
    attended[0, 1, 2, 0, 1], attended[0, 2, 0, 1, 1] = 3.0, 1.0
    want = torch.tensor([[[0, 0.75], [0, 0.25]], [[0.25, 0.25], [0.25, 0.25]]])  # where nothing is added, uniform
    torch.testing.assert_close(attention_map(attended), want)


@pytest.mark.parametrize("position", ["after_3b", "replace_3b", "none"])
def test_eight_clips_are_learnt_by_heart(position) -> None:
    model = slim(fc_std=0.2, sa_position=position)
    x, labels = clips(8, 1), torch.arange(8) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        model.loss(model(x), labels, label_smoothing=0.0).backward()
        optimizer.step()
    out = model(x)
    assert (out.logits.argmax(dim=1) == labels).all()
    assert model.loss(out, labels).item() < 0.3


def test_loss_is_cross_entropy_of_the_mean() -> None:
    model, x = slim().eval(), clips()
    labels = torch.tensor([1, 3])
    logp = model(x).segment_logits.mean(dim=1).log_softmax(dim=1)
    want = -(logp[0, 1] + logp[1, 3]) / 2
    torch.testing.assert_close(model.loss(model(x), labels), want)


def test_bfloat16_scores_as_float32() -> None:
    model, x = slim(fc_std=1.0).eval(), clips()
    exact = model(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.logits.dtype == torch.float32
    torch.testing.assert_close(out.logits, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_one_clip_of_one_video_trains() -> None:
    model = slim()
    out = model(clips(1, 1, side=32))
    model.loss(out, torch.tensor([2])).backward()
    assert torch.isfinite(model.backbone.res3b.after_add.cube.weight.grad).all()


@pytest.mark.parametrize(
    ("switch", "value"),
    [("sa_position", "before_3b"), ("softmax_axis", "time"), ("sa_output", "relu"), ("dropout", 1.0)],
)
def test_impossible_switches(switch, value) -> None:
    with pytest.raises(ValueError, match=f"{switch}={value!r}"):
        slim(**{switch: value})


def test_attention_needs_a_free_place_in_res3d18() -> None:
    with pytest.raises(ValueError, match="a place in Res3D-18, not in Probe"):
        JSTASpatial(Probe(), num_classes=2, modality="rgb", in_channels=12)
    backbone = Res3D18(width=4)
    insert_spatial_attention(backbone)
    with pytest.raises(ValueError, match="already has"):
        insert_spatial_attention(backbone, position="replace_3b")
    with pytest.raises(ValueError, match="sa_position='none' is unknown"):
        insert_spatial_attention(Res3D18(width=4), position="none")


def test_inputs_of_another_shape() -> None:
    model = slim()
    with pytest.raises(ValueError, match="videos, clips"):
        model(clips()[0])
    with pytest.raises(ValueError, match="24 channels"):
        model(clips()[:, :, :12])
    assert model.normalise.mean.tolist() == [[[128.0]]] * 24
    assert model.backbone.input_spec is SPORTS1M_INPUT
