"""Small files in every layout that published checkpoints come in, made here from seeded networks."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.backbones.bn_inception import BNInception
from models.backbones.resnet import ResNet
from models.backbones.tiny import TinyCNN
from models.build import build
from models.checkpoint import save_checkpoint
from models.weights import cross_modality_conv1, load_initial, load_pretrained


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy, so that loading into a model cannot change what the file held."""
    return OrderedDict((name, tensor.clone()) for name, tensor in model.state_dict().items())


def written(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture(scope="module")
def inception() -> dict[str, Tensor]:
    """The weights of a 1000-class BN-Inception, as the ImageNet file has them."""
    torch.manual_seed(7)
    return state(BNInception(num_classes=1000))


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    torch.manual_seed(8)
    return state(ResNet(18, num_classes=11))


def stream(**changes) -> nn.Module:
    options = {"num_classes": 11, "modality": "rgb", "in_channels": 3, "segments": 3, "dropout": 0.5}
    return build(**{**options, **changes})


def assert_trunk_is(model: nn.Module, expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    for name, tensor in model.backbone.state_dict().items():
        if name not in but and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, expected[name]), name


def test_imagenet_file_with_last_linear_and_squashed_norms(inception, tmp_path) -> None:
    """The converted Caffe file: last_linear, BN tensors of shape (1, C), no num_batches_tracked."""
    content = {}
    for name, tensor in inception.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = tensor[None] if "_bn." in name else tensor
        content[name.replace("fc.", "last_linear.")] = shape
    model = stream(backbone="bn_inception")
    before = model.fc.weight.clone()
    report = load_pretrained(model, written(tmp_path / "bn_inception.pth", content))
    assert_trunk_is(model, inception)
    assert torch.equal(model.fc.weight, before)
    assert len(report.loaded) == 69 * 2 + 69 * 4
    assert report.missing == ("attention.weight", "attention.bias")
    assert report.dropped == ("fc.bias", "fc.weight")
    assert len(report.reshaped) == 69 * 4
    assert report.unexpected == ()


def test_trained_tsn_file_with_prefixes_and_same_classes(inception, tmp_path) -> None:
    """The port's training checkpoint: module.base_model.*, module.new_fc.*, beside arch, epoch and optimizer."""
    torch.manual_seed(9)
    fc = nn.Linear(1024, 11)
    content = {f"module.base_model.{name}": tensor for name, tensor in inception.items() if not name.startswith("fc.")}
    content |= {"module.new_fc.weight": fc.weight.detach(), "module.new_fc.bias": fc.bias.detach()}
    wrapped = {"epoch": 80, "arch": "BNInception", "best_prec1": torch.tensor(85.0), "state_dict": content}
    model = stream(backbone="bn_inception")
    report = load_pretrained(model, written(tmp_path / "rgb_checkpoint.pth.tar", wrapped))
    assert_trunk_is(model, inception)
    assert torch.equal(model.fc.weight, fc.weight)
    assert torch.equal(model.fc.bias, fc.bias)
    assert report.missing == ("attention.weight", "attention.bias")
    assert (report.dropped, report.unexpected, report.reshaped) == ((), (), ())


def test_author_names_of_the_convlstm_models(resnet, tmp_path) -> None:
    renamed = {
        name.replace("fc.", "fc_custom.")
        if name.startswith("fc.")
        else name.replace("conv1.", "conv1_custom.", 1)
        if name.startswith("conv1.")
        else name: tensor
        for name, tensor in resnet.items()
    }
    assert {"conv1_custom.weight", "fc_custom.bias", "layer1.0.conv1.weight"} <= renamed.keys()
    model = ResNet(18, num_classes=11)
    report = load_pretrained(model, written(tmp_path / "resnet.pth", renamed))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resnet[name]), name
    assert (report.missing, report.dropped, report.unexpected, report.reshaped) == ((), (), (), ())


def test_a_bare_torchvision_state_and_an_old_file_format(resnet, tmp_path) -> None:
    old = {name: tensor for name, tensor in resnet.items() if not name.endswith("num_batches_tracked")}
    path = written(tmp_path / "resnet18.pth", old, _use_new_zipfile_serialization=False)
    model = stream(backbone="resnet18")
    report = load_pretrained(model, path)
    assert_trunk_is(model, resnet)
    assert torch.equal(model.fc.weight, resnet["fc.weight"])
    assert not [name for name in report.missing if name.endswith("num_batches_tracked")]


def test_an_image_file_starts_a_flow_stream_by_cross_modality(resnet, tmp_path) -> None:
    model = stream(backbone="resnet18", modality="flow", in_channels=10)
    report = load_pretrained(model, written(tmp_path / "resnet18.pth", resnet))
    colours = resnet["conv1.weight"].double().numpy()
    for channel in range(10):
        expected = (colours[:, 0] + colours[:, 1] + colours[:, 2]) / 3
        np.testing.assert_allclose(
            model.backbone.conv1.weight[:, channel].detach().numpy(), expected, rtol=1e-5, atol=1e-7
        )
    assert report.reshaped == ("conv1.weight",)
    assert_trunk_is(model, resnet, but=("conv1.weight",))


def test_cross_modality_keeps_biases_and_makes_equal_channels(inception, tmp_path) -> None:
    model = stream(backbone="bn_inception", modality="warped_flow", in_channels=10)
    load_pretrained(model, written(tmp_path / "bn.pth", inception))
    weight = model.backbone.conv1_7x7_s2.weight
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    assert torch.equal(model.backbone.conv1_7x7_s2.bias, inception["conv1_7x7_s2.bias"])
    assert cross_modality_conv1(torch.tensor([[[[1.0]], [[2.0]], [[6.0]]]]), 4).flatten().tolist() == [3.0] * 4


def test_a_flow_file_loads_into_a_flow_stream_as_it_is(tmp_path) -> None:
    torch.manual_seed(3)
    content = state(ResNet(18, in_channels=10))
    model = stream(backbone="resnet18", modality="flow", in_channels=10)
    report = load_pretrained(model, written(tmp_path / "flow.pth", content))
    assert_trunk_is(model, content)
    assert report.reshaped == ()


def test_other_class_counts_drop_the_classifier_alone(resnet, tmp_path) -> None:
    model = stream(backbone="resnet18", num_classes=5)
    before = state(model.fc)
    report = load_pretrained(model, written(tmp_path / "resnet18.pth", resnet))
    assert report.dropped == ("fc.bias", "fc.weight")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.fc.state_dict().items())
    headless = load_pretrained(ResNet(18), tmp_path / "resnet18.pth")
    assert headless.dropped == ("fc.bias", "fc.weight")


def test_own_checkpoints_warm_start_another_consensus(tmp_path) -> None:
    """Train with the average first, then attend: backbone and classifier carry over, the attention starts anew."""
    options = {"num_classes": 11, "modality": "rgb", "in_channels": 3, "segments": 3, "dropout": 0.5}
    torch.manual_seed(4)
    average = build(**options, consensus="avg")
    path = tmp_path / "average.pt"
    save_checkpoint(path, model=average, build=options | {"consensus": "avg"}, classes=[str(i) for i in range(11)])
    attending = build(**options, pretrained=str(path))
    assert_trunk_is(attending, state(average.backbone))
    assert torch.equal(attending.fc.weight, average.fc.weight)
    assert attending.load_report.missing == ("attention.weight", "attention.bias")


def test_an_image_file_starts_a_flow_stream_with_spatial_attention(inception, tmp_path) -> None:
    switches = {"family": "sta_cnn", "spatial": "shared", "input_size": 32}
    model = stream(backbone="bn_inception", modality="flow", in_channels=10, **switches)
    report = load_pretrained(model, written(tmp_path / "bn.pth", inception))
    assert_trunk_is(model, inception, but=("conv1_7x7_s2.weight",))
    assert report.reshaped == ("conv1_7x7_s2.weight",)
    assert report.dropped == ("fc.bias", "fc.weight")
    assert (report.missing, report.unexpected) == (("aux.weight", "sal.weight"), ())


def saved(path: Path, **changes) -> tuple[Path, nn.Module]:
    """A checkpoint of our own whose every tensor differs from a new model's."""
    options = {"num_classes": 4, "modality": "rgb", "in_channels": 3, "segments": 3, "dropout": 0.5} | changes
    torch.manual_seed(5)
    model = build(**options)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    save_checkpoint(path, model=model, build=options, classes=["a", "b", "c", "d"][: options["num_classes"]])
    return path, model


def test_hard_selection_starts_from_the_average_with_every_tensor(tmp_path) -> None:
    shared = {"family": "sta_cnn", "spatial": "shared", "input_size": 64}
    path, trained = saved(tmp_path / "average.pt", **shared)
    model = stream(num_classes=4, **shared, top=1)
    report = load_initial(model, path)
    expected = state(trained)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (len(report.loaded), report.missing, report.unexpected, report.dropped) == (len(expected), (), (), ())
    assert {"backbone.stage1.1.running_mean", "fc.weight", "sal.weight", "aux.weight"} <= set(report.loaded)


def test_another_family_starts_from_what_the_two_have_in_common(tmp_path) -> None:
    path, trained = saved(tmp_path / "atw.pt")
    model = stream(num_classes=4, family="sta_cnn", spatial="shared", input_size=64)
    before, report = state(model), load_initial(model, path)
    for name, tensor in model.state_dict().items():
        source = trained.state_dict() if name.startswith(("backbone.", "fc.")) else before
        assert torch.equal(tensor, source[name]), name
    assert report.missing == ("aux.weight", "sal.weight")
    assert report.unexpected == ("attention.weight", "attention.bias")


def test_tensors_of_another_shape_stay_as_they_are(tmp_path) -> None:
    path, trained = saved(tmp_path / "a.pt", num_classes=2)
    model = stream(num_classes=4, modality="flow", in_channels=10)
    before, report = state(model), load_initial(model, path)
    assert report.dropped == ("backbone.stage1.0.weight", "fc.weight", "fc.bias", "attention.weight")
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.dropped)
    assert torch.equal(model.backbone.stage2[0].weight, trained.backbone.stage2[0].weight)


def test_a_start_from_another_backbone_is_refused_and_changes_nothing(tmp_path) -> None:
    path, _ = saved(tmp_path / "tiny.pt")
    model = stream(num_classes=4, backbone="resnet18")
    before = state(model)
    with pytest.raises(ValueError, match=r"tiny.pt cannot start this model.*first keys backbone.stage1.0.weight"):
        load_initial(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_extra_modules_in_the_file_are_reported(resnet, tmp_path) -> None:
    content = resnet | {"mask.0.weight": torch.zeros(2)}
    report = load_pretrained(ResNet(18), written(tmp_path / "x.pth", content))
    assert report.unexpected == ("mask.0.weight",)
    assert "mask.0.weight" in str(report)
    assert "fc.bias" in str(report)


def test_the_log_names_every_tensor_that_was_not_used(resnet, tmp_path) -> None:
    extra = [f"mask.{number}.weight" for number in range(7)]
    content = resnet | {name: torch.zeros(2) for name in extra}
    report = load_pretrained(ResNet(18), written(tmp_path / "x.pth", content))
    assert f"7 unexpected ({', '.join(extra)})" in str(report)


@pytest.mark.parametrize(
    ("file_depth", "model_depth"), [(18, 34), (34, 18), (18, 50), (50, 101), (101, 50), (152, 101)]
)
def test_another_depth_is_refused_by_name(file_depth, model_depth, tmp_path) -> None:
    with torch.device("meta"):
        names = {name: tensor.shape for name, tensor in ResNet(file_depth).state_dict().items()}
        model = ResNet(model_depth)
    content = {name: torch.zeros(()).expand(shape) for name, shape in names.items()}  # a few bytes each
    with pytest.raises(ValueError, match=f"looks like ResNet-{file_depth} .*the model is ResNet-{model_depth} "):
        load_pretrained(model, written(tmp_path / "x.pth", content))


def test_another_architecture_is_refused_with_first_keys_and_changes_nothing(inception, tmp_path) -> None:
    model = TinyCNN()
    before = state(model)
    with pytest.raises(ValueError, match=r"BN-Inception \(first keys conv1_7x7_s2.weight.*TinyCNN \(first keys stage1"):
        load_pretrained(model, written(tmp_path / "x.pth", inception))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_missing_or_misshapen_backbone_tensor_is_refused_and_changes_nothing(resnet, tmp_path) -> None:
    model = ResNet(18)
    before = state(model)
    lacking = {name: tensor for name, tensor in resnet.items() if name != "layer2.0.bn1.weight"}
    with pytest.raises(ValueError, match=r"1 missing \(layer2.0.bn1.weight\)"):
        load_pretrained(model, written(tmp_path / "x.pth", lacking))
    odd = resnet | {"layer2.0.bn1.weight": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"layer2.0.bn1.weight \(5,\) for \(128,\)"):
        load_pretrained(model, written(tmp_path / "y.pth", odd))
    flow = resnet | {"conv1.weight": torch.zeros(64, 10, 7, 7)}
    with pytest.raises(ValueError, match=r"conv1.weight \(64, 10, 7, 7\) for \(64, 3, 7, 7\)"):
        load_pretrained(model, written(tmp_path / "z.pth", flow))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Dangerous:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple:
        return (print, ("ran",))


def test_files_that_are_no_weights_are_refused(tmp_path, capsys) -> None:
    model = TinyCNN()
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    whole = written(tmp_path / "whole.pth", model)
    cut = written(tmp_path / "cut.pth", state(model))
    cut.write_bytes(cut.read_bytes()[:3000])
    danger = written(tmp_path / "danger.pth", {"state_dict": Dangerous()})
    for path in (tmp_path / "empty.pth", tmp_path / "text.pth", whole, cut, danger):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
            load_pretrained(model, path)
    assert capsys.readouterr().out == ""
    for content in ([1, 2], {}, {"a": 1}, {"state_dict": {"a": 1}}):
        with pytest.raises(ValueError, match="holds neither a state_dict"):
            load_pretrained(model, written(tmp_path / "other.pth", content))
    with pytest.raises(FileNotFoundError):
        load_pretrained(model, tmp_path / "absent.pth")


def test_two_tensors_for_one_name_are_refused(resnet, tmp_path) -> None:
    content = resnet | {"new_fc.weight": resnet["fc.weight"]}
    with pytest.raises(ValueError, match=r"two tensors for fc.weight \(one is new_fc.weight\)"):
        load_pretrained(ResNet(18, num_classes=11), written(tmp_path / "x.pth", content))
