import pytest
import torch
from torch import nn

from models.atw import ATW
from models.backbones.bn_inception import BNInception
from models.build import build
from models.sta_cnn import STACNN
from models.tsn import freeze_batch_norms, parameter_groups


def flow_stream(*, partial_bn: bool) -> ATW:
    backbone = BNInception(in_channels=10)
    return ATW(backbone, num_classes=7, modality="flow", in_channels=10, segments=3, dropout=0.0, partial_bn=partial_bn)


@pytest.fixture(scope="module")
def frozen() -> ATW:
    return flow_stream(partial_bn=True)


@pytest.mark.parametrize("modality", ["rgb", "flow", "warped_flow"])
def test_groups_of_bn_inception(frozen, modality) -> None:
    groups = {group["name"]: group for group in parameter_groups(frozen, modality=modality)}
    boost = 1 if modality == "rgb" else 5
    assert {name: (group["lr_mult"], group["decay_mult"]) for name, group in groups.items()} == {
        "first_conv_weight": (boost, 1),
        "first_conv_bias": (2 * boost, 0),
        "weight": (1, 1),
        "bias": (2, 0),
        "batch_norm": (1, 0),
    }
    # 69 convolutions less the first, the classifier and the attention; one BN of two tensors is left free
    sizes = {name: len(group["params"]) for name, group in groups.items()}
    assert sizes == {"first_conv_weight": 1, "first_conv_bias": 1, "weight": 70, "bias": 70, "batch_norm": 2}
    assert groups["first_conv_weight"]["params"][0] is frozen.backbone.conv1_7x7_s2.weight
    assert groups["batch_norm"]["params"][0] is frozen.backbone.conv1_7x7_s2_bn.weight


@pytest.mark.parametrize("partial_bn", [True, False])
def test_every_trainable_parameter_is_in_exactly_one_group(partial_bn) -> None:
    model = flow_stream(partial_bn=partial_bn)
    grouped = [id(p) for group in parameter_groups(model, modality="flow") for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(list(model.parameters())) - len(grouped) == (2 * 68 if partial_bn else 0)


def test_groups_without_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 1, bias=False))
    assert [group["name"] for group in parameter_groups(model, modality="flow")] == ["first_conv_weight", "weight"]


def test_partial_bn_moves_only_the_first_statistics_and_survives_train(frozen) -> None:
    frozen.eval()
    frozen.train()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    frozen(torch.randint(0, 256, (2, 2, 10, 32, 32), dtype=torch.uint8))
    moved = {name for name, tensor in frozen.state_dict().items() if not torch.equal(tensor, before[name])}
    first = "backbone.conv1_7x7_s2_bn"
    assert moved == {f"{first}.running_mean", f"{first}.running_var", f"{first}.num_batches_tracked"}
    norms = [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [True] + [False] * 68
    assert [norm.weight.requires_grad for norm in norms] == [True] + [False] * 68
    assert frozen.fc.training


def test_beside_a_second_trunk_the_first_layers_are_the_classifiers() -> None:
    """The Spatial Attention Network has convolutions, which are groups' ordinary members, and no BN."""
    backbone = BNInception()
    model = STACNN(
        backbone,
        num_classes=7,
        modality="rgb",
        in_channels=6,
        segments=3,
        dropout=0.0,
        partial_bn=True,
        input_size=32,
        spatial="san",
        san_width=1 / 32,
    ).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 69
    assert norms[0] is backbone.conv1_7x7_s2_bn
    assert [norm.training for norm in norms] == [True] + [False] * 68
    groups = {group["name"]: group["params"] for group in parameter_groups(model, modality="rgb")}
    assert groups["first_conv_weight"] == [backbone.conv1_7x7_s2.weight]
    # 68 + 10 other convolutions and the classifier have a weight and a bias; auxiliary head and attention a weight
    assert {name: len(parameters) for name, parameters in groups.items()} == {
        "first_conv_weight": 1,
        "first_conv_bias": 1,
        "weight": 81,
        "bias": 79,
        "batch_norm": 2,
    }


def test_without_partial_bn_all_norms_train() -> None:
    model = flow_stream(partial_bn=False).eval().train()
    assert all(module.training for module in model.modules())


def test_freezing_spares_a_lone_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    freeze_batch_norms(model)
    assert model[1].training
    assert model[1].weight.requires_grad


def test_groups_of_a_3d_network() -> None:
    """A slim ResNet3D-18 with STA in its last layer, on flow."""
    keywords = {
        "num_classes": 5,
        "modality": "flow",
        "in_channels": 32,
        "snippet": 16,
        "input_size": 32,
        "dropout": 0.5,
    }
    model = build(**keywords, family="sta_net", backbone="resnet3d18", width=2)
    groups = {group["name"]: group for group in parameter_groups(model, modality="flow")}
    assert groups["first_conv_weight"]["params"] == [model.backbone.conv1.weight]
    assert groups["first_conv_weight"]["lr_mult"] == 5
    # 20 convolutions, three of them shortcuts, and their norms; two modules of three layers; the classifier
    sizes = {name: len(group["params"]) for name, group in groups.items()}
    assert sizes == {"first_conv_weight": 1, "weight": 19 + 6 + 1, "bias": 6 + 1, "batch_norm": 2 * 20}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert {id(p) for p in groups["batch_norm"]["params"]} == {id(p) for norm in norms for p in norm.parameters()}


@pytest.mark.parametrize(
    ("switches", "biases"),
    [
        # two LSTM directions of two biases each; eight layers of perceptrons; energy; classifier
        ({"temporal": "paper"}, 2 * 2 + 8 + 1 + 1),
        ({"temporal": "keras_gate", "classifier": "lstm"}, 1 + 2 + 1),
        ({"temporal": "none", "classifier": "moe"}, 2),
    ],
)
def test_biases_of_lstms_have_no_decay(switches, biases) -> None:
    model = build(family="jsta_temporal", num_classes=3, feature_shape=[6], hidden=4, dropout=0.0, **switches)
    groups = {group["name"]: group for group in parameter_groups(model, modality="rgb")}
    assert len(groups["bias"]["params"]) == biases
    assert groups["bias"]["decay_mult"] == 0
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("bias" in named[id(parameter)] for parameter in groups["bias"]["params"])
    assert not [name for name in (named[id(parameter)] for parameter in groups["weight"]["params"]) if "bias" in name]
    assert sum(len(group["params"]) for group in groups.values()) == len(named)


def test_groups_of_a_conv_lstm() -> None:
    model = build(family="where_when", num_classes=3, feature_shape=[6, 2, 2], hidden=4, dropout=0.0)
    groups = {group["name"]: len(group["params"]) for group in parameter_groups(model, modality="rgb")}
    # convolutions of the mask (3) and of the two initial states (2 each), the gates, Phi (2), the classifier
    assert groups == {"first_conv_weight": 1, "weight": 2 + 4 + 1 + 2 + 1, "bias": 2, "batch_norm": 2 * 6}
