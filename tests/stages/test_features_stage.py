"""Features: those of the network run by hand on frames that something else decoded; made once for each network."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from models.build import build
from models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.config import ExperimentConfig, canonical
from pipeline.dataset.feature_receipts import FeatureReceipt
from pipeline.learning.job import model_keywords
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.features import FeatureStore
from stages import features as stage
from tests.stages.conftest import LOST

CLIPS = {"snippet": 4, "test_segments": None, "input_size": 32, "test_scale": 1.0}
FRAMES = {"snippet": 1, "test_segments": 5, "input_size": 32, "test_crops": "whole"}
NETWORKS: dict[str, dict[str, Any]] = {
    "jsta": {"family": "jsta", "backbone": "res3d18", "width": 4},
    "atw": {"family": "atw", "backbone": "tiny"},
    "sta_cnn": {"family": "sta_cnn", "backbone": "tiny", "spatial": "shared"},
}
VIDEOS = ["test-left-0", "test-right-0", "train-up-3"]


def sampling(family: str) -> dict[str, Any]:
    return {"segments": 3, **(CLIPS if family == "jsta" else FRAMES)}


def source(family: str, **model: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"modality": "frames", "model": NETWORKS[family] | model, "sampling": sampling(family) | {"test_segments": 15}}
    )


def head(family: str, **own: Any) -> ExperimentConfig:
    model = {"family": "jsta_temporal" if family == "jsta" else "where_when", "hidden": 8}
    values = {"modality": "frames", "features": "s", "model": model, "sampling": sampling(family) | own}
    return ExperimentConfig.model_validate(values)


def checkpoint(path: Path, experiment: ExperimentConfig, change: Callable[[Any], None] = lambda model: None) -> Path:
    """An untrained model whose BatchNorm statistics are not those of initialisation."""
    keywords = model_keywords(experiment, num_classes=3)
    torch.manual_seed(0)
    model = build(**keywords)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    with torch.no_grad():
        change(model)
    save_checkpoint(path, model=model, build=keywords, classes=["a", "b", "c"], extra={"split": "split1", "seed": 0})
    return path


@pytest.fixture
def make(learnable: Any, tmp_path: Path) -> Callable[..., FeatureReceipt]:
    def run(family: str, file: Path, **changes: Any) -> FeatureReceipt:
        settings: dict[str, Any] = {
            "shard": "00000",
            "experiment": head(family),
            "source": source(family),
            "compute": learnable.compute,
            "store": tmp_path / "features",
        } | changes
        videos = settings.pop("videos", [*VIDEOS, LOST])
        index = settings.pop("index", None) or learnable.index("frames")
        return stage.make_features(videos, index, checkpoint=file, **settings)

    return run


def decoded(learnable: Any, video: str) -> list[np.ndarray]:
    """RGB frames of a video, out of the shard by tar and OpenCV."""
    with tarfile.open(learnable.folder / "frames" / "00000.tar") as tar:
        members = sorted(m.name for m in tar if m.name.startswith(f"{video}.") and m.name.endswith("jpg"))
        data = [tar.extractfile(name).read() for name in members]  # type: ignore[union-attr]
    return [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for one in data]


def by_hand(learnable: Any, file: Path, family: str, video: str) -> tuple[np.ndarray, list[int]]:
    """All clips or frames in one call of the network: of 12 frames three clips of 4, or the middles of five parts."""
    frames = [cv2.resize(one, (32, 32), interpolation=cv2.INTER_LINEAR) for one in decoded(learnable, video)]
    starts = [0, 4, 8] if family == "jsta" else [int(12 / 5 * (k + 0.5)) for k in range(5)]
    length = 4 if family == "jsta" else 1
    planes = [np.concatenate([np.moveaxis(frames[i], -1, 0) for i in range(s, s + length)]) for s in starts]
    x = torch.from_numpy(np.stack(planes))
    model: Any = load_checkpoint(file).model.eval()
    with torch.no_grad():
        if family == "jsta":
            pixels = model.normalise(x).unflatten(1, (4, 3)).transpose(1, 2)
            return model.backbone(pixels).numpy(), starts
        return model.backbone.feature_map(model.normalise(x)).numpy(), starts


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("at_once", [64, 2])
def test_features_are_those_of_the_network(
    learnable: Any,
    tmp_path: Path,
    make: Callable[..., FeatureReceipt],
    family: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.learning.batches.SNIPPETS_AT_ONCE", at_once)
    file = checkpoint(tmp_path / "model.pt", source(family))
    receipt = make(family, file)
    assert sorted(receipt.videos) == VIDEOS  # what the store of frames has lost is left out
    store = FeatureStore(tmp_path / "features")
    for video, facts in receipt.videos.items():
        expected, starts = by_hand(learnable, file, family, video)
        found = store.read(facts["key"])
        assert found.dtype == (np.float32 if family == "jsta" else np.float16)
        assert expected.std() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-4 if family == "jsta" else 2e-3, atol=1e-3)
        assert (facts["frames"], tuple(facts["shape"])) == (len(starts), expected.shape[1:])
        assert facts["positions"] == starts
        assert (facts["source_frames"], facts["width"], facts["height"]) == (12, 40, 40)
        assert store.verify(facts["key"]) > 0


def run_command(learnable: Any, tmp_path: Path, family: str, file: Path, receipt: Path) -> None:
    (tmp_path / "00000.json").write_text(json.dumps([{"id": video} for video in (*VIDEOS, LOST)]))
    options = {
        "--shard": tmp_path / "00000.json",
        "--index": learnable.index_path("frames"),
        "--checkpoint": file,
        "--experiment": canonical(head(family)),
        "--source": canonical(source(family)),
        "--compute": canonical(learnable.compute),
        "--store": tmp_path / "features",
        "--receipt": receipt,
        "--damaged": tmp_path / "damaged",
    }
    stage.main([str(word) for pair in options.items() for word in pair])


def test_a_second_run_makes_nothing_and_writes_the_same_bytes(
    learnable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(tmp_path / "model.pt", source("atw"))
    run_command(learnable, tmp_path, "atw", file, tmp_path / "one.json")
    assert "3 made, 0 reused" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in (tmp_path / "features").rglob("*") if path.is_file()}
    assert len(before) == 6

    def no_writing(*args: Any) -> None:
        raise AssertionError("it is there")

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", no_writing)
        run_command(learnable, tmp_path, "atw", file, tmp_path / "two.json")
    assert "0 made, 3 reused" in capsys.readouterr().err
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    # as if it had been killed: a part of the store, an array without its metadata, a temporary folder
    first, second = sorted(path.parent for path in before if path.name == "zarr.json")[:2]
    (first / "zarr.json").unlink()
    second.rename(second.with_name(".tmp-part"))
    run_command(learnable, tmp_path, "atw", file, tmp_path / "three.json")
    assert "2 made, 1 reused" in capsys.readouterr().err
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "three.json").read_bytes()
    assert {path: path.read_bytes() for path in before} == before


def set_to(name: str) -> Callable[[Any], None]:
    return lambda model: model.state_dict()[name].view(-1)[:1].add_(0.01)


def test_the_key_follows_network_sampling_and_frames_and_nothing_else(
    learnable: Any, tmp_path: Path, make: Callable[..., FeatureReceipt]
) -> None:
    def keys(family: str, file: Path, **changes: Any) -> set[str]:
        return {facts["key"] for facts in make(family, file, **changes).videos.values()}

    for family in ("atw", "jsta"):
        file = checkpoint(tmp_path / "model.pt", source(family))
        known = keys(family, file)
        assert len(known) == 3
        name = next(n for n in load_checkpoint(file).model.state_dict() if n.startswith("backbone.") and "mean" in n)
        assert keys(family, checkpoint(tmp_path / "fc.pt", source(family), set_to("fc.weight"))) == known
        assert not keys(family, checkpoint(tmp_path / "bn.pt", source(family), set_to(name))) & known
        assert keys(family, file, experiment=head(family, segments=2, flip=False)) == known
        assert not keys(family, file, experiment=head(family, input_size=40)) & known
        dropout = source(family, dropout=0.25)
        assert keys(family, checkpoint(tmp_path / "drop.pt", dropout), source=dropout) == known
    # equal tensors that are looked through otherwise: the axis of JSTA's softmax
    spatial = source("jsta", softmax_axis="spatial")
    assert not keys("jsta", checkpoint(tmp_path / "axis.pt", spatial), source=spatial) & known
    index = learnable.index("frames")
    index["videos"]["test-left-0"] = index["videos"]["test-left-0"] | {"frames": 11, "key": "other"}
    with pytest.raises(DamagedArtifact, match="test-left-0|other"):  # it is looked for, and is not in the shard
        make("jsta", file, index=index)


def test_equal_videos_are_looked_at_once(
    learnable: Any, tmp_path: Path, make: Callable[..., FeatureReceipt], capsys: pytest.CaptureFixture[str]
) -> None:
    index = learnable.index("frames")
    index["videos"]["twin"] = index["videos"]["test-left-0"]
    file = checkpoint(tmp_path / "model.pt", source("atw"))
    receipt = make("atw", file, index=index, videos=["twin", "test-left-0"])
    assert "1 made, 0 reused" in capsys.readouterr().err
    assert receipt.videos["twin"] == receipt.videos["test-left-0"]


def test_damaged_metadata_is_made_anew(
    tmp_path: Path, make: Callable[..., FeatureReceipt], capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(tmp_path / "model.pt", source("atw"))
    key = make("atw", file).videos["train-up-3"]["key"]
    path = FeatureStore(tmp_path / "features").path(key) / "zarr.json"
    path.write_bytes(path.read_bytes()[:-3])
    make("atw", file)
    assert "1 made, 2 reused" in capsys.readouterr().err
    FeatureStore(tmp_path / "features").verify(key)


def test_damaged_frames_leave_a_note_and_end_the_job(learnable: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(learnable.folder, folder)
    index = learnable.index("frames") | {"store": str(folder / "frames")}
    (folder / "frames.json").write_text(json.dumps(index))
    tar, facts = folder / "frames" / "00000.tar", index["videos"]["test-right-0"]
    data = bytearray(tar.read_bytes())
    start, stop = facts["offset"] + facts["length"] // 2, facts["offset"] + facts["length"]
    data[start:stop] = bytes(stop - start)
    tar.write_bytes(data)
    file = checkpoint(tmp_path / "model.pt", source("atw"))
    copy = type(learnable)(folder, learnable.manifest)
    with pytest.raises(SystemExit, match="features: video 'test-right-0': .*damaged"):
        run_command(copy, tmp_path, "atw", file, tmp_path / "one.json")
    assert not (tmp_path / "one.json").exists()
    (note,) = (tmp_path / "damaged").glob("features-*.json")
    assert json.loads(note.read_text())["made_by"] == "frames"


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, make: Callable[..., FeatureReceipt]) -> None:
    file = checkpoint(tmp_path / "model.pt", source("atw"))
    with pytest.raises(ValueError, match="is a checkpoint of another model: .*family is 'atw' instead of 'sta_cnn'"):
        make("sta_cnn", file)
    with pytest.raises(ValueError, match="there is no checkpoint file"):
        make("atw", tmp_path / "none.pt")
