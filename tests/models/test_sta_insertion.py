"""Where the STA module of Li et al. can be put, and what its insertion leaves alone."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.c3d import C3D
from models.backbones.p3d import P3D
from models.backbones.res3d18 import Res3D18
from models.backbones.resnet3d import ResNet3D
from models.sta_module import SqueezeExcitation, insert

torch.set_num_threads(1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


SLIM = {
    "res3d18": (lambda: Res3D18(width=2), (8, 32, 32), "res5", (16, 1, 2, 2)),
    "resnet3d18": (lambda: ResNet3D(18, shortcut="A", width=2), (16, 32, 32), "layer4", (16, 1, 1, 1)),
    "resnext3d": (lambda: ResNet3D(50, cardinality=2, width=2), (16, 32, 48), "layer4", (64, 1, 1, 2)),
    "c3d": (lambda: C3D(size=32, width=2), (16, 32, 32), "conv5", (16, 2, 2, 2)),
    "p3d": (lambda: P3D(63, width=2), (16, 64, 64), "layer3", (32, 2, 4, 4)),
}


@pytest.mark.parametrize("name", SLIM)
@pytest.mark.parametrize("variant", ["sta", "sa"])
def test_insertion_keeps_the_names_and_tensors_of_the_backbone(name, variant) -> None:
    make, clip, stage, shape = SLIM[name]
    torch.manual_seed(1)
    backbone = make()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    modules = insert(backbone, clip=clip, stages=[stage], variant=variant)
    assert len(modules) == len(backbone.stages()[stage])
    assert all(module is backbone.get_submodule(key) for key, module in modules.items())
    after = backbone.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    added = {f"{key}.{part}" for key, module in modules.items() for part in module.state_dict()}
    assert after.keys() == before.keys() | added
    assert all(stage in key for key in added)
    loaded = backbone.load_state_dict(before, strict=False)
    assert set(loaded.missing_keys) == added
    assert loaded.unexpected_keys == []
    last = list(modules.values())[-1]
    assert last.conv1.weight.numel() == (math.prod(shape) if variant == "sa" else shape[0] * shape[2] * shape[3])
    assert backbone(torch.randn(2, 3, *clip)).shape == (2, backbone.feature_dim)


@pytest.mark.parametrize(
    ("make", "clip", "options", "added"),
    [
        (lambda: ResNet3D(101, cardinality=32), (64, 112, 112), {"stages": ["layer4"]}, 3 * 40_965),
        (lambda: ResNet3D(101, cardinality=32), (64, 112, 112), {"stages": ["layer3"], "blocks": "last"}, 54_277),
        (
            lambda: ResNet3D(101, cardinality=32),
            (64, 112, 112),
            {"stages": ["layer1", "layer2", "layer3", "layer4"]},
            2_386_085,
        ),
        (lambda: ResNet3D(152), (16, 112, 112), {"stages": ["layer4"]}, 3 * 40_965),
        (lambda: C3D(), (16, 112, 112), {"stages": ["conv5"], "blocks": "last"}, 27_141),
        (lambda: P3D(199), (16, 160, 160), {"stages": ["layer3"], "blocks": "last"}, 1024 * 104 + 5),
        (lambda: Res3D18(frames=16), (16, 112, 112), {"stages": ["res5"]}, 2 * 27_141),
    ],
)
def test_the_published_places_add_the_published_parameters(make, clip, options, added) -> None:
    """Table 3: 47.5 to 47.6 million for the ResNeXt."""
    with torch.device("meta"):
        backbone = make()
        before = count(backbone)
        insert(backbone, clip=clip, **options)
        assert count(backbone) - before == added


def test_the_place_of_the_papers_example_is_the_first_convolution_of_layer4() -> None:
    """Table 4's c = 1024, l = 8, h = w = 7."""
    with torch.device("meta"):
        backbone = ResNet3D(101, cardinality=32)
        modules = insert(backbone, clip=(64, 112, 112), stages=["layer4"], position="after_conv1")
        sizes = [(module.conv1.in_channels, module.map_size) for module in modules.values()]
    assert sizes == [(1024, (7, 7)), (1024, (4, 4)), (1024, (4, 4))]


@torch.no_grad()
@pytest.mark.parametrize("name", ["res3d18", "resnet3d18", "resnext3d", "p3d"])
def test_positions_are_where_they_say(name) -> None:
    make, _, stage, _ = SLIM[name]
    torch.manual_seed(2)
    block = make().eval().stages()[stage][-1]
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        nn.init.normal_(norm.bias)
    x = torch.randn(2, block.conv1.in_channels, 2, 4, 4)
    plain = block(x)
    seen: list[Tensor] = []
    handle = norms[-1].register_forward_hook(lambda _module, _args, out: seen.append(out))
    block(x)
    handle.remove()

    # softplus does not commute with what stands beside it
    block.before_add = nn.Softplus()
    torch.testing.assert_close(block(x), F.relu(F.softplus(seen[0]) + x))
    block.before_add, block.after_add = nn.Identity(), nn.Softplus()
    torch.testing.assert_close(block(x), F.softplus(plain))
    block.after_add, block.after_conv1 = nn.Identity(), nn.Softplus()
    inputs: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    block(x)
    torch.testing.assert_close(inputs[0], F.softplus(F.relu(block.bn1(block.conv1(x)))))


@torch.no_grad()
def test_positions_in_c3d_are_before_and_after_the_relu() -> None:
    torch.manual_seed(3)
    conv = C3D(size=16, width=2).conv5b
    x = torch.randn(1, 16, 2, 3, 3)
    plain = F.conv3d(x, conv.weight, conv.bias, padding=1)
    conv.before_add = nn.Softplus()
    torch.testing.assert_close(conv(x), F.softplus(plain))
    conv.before_add, conv.after_add = nn.Identity(), nn.Softplus()
    torch.testing.assert_close(conv(x), F.softplus(F.relu(plain)))


def test_identity_init_scales_what_each_block_adds() -> None:
    torch.manual_seed(4)
    backbone = ResNet3D(18, width=2).eval()
    block = backbone.layer4[1]
    x = torch.randn(2, 16, 1, 2, 2)
    residual = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    insert(backbone, clip=(16, 64, 64), stages=["layer4"], identity_init=True)
    torch.testing.assert_close(block(x), F.relu(torch.sigmoid(torch.tensor(4.0)) * residual + x))


def test_insertion_leaves_mode_and_statistics_alone() -> None:
    backbone = ResNet3D(18, width=2)
    backbone.bn1.eval()  # as partial batch normalisation does
    insert(backbone, clip=(16, 32, 32), stages=["layer4"])
    assert backbone.training
    assert not backbone.bn1.training
    assert backbone.layer4[0].bn1.num_batches_tracked == 0
    assert all(parameter.device.type == "cpu" for parameter in backbone.parameters())


def test_inserted_modules_follow_the_backbones_type_and_train() -> None:
    torch.manual_seed(5)
    backbone = ResNet3D(18, in_channels=2, width=2).double()
    modules = insert(backbone, clip=(16, 64, 64), stages=["layer3", "layer4"], blocks="last", deconv_stride=2)
    assert list(modules) == ["layer3.1.before_add", "layer4.1.before_add"]
    backbone(torch.randn(2, 2, 16, 64, 64, dtype=torch.float64)).square().sum().backward()
    for module in modules.values():
        for name, parameter in module.named_parameters():
            assert parameter.dtype == torch.float64
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("make", "clip", "options", "message"),
    [
        (SLIM["res3d18"][0], (8, 32, 32), {"stages": ["layer4"]}, r"stages=\['layer4'\] must name some of res2, res3"),
        (SLIM["res3d18"][0], (8, 32, 32), {"stages": []}, "must name some of"),
        (SLIM["res3d18"][0], (8, 32, 32), {"stages": ["res5", "res5"]}, "each once"),
        (SLIM["res3d18"][0], (8, 32, 32), {"stages": ["res5"], "blocks": "first"}, "blocks='first'"),
        (SLIM["res3d18"][0], (8, 32, 32), {"stages": ["res5"], "position": "in_between"}, "position='in_between'"),
        (SLIM["res3d18"][0], (8, 32, 32), {"stages": ["res5"], "variant": "cbam"}, "variant 'cbam'"),
        (SLIM["res3d18"][0], (16, 32, 32), {"stages": ["res5"]}, "built for clips of 8 frames"),
        (
            SLIM["c3d"][0],
            (16, 32, 32),
            {"stages": ["conv5"], "position": "after_conv1"},
            "has no position 'after_conv1'",
        ),
        (SLIM["p3d"][0], (16, 64, 64), {"stages": ["layer4"]}, "layer4.0 has maps without a time axis"),
    ],
)
def test_places_that_do_not_exist_are_refused(make, clip, options, message) -> None:
    backbone = make()
    names = list(backbone.state_dict())
    with pytest.raises(ValueError, match=message):
        insert(backbone, clip=clip, **options)
    assert list(backbone.state_dict()) == names


def test_a_place_holds_one_module() -> None:
    backbone = ResNet3D(18, width=2)
    insert(backbone, clip=(16, 32, 32), stages=["layer4"], blocks="last")
    with pytest.raises(ValueError, match="position 'before_add' already holds a STA"):
        insert(backbone, clip=(16, 32, 32), stages=["layer4"])
    insert(backbone, clip=(16, 32, 32), stages=["layer4"], position="after_add", variant="se")
    assert isinstance(backbone.layer4[1].after_add, SqueezeExcitation)
