import json

import pytest
import torch

from models.atw import ATW
from models.backbones.bn_inception import BNInception
from models.backbones.resnet import ResNet
from models.backbones.tiny import TinyCNN
from models.build import BACKBONES, FAMILIES, build, build_backbone
from models.sta_cnn import STACNN

REQUIRED = {"num_classes": 5, "modality": "rgb", "in_channels": 3, "segments": 4, "dropout": 0.5}


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
    with torch.device("meta"):
        built = {family: type(build(**REQUIRED, family=family)) for family in FAMILIES}
        assert all(build_backbone(name, in_channels=3, num_classes=2).fc.out_features == 2 for name in BACKBONES)
    assert built == {"atw": ATW, "sta_cnn": STACNN}


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "vgg"}, "'vgg' is unknown; choose one of atw, sta_cnn"),
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
