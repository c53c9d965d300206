"""The benchmark of training steps runs, and compares what it says it compares."""

import json

import pytest
import torch

from benchmarks import train_step
from models.build import build


def test_the_last_line_is_json(capsys, monkeypatch) -> None:
    monkeypatch.setitem(train_step.SIDE_PX, "tiny", 32)
    train_step.main(["--backbones", "tiny", "--videos", "1", "--rounds", "2"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = result["backbones"]["tiny"]
    assert (rows["videos"], rows["rounds"], result["segments"]) == (1, 2, 3)
    assert set(rows["flow"]) == {"bare", "atw", "sta_cnn temporal", "sta_cnn flow stream"}
    assert set(rows["rgb"]) == {"bare", "sta_cnn rgb stream", "san"}
    for row in (*rows["flow"].values(), *rows["rgb"].values()):
        assert row["images_per_second"] > 0
    assert rows["rgb"]["san"]["san_cost"] > 0


def test_overheads_are_medians_of_ratios_round_by_round() -> None:
    seconds = {"bare": [1.0, 2.0, 4.0], "sta_cnn rgb stream": [3.0, 6.6, 8.0], "san": [1.0, 4.0, 6.0]}
    flops = {"bare": 10, "sta_cnn rgb stream": 66, "san": 20}
    rows = train_step.compare(seconds, images=6, flops=flops, peak=20.0)
    assert rows["bare"] == {"images_per_second": 3.0, "utilisation": 0.25}
    stream = rows["sta_cnn rgb stream"]
    assert (stream["overhead"], stream["smallest_ratio"], stream["largest_ratio"]) == (2.0, 2.0, 3.3)
    assert stream["utilisation"] == pytest.approx(0.5)  # 66 in 6.6 seconds
    assert stream["overhead_over_both_trunks"] == pytest.approx(0.1)  # of 3/2, 6.6/6 and 8/10
    assert rows["san"]["san_cost"] == 1.5


@pytest.mark.parametrize(("backbone", "family", "side"), [("resnext3d101", "sta_net", 32), ("res3d18", "jsta", 16)])
def test_networks_of_clips_stand_beside_their_bare_backbones(backbone, family, side, capsys, monkeypatch) -> None:
    monkeypatch.setitem(train_step.SIDE_PX, backbone, side)
    train_step.main(["--backbones", backbone, "--videos", "2", "--rounds", "2"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["backbones"][backbone]["rgb"]) == ["bare", family]
    assert result["backbones"][backbone]["rgb"][family]["largest_ratio"] > 0


def test_a_steps_operations_are_those_of_its_layers() -> None:
    """A product of three matrices: forward two, backward three of them, the first of which needs no gradient."""
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 4, bias=False))
    x = torch.randn(32, 8)
    counted = train_step.step_flops({"step": lambda: layers(x).sum().backward()})["step"]
    first, second = 2 * 32 * 8 * 16, 2 * 32 * 16 * 4
    assert counted == (first + second) + (first + 2 * second)


def test_the_bare_network_of_clips_is_the_one_that_attention_is_put_into() -> None:
    torch.manual_seed(0)
    bare = train_step.Bare("res3d18", modality="rgb", in_channels=24, side=16).eval()
    keywords = {"num_classes": train_step.CLASSES, "modality": "rgb", "in_channels": 24, "dropout": 0.0}
    model = build(**keywords, family="jsta", backbone="res3d18", sa_position="none", snippet=8, input_size=16).eval()
    model.load_state_dict(bare.state_dict())
    x = torch.randint(0, 256, (2, 24, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(bare(x), model.score_snippets(x).logits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_nothing_is_measured(capsys) -> None:
    train_step.main(["--device", "cuda"])
    assert json.loads(capsys.readouterr().out)["backbones"] == "not measured: there is no CUDA device"
