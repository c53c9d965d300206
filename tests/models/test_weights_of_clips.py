"""Small files in the layouts that the checkpoints of 3D networks come in, made here from seeded slim networks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.backbones.c3d import C3D
from models.backbones.p3d import P3D
from models.backbones.res3d18 import Res3D18
from models.backbones.resnet import ResNet
from models.backbones.resnet3d import ResNet3D
from models.build import build
from models.checkpoint import save_checkpoint
from models.weights import load_initial, load_pretrained

ADDED = ("conv1.weight", "conv1.bias", "deconv.weight", "deconv.bias", "conv2.weight", "conv2.bias")


def state(model: nn.Module, *, seed: int = 3) -> dict[str, Tensor]:
    """Numbers of no initialisation, under the names of `model`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in model.state_dict().items()
    }


def written(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def stream(backbone: str, *, family: str = "sta_net", modality: str = "rgb", snippet: int = 16, **changes) -> nn.Module:
    channels = (3 if modality == "rgb" else 2) * snippet
    options = {"num_classes": 5, "input_size": 32, "dropout": 0.0, "width": 2, "backbone": backbone}
    return build(family=family, modality=modality, in_channels=channels, snippet=snippet, **{**options, **changes})


def assert_trunk_is(model: nn.Module, expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    """Every tensor of the backbone is the file's, but for those named and the modules that were inserted."""
    for name, tensor in model.backbone.state_dict().items():
        inserted = any(place in name for place in ("before_add", "after_add", "after_conv1"))
        if name not in but and not inserted and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("wrapped", [True, False])
def test_old_3d_resnets_file_begins_an_sta_network(wrapped, tmp_path) -> None:
    """2018: module.*, under state_dict, beside arch, epoch and optimizer, no num_batches_tracked, shortcut A."""
    trained = state(ResNet3D(18, shortcut="A", width=2, num_classes=400))
    content = {f"module.{k}": v for k, v in trained.items() if not k.endswith("num_batches_tracked")}
    if wrapped:
        content = {"arch": "resnet-18", "epoch": 146, "state_dict": content, "optimizer": {"state": {}}}
    path = written(tmp_path / "resnet-18-kinetics.pth", content, _use_new_zipfile_serialization=False)
    model = stream("resnet3d18", shortcut="A", pretrained=str(path))
    assert_trunk_is(model, trained)
    report = model.load_report
    assert report.dropped == ("fc.bias", "fc.weight")
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    added = {name for name in model.state_dict() if "before_add" in name}
    assert added == {f"backbone.layer4.{block}.before_add.{name}" for block in (0, 1) for name in ADDED}


def test_new_3d_resnets_file_and_a_classifier_of_the_same_classes(tmp_path) -> None:
    """2020: no prefix, shortcut B, "0..1" pixels."""
    trained = state(ResNet3D(50, release="2020", width=2, num_classes=5))
    path = written(tmp_path / "r3d50_K_200ep.pth", {"state_dict": trained, "arch": "resnet50"})
    model = stream("resnet3d50", release="2020", variant="none", pretrained=str(path))
    assert_trunk_is(model, trained)
    assert torch.equal(model.fc.weight, trained["fc.weight"])
    assert model.load_report.dropped == ()
    assert model.fc.bias.tolist() == trained["fc.bias"].tolist()


def test_a_trained_flow_network_of_mars_is_read_with_its_classifier(tmp_path) -> None:
    trained = state(ResNet3D(101, cardinality=32, in_channels=2, width=16, num_classes=5))
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in trained.items()}}
    path = written(tmp_path / "HMDB51_Flow_16f.pth", content)
    model = stream("resnext3d101", modality="flow", width=16, pretrained=str(path))
    assert_trunk_is(model, trained)
    assert torch.equal(model.fc.weight, trained["fc.weight"])
    assert model.load_report.reshaped == ()


def test_a_colour_network_begins_a_flow_network_by_cross_modality(tmp_path) -> None:
    trained = state(ResNet3D(18, width=2, num_classes=400))
    path = written(tmp_path / "r.pth", {f"module.{name}": tensor for name, tensor in trained.items()})
    model = stream("resnet3d18", modality="flow", pretrained=str(path))
    stem = model.backbone.conv1.weight
    assert stem.shape == (2, 2, 7, 7, 7)
    mean = (trained["conv1.weight"][:, 0] + trained["conv1.weight"][:, 1] + trained["conv1.weight"][:, 2]) / 3
    for channel in range(2):
        torch.testing.assert_close(stem[:, channel], mean)
    assert model.load_report.reshaped == ("conv1.weight",)
    assert_trunk_is(model, trained, but=("conv1.weight",))


C3D_LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3a": "features.6",
    "conv3b": "features.8",
    "conv4a": "features.11",
    "conv4b": "features.13",
    "conv5a": "features.16",
    "conv5b": "features.18",
    "fc6": "classifier.0",
    "fc7": "classifier.3",
    "fc8": "classifier.6",
}


@pytest.mark.parametrize("named", ["features", "layers"])
@pytest.mark.parametrize("classes", [5, 487])
def test_c3d_files_of_both_spellings(named, classes, tmp_path) -> None:
    trained = state(C3D(size=32, width=2, num_classes=classes))
    content = {}
    for name, tensor in trained.items():
        layer, _, parameter = name.rpartition(".")
        content[f"{C3D_LAYERS[layer] if named == 'features' else layer}.{parameter}"] = tensor
    path = written(tmp_path / "c3d-pretrained.pth", content)
    model = stream("c3d", stages=["conv5"], blocks="last", pretrained=str(path))
    assert_trunk_is(model, trained)
    if classes == 5:
        assert torch.equal(model.fc.weight, trained["fc8.weight"])
        assert model.load_report.dropped == ()
    else:
        assert model.load_report.dropped == ("fc.bias", "fc.weight")
    bare = C3D(size=32, width=2, num_classes=5)
    report = load_pretrained(bare, path)
    assert report.dropped == (() if classes == 5 else ("fc8.bias", "fc8.weight"))
    assert torch.equal(bare.fc7.weight, trained["fc7.weight"])


def test_p3d_file_of_the_port(tmp_path) -> None:
    trained = state(P3D(199, width=2, num_classes=400))
    content = {
        name.replace("conv1.", "conv1_custom.") if name.startswith("conv1.") else name: tensor
        for name, tensor in trained.items()
    }
    path = written(tmp_path / "p3d_rgb_199.checkpoint.pth.tar", {"state_dict": content, "epoch": 1})
    model = stream("p3d199", stages=["layer3"], blocks="last", pretrained=str(path))
    assert_trunk_is(model, trained)
    assert model.load_report.dropped == ("fc.bias", "fc.weight")


def caffe(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Res3D-18's tensors as blobs of Caffe: statistics as sums of 2, gain and shift in a layer of their own."""
    convs = {"conv1": "branch2a", "conv2": "branch2b", "downsample.0": "branch1"}
    norms = {"bn1": "branch2a", "bn2": "branch2b", "downsample.1": "branch1"}
    blobs: dict[str, Tensor] = {}
    for name, tensor in trained.items():
        layer, _, parameter = name.rpartition(".")
        block, _, part = layer.partition(".")
        if layer == "fc":
            blobs["fc8-487." + {"weight": "0", "bias": "1"}[parameter]] = tensor
        elif layer == "conv1":
            blobs["conv1.0"] = tensor
        elif part in convs:
            blobs[f"{block}_{convs[part]}.0"] = tensor
        else:
            rest = "conv1" if layer == "bn1" else f"{block.removeprefix('res')}_{norms[part]}"
            prefix = "_" if layer == "bn1" else ""
            kind, blob = {"weight": ("scale", "0"), "bias": ("scale", "1")}.get(parameter, ("bn", None))
            if parameter == "num_batches_tracked":
                blobs[f"bn{prefix}{rest}.2"] = torch.tensor([2.0])
            elif blob is not None:
                blobs[f"{kind}{prefix}{rest}.{blob}"] = tensor
            else:
                blobs[f"bn{prefix}{rest}." + {"running_mean": "0", "running_var": "1"}[parameter]] = 2 * tensor
    return blobs


@pytest.mark.parametrize("position", ["after_3b", "replace_3b", "none"])
def test_converted_caffe_model_begins_the_s_step(position, tmp_path) -> None:
    """Sports-1M's, S-CNN v1.1's: the block of attention comes after reading, so its place does not matter."""
    trained = state(Res3D18(width=2, num_classes=487))
    path = written(tmp_path / "c3d_resnet18_sports1m_r2.pth", caffe(trained))
    options = {"family": "jsta", "snippet": 8, "sa_position": position}
    model = stream("res3d18", pretrained=str(path), **options)
    expected = {k: v for k, v in trained.items() if position != "replace_3b" or not k.startswith("res3b.")}
    for name, tensor in model.backbone.state_dict().items():
        if name in expected and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, expected[name], msg=name)
    assert model.load_report.dropped == ("fc.bias", "fc.weight")
    assert (model.load_report.missing, model.load_report.unexpected) == ((), ())
    with torch.device("meta"):
        unread = stream("res3d18", pretrained=str(tmp_path / "gone.pth"), read_pretrained=False, **options)
    assert unread.state_dict().keys() == model.state_dict().keys()


def test_unused_names_are_reported(tmp_path) -> None:
    trained = state(ResNet3D(18, width=2))
    path = written(tmp_path / "x.pth", trained | {"module.aux.weight": torch.zeros(2)})
    model = stream("resnet3d18", pretrained=str(path))
    assert model.load_report.unexpected == ("aux.weight",)
    assert model.load_report.missing == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("family", ["sta_net", "jsta"])
def test_own_networks_begin_others(family, tmp_path) -> None:
    """The plain network first, then attention: as a pretrained file, and as the experiment to begin with."""
    plain = {"variant": "none"} if family == "sta_net" else {"sa_position": "none"}
    attending = {"stages": ["res5"]} if family == "sta_net" else {}
    torch.manual_seed(1)
    model = stream("res3d18", family=family, **plain)
    keywords = {"family": family, "backbone": "res3d18", "num_classes": 5, **plain}
    save_checkpoint(tmp_path / "plain.pt", model=model, build=keywords, classes=list("abcde"))
    tuned = stream("res3d18", family=family, pretrained=str(tmp_path / "plain.pt"), **attending)
    assert_trunk_is(tuned, model.backbone.state_dict())
    begun = stream("res3d18", family=family, **attending)
    report = load_initial(begun, tmp_path / "plain.pt")
    assert_trunk_is(begun, model.backbone.state_dict())
    assert torch.equal(begun.fc.weight, model.fc.weight)
    assert report.missing
    assert all("_add" in name for name in report.missing)


def test_own_c3d_network_begins_another(tmp_path) -> None:
    torch.manual_seed(1)
    model = stream("c3d", variant="none")
    keywords = {"family": "sta_net", "num_classes": 5}
    save_checkpoint(tmp_path / "plain.pt", model=model, build=keywords, classes=list("abcde"))
    tuned = stream("c3d", stages=["conv5"], pretrained=str(tmp_path / "plain.pt"))
    assert_trunk_is(tuned, model.backbone.state_dict())
    assert torch.equal(tuned.fc.weight, model.fc.weight)


@pytest.mark.parametrize(
    ("make", "looks_like"),
    [
        (lambda: ResNet(50), "ResNet-50"),
        (lambda: ResNet3D(18, width=16), "ResNet3D-18"),
        (lambda: ResNet3D(34, width=16, shortcut="A"), "ResNet3D-34 with shortcut A"),
        (lambda: ResNet3D(101, width=16), "ResNet3D-101"),
        (lambda: ResNet3D(101, width=16, cardinality=32), "ResNeXt3D-101"),
        (lambda: C3D(size=32, width=2), "C3D"),
        (lambda: P3D(199, width=2), "P3D-199"),
        (lambda: P3D(63, width=2), "P3D-63"),
        (lambda: Res3D18(width=2), "Res3D-18"),
    ],
)
def test_another_network_is_refused_by_name_and_changes_nothing(make, looks_like, tmp_path) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    content = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}  # a few bytes each
    path = written(tmp_path / "x.pth", content)
    for backbone, own in (
        ("resnet3d50", "ResNet3D-50"),
        ("c3d", "C3D"),
        ("p3d199", "P3D-199"),
        ("res3d18", "Res3D-18"),
    ):
        if own == looks_like:
            continue
        model = stream(backbone, variant="none")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(
            ValueError,
            match=f"x.pth is a checkpoint of another model: it looks like {looks_like}[ ,].*the model is {own}[ ;]",
        ):
            load_pretrained(model, path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_slim_and_other_shortcut_are_refused(tmp_path) -> None:
    path = written(tmp_path / "a.pth", state(ResNet3D(18, shortcut="A", width=2)))
    with pytest.raises(
        ValueError, match=r"ResNet3D-18 with shortcut A .*the model is ResNet3D-18 .*missing \(layer2.0.d"
    ):
        stream("resnet3d18", shortcut="B", pretrained=str(path))
    with pytest.raises(ValueError, match=r"of another shape \(bn1.bias \(2,\) for \(4,\)"):
        stream("resnet3d18", shortcut="A", width=4, pretrained=str(path))
