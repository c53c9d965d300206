import json
from typing import get_args

import pytest
import torch
from torch import nn

from models.atw import ATW
from models.backbones.bn_inception import BNInception
from models.backbones.c3d import C3D
from models.backbones.p3d import P3D
from models.backbones.res3d18 import Res3D18
from models.backbones.resnet import ResNet
from models.backbones.resnet3d import ResNet3D, ZeroPadShortcut
from models.backbones.tiny import TinyCNN
from models.build import BACKBONES, FAMILIES, VIDEO_BACKBONES, build, build_backbone, build_video_backbone
from models.jsta import JSTASpatial, SpatialAttentionBlock
from models.jsta_temporal import JSTATemporal
from models.sta_cnn import STACNN
from models.sta_module import STA, SqueezeExcitation
from models.sta_net import STANet
from models.where_when import WhereWhen
from pipeline import families

REQUIRED = {"num_classes": 5, "modality": "rgb", "in_channels": 3, "segments": 4, "dropout": 0.5}
CLIPS = {"num_classes": 5, "modality": "rgb", "in_channels": 48, "snippet": 16, "input_size": 64, "dropout": 0.5}
JSTA = {**CLIPS, "family": "jsta", "backbone": "res3d18", "width": 4}
NET = {**CLIPS, "family": "sta_net", "backbone": "resnet3d18", "width": 4}
CLIP_HEAD = {"family": "jsta_temporal", "num_classes": 5, "feature_shape": [24], "dropout": 0.0, "hidden": 8}
MAP_HEAD = {"family": "where_when", "num_classes": 5, "feature_shape": [12, 3, 4], "dropout": 0.2, "hidden": 8}
EVERY = {
    "atw": (REQUIRED, ATW),
    "sta_cnn": (REQUIRED, STACNN),
    "jsta": (JSTA, JSTASpatial),
    "jsta_temporal": (CLIP_HEAD, JSTATemporal),
    "sta_net": (NET, STANet),
    "where_when": (MAP_HEAD, WhereWhen),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "kind", "features"),
    [
        ("tiny", TinyCNN, 128),
        ("bn_inception", BNInception, 1024),
        ("resnet18", ResNet, 512),
        ("resnet34", ResNet, 512),
        ("resnet50", ResNet, 2048),
        ("resnet101", ResNet, 2048),
        ("resnet152", ResNet, 2048),
    ],
)
def test_every_backbone_is_built_by_name(name, kind, features) -> None:
    assert name in BACKBONES
    with torch.device("meta"):
        model = build(**REQUIRED, backbone=name)
    assert isinstance(model.backbone, kind)
    assert model.fc.in_features == features


def test_every_named_family_and_backbone_exists() -> None:
    """Those of the configuration, and no others."""
    assert families.FAMILIES == FAMILIES == tuple(EVERY)
    assert get_args(families.Backbone) == BACKBONES
    assert get_args(families.VideoBackbone) == VIDEO_BACKBONES
    with torch.device("meta"):
        for family, (keywords, kind) in EVERY.items():
            assert type(build(**{**keywords, "family": family})) is kind
        assert all(build_backbone(name, in_channels=3, num_classes=2).fc.out_features == 2 for name in BACKBONES)


@pytest.mark.parametrize(
    ("name", "kind", "parameters"),
    [
        ("c3d", C3D, 78_409_573),
        ("p3d199", P3D, 65_879_589),
        ("res3d18", Res3D18, 33_222_309),
        ("resnet3d18", ResNet3D, 33_255_717),
        ("resnet3d34", ResNet3D, None),
        ("resnet3d50", ResNet3D, None),
        ("resnet3d101", ResNet3D, None),
        ("resnet3d152", ResNet3D, 117_610_789),
        ("resnext3d101", ResNet3D, 47_728_165),
    ],
)
def test_every_3d_backbone_is_built_by_name_with_the_published_count(name, kind, parameters) -> None:
    """For 101 classes; `None` where none is published."""
    frames = 8 if name == "res3d18" else 16
    with torch.device("meta"):
        made = build_video_backbone(name, in_channels=3, frames=frames, size=112, num_classes=101)
        plain = {**CLIPS, "snippet": frames, "in_channels": 3 * frames, "input_size": 112}
        net = build(**{**plain, "num_classes": 101}, family="sta_net", backbone=name, variant="none")
    assert type(made) is kind
    assert parameters in (None, count(made))
    assert count(net) == count(made)
    assert isinstance(net.backbone, kind)


def test_the_published_sta_network_has_47_6_million_parameters() -> None:
    keywords = {"num_classes": 51, "modality": "rgb", "in_channels": 192, "snippet": 64, "input_size": 112}
    with torch.device("meta"):
        net = build(**keywords, dropout=0.0, family="sta_net", backbone="resnext3d101")
    assert count(net) - count(net.fc) == 47_521_216 + 3 * 40_965


@pytest.mark.parametrize("family", ["jsta", "sta_net"])
def test_a_frame_of_flow_has_two_channels(family) -> None:
    keywords = {**EVERY[family][0], "modality": "flow", "in_channels": 32}
    torch.manual_seed(0)
    model = build(**keywords).eval()
    assert model.backbone.in_channels == 2
    assert model(torch.randint(0, 256, (2, 3, 32, 64, 64), dtype=torch.uint8)).logits.shape == (2, 5)


@pytest.mark.parametrize("backbone", ["c3d", "res3d18", "resnet3d18"])
def test_networks_of_clips_are_made_for_the_size_of_their_clips(backbone) -> None:
    torch.manual_seed(0)
    stage = {"c3d": "conv5", "res3d18": "res5", "resnet3d18": "layer4"}[backbone]
    model = build(**{**NET, "backbone": backbone, "stages": [stage], "input_size": 32, "width": 2}).eval()
    out = model(torch.randint(0, 256, (1, 2, 48, 32, 32), dtype=torch.uint8))
    assert out.segment_logits.shape == (1, 2, 5)


def test_switches_reach_the_families() -> None:
    torch.manual_seed(0)
    block = build(**JSTA, sa_bias=True, softmax_axis="st").backbone.res3b.after_add
    assert isinstance(block, SpatialAttentionBlock)
    assert (block.softmax_axis, block.spatial.bias is not None) == ("st", True)
    net = build(**NET, variant="se", stages=["layer1"], blocks="last", position="after_add", shortcut="A")
    placed = {name: type(module) for name, module in net.named_modules() if isinstance(module, STA | SqueezeExcitation)}
    assert placed == {"backbone.layer1.1.after_add": SqueezeExcitation}
    assert isinstance(net.backbone.layer2[0].downsample, ZeroPadShortcut)
    assert build(**NET, release="2020").normalise.scale == pytest.approx(1 / 255)
    plain = [type(module) for module in build(**NET, variant="none").modules()]
    assert STA not in plain
    opened = build(**NET, identity_init=True, deconv_stride=2).backbone.layer4[0].before_add
    assert opened.deconv.stride == (2, 1, 1)
    assert opened.conv2.bias.tolist() == [4.0] * 32
    assert build(**CLIP_HEAD, clip_pool="concat", clips=3).classify.in_features == 3 * 24
    head = build(**MAP_HEAD, energy="joint_tanh", lambda_tv=0.5, spatial=False)
    assert (head.mask, head.lambda_tv, head.channels) == (None, 0.5, 12)
    assert head.energy.joint is not None


def test_dropout_of_c3d_is_that_of_both_its_layers() -> None:
    with torch.device("meta"):
        model = build(**{**NET, "backbone": "c3d", "variant": "none", "dropout": 0.25})
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.25, 0.25]


def test_a_model_comes_from_what_json_can_carry() -> None:
    text = json.dumps(REQUIRED | {"family": "atw", "backbone": "tiny", "consensus": "max", "pretrained": None})
    assert build(**json.loads(text)).consensus_kind == "max"


def test_the_classifier_starts_small_only_over_pretrained_features(tmp_path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "tiny.pth"
    torch.save(TinyCNN().state_dict(), path)
    scratch, tuned = build(**REQUIRED), build(**REQUIRED, pretrained=str(path))
    assert scratch.fc.weight.std().item() == pytest.approx(128**-0.5, rel=0.15)
    assert tuned.fc.weight.std().item() == pytest.approx(0.001, rel=0.15)
    assert scratch.load_report is None
    assert len(tuned.load_report.loaded) == 24


def test_partial_bn_leaves_the_first_alone_and_may_begin_without_a_pretrained_file(tmp_path) -> None:
    assert not build(**REQUIRED, partial_bn=True).backbone.get_submodule("stage4")[1].training
    path = tmp_path / "tiny.pth"
    torch.save(TinyCNN().state_dict(), path)
    model = build(**REQUIRED, partial_bn=True, pretrained=str(path)).train()
    assert [model.backbone.get_submodule(f"stage{i}")[1].training for i in (1, 2, 3, 4)] == [True, False, False, False]


@pytest.mark.parametrize("family", EVERY)
def test_every_family_comes_from_json_and_scores(family) -> None:
    keywords = json.loads(json.dumps({**EVERY[family][0], "family": family}))
    torch.manual_seed(0)
    model = build(**keywords).eval()
    assert model.load_report is None
    if "feature_shape" in keywords:
        x = torch.rand(2, 3, *keywords["feature_shape"])
    else:
        x = torch.randint(0, 256, (2, 4, keywords["in_channels"], 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(x).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x).logits
    assert logits.shape == (2, 5)
    assert (logits.dtype, half.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(half, logits, rtol=0.05, atol=0.05 * logits.abs().max().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "vgg"}, "'vgg' is unknown; choose one of atw, sta_cnn, jsta, jsta_temporal, sta_net, where_when"),
        ({"backbone": "vgg16"}, "'vgg16' is unknown; choose one of tiny, bn_inception, resnet18"),
        ({"consensu": "avg"}, "no switch consensu; it has consensus, att_input, activation, init"),
        ({"consensus": "none"}, "choose one of softmax_att"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"modality": "flow"}, "in_channels=3 does not fit modality 'flow'"),
        ({"modality": "audio"}, "rgb, flow, warped_flow"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"segments": 0}, "segments=0"),
    ],
)
def test_unknown_names_and_values_are_refused_with_the_choices(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**(REQUIRED | change))


@pytest.mark.parametrize(
    ("keywords", "change", "message"),
    [
        (NET, {"backbone": "tiny"}, "'tiny' is unknown for clips; choose one of c3d, p3d199, res3d18"),
        (NET, {"varaint": "se"}, "no switch varaint; it has variant, stages"),
        (NET, {"variant": "cbam"}, "variant 'cbam' is unknown"),
        (NET, {"stages": ["res5"]}, "must name some of layer1"),
        (NET, {"in_channels": 24}, "in_channels=24 are not those of snippet=16 frames of rgb"),
        (NET, {"backbone": "c3d", "shortcut": "A"}, "shortcut is a switch of a ResNet3D, not of c3d"),
        (NET, {"backbone": "resnext3d101", "width": 8}, "width=8 cannot be cut into 32 groups; use a multiple of 16"),
        (NET, {"dropout": 1.0}, "dropout=1.0"),
        (NET, {"modality": "audio"}, "rgb, flow, warped_flow"),
        (JSTA, {"variant": "sta"}, "no switch variant; it has sa_position"),
        (JSTA, {"backbone": "resnet3d18"}, "a place in Res3D-18, not in ResNet3D; use 'none'"),
        (CLIP_HEAD, {"feature_shape": [12, 3, 4]}, r"\[12, 3, 4\] does not suit jsta_temporal, which reads \[D\]"),
        (MAP_HEAD, {"feature_shape": [12]}, r"does not suit where_when, which reads \[C, h, w\] of a frame"),
        (MAP_HEAD, {"feature_shape": [12, 0, 4]}, "does not suit where_when"),
        (MAP_HEAD, {"merge": "sum"}, "no switch merge; it has hidden, spatial"),
    ],
)
def test_the_families_of_clips_and_features_refuse_what_does_not_fit(keywords, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**(keywords | change))
