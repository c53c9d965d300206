"""Batches of features: every video's own, in the order that was drawn, and nothing of the padding is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.feature_receipts import FeatureReceipt
from pipeline.dataset.keys import artifact_key
from pipeline.learning.clock import Clock
from pipeline.learning.features import (
    FeatureReader,
    feature_testing_batches,
    feature_training_batches,
    open_features,
    read_feature_index,
)
from pipeline.learning.loader import Clip, TrainingBatches
from pipeline.stores.damage import DamagedArtifact, Notes
from pipeline.stores.features import FeatureStore
from pipeline.stores.provenance import provenance
from pipeline.stores.sharing import Sharing

PARAMETERS = {"test_segments": None, "network": "n"}
LENGTHS = {"a": 3, "b": 1, "c": 5, "d": 5, "e": 2}
CLIPS = [Clip(video, label, count) for label, (video, count) in enumerate(LENGTHS.items())]
FABRIC = Fabric(accelerator="cpu", devices=1)


SHARDS = ("00000", "00001")


def features_of(video: str, *, maps: bool) -> np.ndarray:
    rng = np.random.default_rng(ord(video))
    count = 4 if maps else LENGTHS[video]
    shape, kind = ((count, 2, 3, 3), np.float16) if maps else ((count, 6), np.float32)
    return rng.normal(1, 0.1, shape).astype(kind)


def write(folder: Path, *, maps: bool = False) -> Path:
    """A store, and receipts of two shards."""
    store, facts = FeatureStore(folder / "features"), {}
    for video in LENGTHS:
        key, features = artifact_key("features", PARAMETERS, video), features_of(video, maps=maps)
        store.write(key, features, provenance("features", parameters=PARAMETERS, digest=video, software={}))
        count, *shape = features.shape
        facts[video] = {"key": key, "frames": count, "shape": shape, "positions": [8 * i for i in range(count)]}
    receipts = folder / "receipts"
    for shard, names in (("00000", "ab"), ("00001", "cde")):
        videos = {name: facts[name] for name in names}
        FeatureReceipt(store=str(store.root), parameters=PARAMETERS, videos=videos).write(receipts / f"{shard}.json")
    return receipts


def experiment(family: str, *, batch_size: int = 2) -> ExperimentConfig:
    values = {"modality": "frames", "features": "s", "model": {"family": family}, "optim": {"batch_size": batch_size}}
    return ExperimentConfig.model_validate(values)


def reader(receipts: Path) -> FeatureReader:
    return open_features(read_feature_index(receipts, shards=SHARDS))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_follows_the_order_and_pads(tmp_path: Path, workers: int) -> None:
    order = TrainingBatches(videos=5, batch_size=2, epochs=range(2), seed=1)
    clock = Clock(FABRIC.device)
    settings: Any = {"compute": ComputeConfig(workers=workers), "fabric": FABRIC, "clock": clock}
    stream = iter(
        feature_training_batches(
            CLIPS, reader(write(tmp_path)), order, experiment=experiment("jsta_temporal"), **settings
        )
    )
    seen = 0
    for wanted, ((features, mask), labels, videos, positions) in zip(order, stream, strict=True):
        assert videos.tolist() == labels.tolist() == [number for _, number in wanted]
        longest = max(CLIPS[number].frames for _, number in wanted)
        assert features.shape == (len(wanted), longest, 6)
        assert features.dtype == torch.float32
        for row, number in enumerate(videos.tolist()):
            count = CLIPS[number].frames
            np.testing.assert_array_equal(features[row, :count], features_of(CLIPS[number].id, maps=False))
            assert not features[row, count:].any()
            assert mask[row].tolist() == [True] * count + [False] * (longest - count)
            assert positions[row].tolist() == [8 * i for i in range(count)] + [-1] * (longest - count)
        seen += len(wanted)
    assert seen == 2 * 5
    assert clock.take()["data_wait"] > 0


def test_testing_gives_every_video_once_in_order(tmp_path: Path) -> None:
    batches = feature_testing_batches(
        CLIPS,
        reader(write(tmp_path, maps=True)),
        experiment=experiment("where_when"),
        compute=ComputeConfig(),
        fabric=FABRIC,
    )
    for _ in range(2):  # it is asked for after every tenth of the epochs
        found = list(iter(batches))
        assert [len(labels) for _, labels, _, _ in found] == [2, 2, 1]
        assert torch.cat([videos for _, _, videos, _ in found]).tolist() == [0, 1, 2, 3, 4]
        maps = torch.cat([inputs[0] for inputs, *_ in found])
        assert {len(inputs) for inputs, *_ in found} == {1}
        assert maps.dtype == torch.float16
        np.testing.assert_array_equal(maps, np.stack([features_of(video, maps=True) for video in LENGTHS]))
        assert (torch.cat([positions for *_, positions in found]) >= 0).all()


def test_maps_of_different_numbers_cannot_be_read_together(tmp_path: Path) -> None:
    batches = feature_testing_batches(
        CLIPS, reader(write(tmp_path)), experiment=experiment("where_when"), compute=ComputeConfig(), fabric=FABRIC
    )
    with pytest.raises(ValueError, match=r"videos of 1 and of 3 maps .* set sampling.test_segments to a number"):
        list(batches)


def test_the_index_is_that_of_all_shards(tmp_path: Path) -> None:
    receipts = write(tmp_path)
    (receipts / "00009.json").write_text("of a shard that the plan has no longer")
    index = read_feature_index(receipts, shards=SHARDS)
    assert list(index["videos"]) == list(LENGTHS)
    assert (index["stage"], index["shape"], index["parameters"]) == ("features", (6,), PARAMETERS)
    assert Path(index["store"]) == tmp_path / "features"


def test_receipts_that_are_none_or_of_different_networks_are_refused(tmp_path: Path) -> None:
    receipts = write(tmp_path)
    path = receipts / "00001.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"parameters": PARAMETERS | {"network": "m"}}))
    with pytest.raises(ValueError, match="are of different networks"):
        read_feature_index(receipts, shards=SHARDS)
    path.write_text(json.dumps(whole | {"stage": "flow"}))
    with pytest.raises(ValueError, match="00001.json is not a receipt of features"):
        read_feature_index(receipts, shards=SHARDS)
    with pytest.raises(ValueError, match="there is no receipt of features .*00000.json; run the features stage first"):
        read_feature_index(tmp_path / "none", shards=SHARDS)
    with pytest.raises(ValueError, match="there are no features in the receipts of"):
        read_feature_index(receipts, shards=[])


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_leaves_a_note_and_names_the_video(tmp_path: Path, workers: int) -> None:
    index = read_feature_index(write(tmp_path), shards=SHARDS)
    key = index["videos"]["d"]["key"]
    shard = FeatureStore(tmp_path / "features").path(key) / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    source = open_features(index, sharing=Sharing(notes=tmp_path / "damaged"), by="train")
    batches = feature_testing_batches(
        CLIPS,
        source,
        experiment=experiment("jsta_temporal"),
        compute=ComputeConfig(workers=workers),
        fabric=FABRIC,
    )
    with pytest.raises(DamagedArtifact, match=f"video 'd': features {key} in .* is damaged"):
        list(batches)
    ((_, note),) = list(Notes(tmp_path / "damaged"))
    assert (note.stage, note.made_by, note.video, note.key) == ("train", "features", "d", key)
