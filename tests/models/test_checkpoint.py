import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.atw import ATW
from models.build import build
from models.checkpoint import load_checkpoint, load_state, save_checkpoint

BUILD = {
    "family": "atw",
    "backbone": "tiny",
    "num_classes": 3,
    "modality": "flow",
    "in_channels": 10,
    "segments": 2,
    "dropout": 0.5,
    "partial_bn": False,
    "pretrained": None,
    "consensus": "softmax_att",
}
CLASSES = ["clap", "jump", "wave"]


def trained(seed: int = 0, **changes) -> ATW:
    """A model whose every tensor, BN statistics included, differs from its initialisation."""
    torch.manual_seed(seed)
    model = build(**(BUILD | changes))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, optimiser)
    return model


def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    x = torch.randint(0, 256, (4, 2, 10, 32, 32), dtype=torch.uint8)
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x).logits, torch.tensor([0, 1, 2, 0])).backward()
    optimiser.step()


def assert_same_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def test_round_trip_is_bit_exact(tmp_path) -> None:
    model = trained()
    extra = {"epoch": 3, "metrics": {"top1": 0.5}, "random": torch.get_rng_state()}
    save_checkpoint(tmp_path / "a.pt", model=model, build=BUILD, classes=CLASSES, extra=extra)
    read = load_checkpoint(tmp_path / "a.pt")
    assert_same_state(read.model, model.state_dict())
    assert (read.build, read.classes) == (BUILD, tuple(CLASSES))
    assert torch.equal(read.extra.pop("random"), extra.pop("random"))
    assert read.extra == extra
    x = torch.randint(0, 256, (1, 2, 10, 32, 32), dtype=torch.uint8)
    assert torch.equal(read.model.eval()(x).logits, model.eval()(x).logits)


STA_CNN = {
    "family": "sta_cnn",
    "backbone": "tiny",
    "num_classes": 3,
    "modality": "rgb",
    "in_channels": 6,
    "segments": 3,
    "dropout": 0.5,
    "input_size": 32,
    "spatial": "san",
    "san_width": 1 / 32,
    "groups": 3,
    "top": 1,
}


@pytest.mark.parametrize("spatial", ["none", "shared", "san"])
def test_a_model_with_two_trunks_comes_back_bit_exactly(spatial, tmp_path) -> None:
    keywords = STA_CNN | {"spatial": spatial}
    torch.manual_seed(0)
    model = build(**keywords)
    x = torch.randint(0, 256, (4, 3, 6, 32, 32), dtype=torch.uint8)
    model.loss(model(x), torch.tensor([0, 1, 2, 0])).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    save_checkpoint(tmp_path / "a.pt", model=model, build=keywords, classes=CLASSES)
    read = load_checkpoint(tmp_path / "a.pt", expect_build=keywords, expect_classes=CLASSES)
    assert_same_state(read.model, model.state_dict())
    assert torch.equal(read.model.eval()(x).logits, model.eval()(x).logits)


CLIPS = {"num_classes": 3, "modality": "rgb", "in_channels": 48, "snippet": 16, "input_size": 32, "dropout": 0.5}
NEW_FAMILIES = {
    "jsta": {**CLIPS, "family": "jsta", "backbone": "res3d18", "width": 2, "softmax_axis": "spatial"},
    "jsta plain": {**CLIPS, "family": "jsta", "backbone": "resnet3d18", "width": 2, "sa_position": "none"},
    "sta_net": {**CLIPS, "family": "sta_net", "backbone": "resnet3d18", "width": 2, "shortcut": "A"},
    "sta_net c3d": {**CLIPS, "family": "sta_net", "backbone": "c3d", "width": 2, "stages": ["conv5"], "blocks": "last"},
    "sta_net plain": {**CLIPS, "family": "sta_net", "backbone": "resnext3d101", "width": 16, "variant": "none"},
    "sta_net p3d": {
        **CLIPS,
        "family": "sta_net",
        "backbone": "p3d199",
        "width": 2,
        "stages": ["layer3"],
        "variant": "ta",
    },
    "jsta_temporal": {
        "family": "jsta_temporal",
        "num_classes": 3,
        "feature_shape": [6],
        "hidden": 4,
        "dropout": 0.5,
        "classifier": "lstm",
    },
    "where_when": {"family": "where_when", "num_classes": 3, "feature_shape": [6, 2, 3], "hidden": 4, "dropout": 0.2},
}


def learn(model: nn.Module, optimiser: torch.optim.Optimizer, keywords: dict) -> None:
    """One step on what the family reads, drawn at random."""
    if "feature_shape" in keywords:
        x = torch.rand(4, 2, *keywords["feature_shape"])
    else:
        x = torch.randint(0, 256, (4, 2, keywords["in_channels"], 32, 32), dtype=torch.uint8)
    optimiser.zero_grad()
    model.loss(model(x), torch.tensor([0, 1, 2, 0])).backward()
    optimiser.step()


@pytest.mark.parametrize("name", NEW_FAMILIES)
def test_networks_of_clips_and_heads_resume_exactly(name, tmp_path) -> None:
    """After a round trip that is bit-exact; momentum and the random state of dropout go on as they were."""
    keywords = NEW_FAMILIES[name]
    torch.manual_seed(0)
    model = build(**keywords)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    learn(model, optimiser, keywords)
    extra = {"optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}
    save_checkpoint(tmp_path / "a.pt", model=model, build=keywords, classes=CLASSES, extra=extra)
    read = load_checkpoint(tmp_path / "a.pt", expect_build=keywords, expect_classes=CLASSES)
    assert type(read.model) is type(model)
    assert_same_state(read.model, model.state_dict())
    learn(model, optimiser, keywords)

    resumed = torch.optim.SGD(read.model.parameters(), lr=0.01, momentum=0.9)
    resumed.load_state_dict(read.extra["optimiser"])
    torch.set_rng_state(read.extra["random"])
    learn(read.model, resumed, keywords)
    assert_same_state(read.model, model.state_dict())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sta_net", {"shortcut": "B"}, "shortcut is 'A' instead of 'B'"),
        ("sta_net c3d", {"stages": ["conv4"]}, r"stages is \['conv5'\] instead of \['conv4'\]"),
        ("where_when", {"feature_shape": [6, 3, 3]}, r"feature_shape is \[6, 2, 3\] instead of \[6, 3, 3\]"),
    ],
)
def test_resuming_another_network_of_clips_or_head_names_the_differences(name, change, message, tmp_path) -> None:
    keywords = NEW_FAMILIES[name]
    save_checkpoint(tmp_path / "a.pt", model=build(**keywords), build=keywords, classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "a.pt", expect_build=keywords | change)


def test_where_the_attention_networks_weights_came_from_is_not_what_a_model_is(tmp_path) -> None:
    torch.manual_seed(0)
    model = build(**STA_CNN)
    gone = STA_CNN | {"san_pretrained": str(tmp_path / "gone.pt")}
    save_checkpoint(tmp_path / "a.pt", model=model, build=gone, classes=CLASSES)
    read = load_checkpoint(tmp_path / "a.pt", expect_build=STA_CNN | {"san_pretrained": "elsewhere.pt"})
    assert_same_state(read.model, model.state_dict())
    with pytest.raises(ValueError, match="top is 1 instead of 2"):
        load_checkpoint(tmp_path / "a.pt", expect_build=STA_CNN | {"top": 2})


def test_the_same_content_gives_the_same_bytes_under_any_name(tmp_path) -> None:
    model = trained()
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, model=model, build=BUILD, classes=CLASSES, extra={"epoch": 1})
    save_checkpoint(tmp_path / "c.pt", model=model, build=BUILD, classes=CLASSES, extra={"epoch": 2})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert (tmp_path / "a.pt").read_bytes() != (tmp_path / "c.pt").read_bytes()


def test_weights_load_with_or_without_the_prefix_of_a_wrapper(tmp_path) -> None:
    model = trained()
    wrapped = nn.Module()
    wrapped.module = model  # what DistributedDataParallel does to the names
    assert all(name.startswith("module.") for name in wrapped.state_dict())
    save_checkpoint(tmp_path / "a.pt", model=wrapped, build=BUILD, classes=CLASSES)
    assert_same_state(load_checkpoint(tmp_path / "a.pt").model, model.state_dict())
    for target in (trained(1), nn.DataParallel(trained(2))):
        for state in (model.state_dict(), wrapped.state_dict()):
            load_state(target, state)
            assert_same_state(getattr(target, "module", target), model.state_dict())


def test_training_resumes_exactly(tmp_path) -> None:
    def optimiser_for(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    torch.manual_seed(0)
    model = build(**BUILD)
    optimiser = optimiser_for(model)
    step(model, optimiser)
    extra = {"optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}
    save_checkpoint(tmp_path / "a.pt", model=model, build=BUILD, classes=CLASSES, extra=extra)
    step(model, optimiser)

    torch.manual_seed(99)
    read = load_checkpoint(tmp_path / "a.pt", expect_build=BUILD, expect_classes=CLASSES)
    resumed = optimiser_for(read.model)
    resumed.load_state_dict(read.extra["optimiser"])
    torch.set_rng_state(read.extra["random"])
    step(read.model, resumed)
    assert_same_state(read.model, model.state_dict())


def test_loading_spends_no_random_numbers_and_needs_no_pretrained_file(tmp_path) -> None:
    model = trained()
    gone = BUILD | {"pretrained": str(tmp_path / "gone.pth"), "partial_bn": True}
    save_checkpoint(tmp_path / "a.pt", model=model, build=gone, classes=CLASSES)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    read = load_checkpoint(tmp_path / "a.pt", expect_build=BUILD | {"partial_bn": True})
    assert torch.equal(torch.rand(1), expected)
    assert read.model.partial_bn
    assert_same_state(read.model, model.state_dict())


@pytest.mark.parametrize(
    ("build_change", "classes", "message"),
    [
        ({"backbone": "resnet18"}, CLASSES, "backbone is 'tiny' instead of 'resnet18'"),
        ({"consensus": "avg", "segments": 4}, CLASSES, "consensus is 'softmax_att' instead of 'avg'; segments is 2"),
        ({"init": "one"}, CLASSES, "init is None instead of 'one'"),
        ({}, ["clap", "run", "wave"], r"classes differ \(jump, run\)"),
        ({}, ["wave", "jump", "clap"], "classes differ .*another order"),
    ],
)
def test_resuming_another_model_names_the_differences(build_change, classes, message, tmp_path) -> None:
    save_checkpoint(tmp_path / "a.pt", model=trained(), build=BUILD, classes=CLASSES)
    with pytest.raises(ValueError, match=f"a.pt is a checkpoint of another model: .*{message}"):
        load_checkpoint(tmp_path / "a.pt", expect_build=BUILD | build_change, expect_classes=classes)


def test_weights_of_another_model_are_refused_and_change_nothing() -> None:
    model = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 of another shape \(attention.weight \(1, 128\) for \(1, 3\)\)"):
        load_state(model, trained(att_input="features").state_dict())
    with pytest.raises(ValueError, match=r"2 missing \(attention.weight, attention.bias\)"):
        load_state(model, trained(consensus="avg").state_dict())
    with pytest.raises(ValueError, match="left over"):
        load_state(trained(consensus="avg"), model.state_dict())
    assert_same_state(model, before)


def test_files_of_other_kinds_are_refused(tmp_path) -> None:
    torch.save(trained().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="bare.pt is not a wherewhen checkpoint"):
        load_checkpoint(tmp_path / "bare.pt")
    save_checkpoint(tmp_path / "a.pt", model=trained(), build=BUILD, classes=CLASSES)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save(content | {"version": 2}, tmp_path / "newer.pt")
    with pytest.raises(ValueError, match="newer.pt has checkpoint version 2, this program reads 1"):
        load_checkpoint(tmp_path / "newer.pt")
    content["state_dict"].pop("fc.bias")
    torch.save(content, tmp_path / "torn.pt")
    with pytest.raises(ValueError, match=r"torn.pt: .*1 missing \(fc.bias\)"):
        load_checkpoint(tmp_path / "torn.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["clap"]}, "1 class names do not fit a model of 3"),
        ({"build": BUILD | {"pretrained": Path("x")}}, "does not survive JSON"),
        ({"build": BUILD | {"size": (1, 2)}}, "does not survive JSON"),
        ({"extra": {"best": np.float64(0.5)}}, r"extra\['best'\] is a float64"),
        ({"extra": {"state": [0, np.zeros(2)]}}, r"extra\['state'\]\[1\] is a ndarray"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(arguments, message, tmp_path) -> None:
    options = {"model": trained(), "build": BUILD, "classes": CLASSES} | arguments
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "a.pt", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path) -> None:
    model = trained()
    save_checkpoint(tmp_path / "a.pt", model=model, build=BUILD, classes=CLASSES)
    before = (tmp_path / "a.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a quarter of what the file needs
    try:
        with pytest.raises((OSError, RuntimeError)):
            save_checkpoint(tmp_path / "a.pt", model=trained(1), build=BUILD, classes=CLASSES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before
