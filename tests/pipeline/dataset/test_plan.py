"""Buckets, plan files and recipes: stable where nothing changed, new where something did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.build import build
from pipeline.config import ExperimentConfig, FlowConfig, WarpedFlowConfig, load
from pipeline.dataset import keys
from pipeline.dataset.builders.found import Listing
from pipeline.dataset.keys import artifact_key, recipe
from pipeline.dataset.manifest import Manifest, Segment, Tube, Video
from pipeline.dataset.plan import (
    predict_recipe,
    read_shards,
    san_recipe,
    shard_of,
    stage_recipes,
    train_recipe,
    train_recipes,
    write_notes,
    write_plan,
)
from pipeline.learning.job import model_keywords


def videos(count: int) -> list[Video]:
    return [
        Video(
            id=f"v{i:04d}", path=f"v{i}.avi", digest=f"{i:032x}", bytes=i, labels=("run",), splits={"split1": "train"}
        )
        for i in range(count)
    ]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.rglob("*.json")}


def changed(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_buckets_are_the_same_in_every_process_and_even() -> None:
    code = "from pipeline.dataset.plan import shard_of; print(shard_of('v_Archery_g01_c01', 64))"
    printed = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert printed == {shard_of("v_Archery_g01_c01", 64) + "\n"} == {"00039\n"}
    sizes = Counter(shard_of(f"video{i}", 16) for i in range(16_000))
    assert len(sizes) == 16
    assert max(sizes.values()) < 1.15 * 1000


def test_only_a_folder_of_images_has_a_rate_in_the_plan(tmp_path: Path) -> None:
    file, folder = videos(2)
    write_plan(Manifest((file, replace(folder, fps=29.97))), shards=1, folder=tmp_path)
    rows = json.loads((tmp_path / "media" / "00000.json").read_text())
    assert rows == [
        {"id": file.id, "path": file.path, "digest": file.digest, "bytes": file.bytes},
        {"id": folder.id, "path": folder.path, "digest": folder.digest, "bytes": folder.bytes, "image_fps": 29.97},
    ]


def test_unchanged_plan_keeps_its_modification_times(tmp_path: Path) -> None:
    names = write_plan(Manifest(tuple(videos(50))), shards=8, folder=tmp_path)
    before = state(tmp_path)
    assert write_plan(Manifest(tuple(videos(50))), shards=8, folder=tmp_path) == names == read_shards(tmp_path)
    assert state(tmp_path) == before
    assert {name for shard in names for name in (f"media/{shard}.json", f"labels/{shard}.json")} == set(before) - {
        "shards.json"
    }


def test_each_change_touches_only_its_file(tmp_path: Path) -> None:
    start = videos(50)
    write_plan(Manifest(tuple(start)), shards=8, folder=tmp_path)
    before = state(tmp_path)
    shard = shard_of("v0007", 8)

    bytes_changed = [replace(v, digest="f" * 32) if v.id == "v0007" else v for v in start]
    write_plan(Manifest(tuple(bytes_changed)), shards=8, folder=tmp_path)
    assert changed(before, state(tmp_path)) == {f"media/{shard}.json"}

    write_plan(Manifest(tuple(start)), shards=8, folder=tmp_path)
    before = state(tmp_path)
    relabelled = [replace(v, labels=("sit",)) if v.id == "v0007" else v for v in start]
    write_plan(Manifest(tuple(relabelled)), shards=8, folder=tmp_path)
    assert changed(before, state(tmp_path)) == {f"labels/{shard}.json"}

    write_plan(Manifest(tuple(start)), shards=8, folder=tmp_path)
    before = state(tmp_path)
    write_plan(Manifest(tuple(v for v in start if v.id != "v0007")), shards=8, folder=tmp_path)
    assert changed(before, state(tmp_path)) == {f"media/{shard}.json", f"labels/{shard}.json"}


def test_a_bucket_that_ran_empty_goes(tmp_path: Path) -> None:
    one, two = videos(2)
    many = 10_000
    assert len(write_plan(Manifest((one, two)), shards=many, folder=tmp_path)) == 2
    assert write_plan(Manifest((one,)), shards=many, folder=tmp_path) == (shard_of(one.id, many),)
    assert [file.stem for file in (tmp_path / "media").iterdir()] == [shard_of(one.id, many)]


def test_media_files_name_no_label(tmp_path: Path) -> None:
    (shard,) = write_plan(Manifest(tuple(videos(1))), shards=1, folder=tmp_path)
    (row,) = json.loads((tmp_path / "media" / f"{shard}.json").read_text())
    assert row == {"id": "v0000", "path": "v0.avi", "digest": "0" * 32, "bytes": 0}


def test_corrected_ground_truth_is_a_change_of_labels_alone(tmp_path: Path) -> None:
    (start,) = videos(1)
    write_plan(Manifest((start,)), shards=1, folder=tmp_path)
    before = state(tmp_path)
    truth = {"segments": (Segment(None, 0.5, 2.0),), "tubes": (Tube("run", 3, ((0, 1, 2, 3.5), (0, 1, 2, 4))),)}
    write_plan(Manifest((replace(start, **truth),)), shards=1, folder=tmp_path)
    assert changed(before, state(tmp_path)) == {"labels/00000.json"}
    (row,) = json.loads((tmp_path / "labels/00000.json").read_text())
    assert row["segments"] == [[None, 0.5, 2.0]]
    assert row["tubes"] == [["run", 3, [[0, 1, 2, 3.5], [0, 1, 2, 4]]]]


def test_notes_keep_their_time_if_nothing_changed(tmp_path: Path) -> None:
    write_notes(Listing((), ("gone/b.avi", "a.avi"), ("é.avi",)), unofficial=("x is other",), folder=tmp_path)
    before = state(tmp_path)
    write_notes(Listing((), ("a.avi", "gone/b.avi"), ("é.avi",)), unofficial=("x is other",), folder=tmp_path)
    assert state(tmp_path) == before
    assert json.loads((tmp_path / "notes.json").read_text()) == {
        "missing": ["a.avi", "gone/b.avi"],
        "extra": ["é.avi"],
        "unofficial": ["x is other"],
    }


def test_keys_follow_parameters_version_and_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = FlowConfig(size=(340, 256))
    key = artifact_key("flow", flow, "abc")
    assert key == artifact_key("flow", FlowConfig.model_validate({"bound": 20, "size": [340, 256]}), "abc")
    others = {
        artifact_key("flow", flow.model_copy(update={"bound": 15.0}), "abc"),
        artifact_key("flow", flow, "abd"),
        artifact_key("frames", flow, "abc"),
    }
    monkeypatch.setitem(keys.VERSIONS, "flow", keys.VERSIONS["flow"] + 1)
    others.add(artifact_key("flow", flow, "abc"))
    assert len(others | {key}) == 5


def test_golden_recipes() -> None:
    """These addresses are in people's stores: a changed value here means that everything is computed again."""
    assert recipe("flow", FlowConfig(size=(340, 256))) == "365e6f09d33f"
    assert artifact_key("flow", FlowConfig(size=(340, 256)), "0" * 32) == "5c53935ae5f7a3fff7d6be9e7940d36e"
    assert recipe("warped_flow", WarpedFlowConfig(size=(340, 256))) == "cd56cb5ed452"


def experiment(**changes: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"modality": "flow", **changes})


def test_training_recipe_ignores_what_only_testing_or_fusion_reads(tmp_path: Path) -> None:
    stages = stage_recipes(load({"name": "x", "dataset": "demo"}))

    def of(**changes: Any) -> str:
        return train_recipe(experiment(**changes), precision="32-true", stages=stages)

    same = of()
    assert of(weight=3.0) == of(paper=86.7) == of(prediction={"kind": "average", "normalise": False}) == same
    assert of(sampling={"test_segments": 80}) == of(sampling={"test_crops": 10}) == same
    assert of(optim={"lr": 0.5}) != same
    assert train_recipe(experiment(), precision="bf16-mixed", stages=stages) != same
    assert train_recipe(experiment(), precision="32-true", stages={**stages, "flow": "other"}) != same
    assert train_recipe(experiment(), precision="32-true", stages={**stages, "frames": "other"}) == same

    def of_frames(shards: int = 16, **changes: Any) -> str:
        found = experiment(modality="frames", **changes)
        return train_recipe(found, precision="32-true", stages=stages, shards=shards)

    whole, by_shard = of_frames(), {"shuffle": "shards"}
    assert of_frames(shards=32) == of_frames(optim={"shuffle_buffer": 7}) == whole  # what nobody hears
    orders = {
        of_frames(optim=by_shard),
        of_frames(32, optim=by_shard),
        of_frames(optim={**by_shard, "shuffle_buffer": 7}),
    }
    assert len({whole, *orders, of_frames(sampling={"reduced_decode": True})}) == 5

    one, two = tmp_path / "one.pth", tmp_path / "two.pth"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert of(model={"pretrained": str(one)}) == of(model={"pretrained": str(two)}) != same
    with pytest.raises(ValueError, match=r"there is no checkpoint file .*absent\.pth"):
        of(model={"pretrained": str(tmp_path / "absent.pth")})


@pytest.mark.parametrize(
    ("model", "unheard", "heard"),
    [
        ({"consensus": "avg"}, {"activation": "tanh", "init": "one", "att_input": "features"}, {"dropout": 0.1}),
        ({"consensus": "segment_linear"}, {"att_input": "features"}, {"init": "one"}),
        (
            {"family": "sta_cnn"},
            {
                "aux_lambda": 0.5,
                "aux_pool": "sum",
                "sal_weights": "shared",
                "pool_weights": "raw",
                "pool_scale": "mean",
            },
            {"select_loss": "mean_loss"},
        ),
        ({"family": "sta_cnn", "spatial": "shared", "aux_lambda": 0}, {"aux_pool": "sum"}, {"pool_weights": "raw"}),
    ],
)
def test_switches_that_mean_nothing_beside_the_others_train_nothing_again(
    model: dict[str, Any], unheard: dict[str, Any], heard: dict[str, Any]
) -> None:
    """Equal recipes are one training, so its weights must be those of either: from the same keywords."""
    stages = stage_recipes(load({"name": "x", "dataset": "demo"}))

    def of(**changes: Any) -> tuple[str, dict[str, Any]]:
        found = experiment(model={**model, **changes})
        return train_recipe(found, precision="32-true", stages=stages), model_keywords(found, num_classes=4)

    assert of(**unheard) == of()
    assert of(**heard)[0] != of()[0]
    build(**of(**unheard)[1])


def test_scores_follow_what_the_prediction_hears() -> None:
    def of(**changes: Any) -> str:
        return predict_recipe(experiment(**changes), train="t")

    model, dcw = of(), of(prediction={"kind": "dcw"})
    assert of(prediction={"kind": "model"}) == of(prediction={"top": 3, "normalise": False}) == model
    different = {
        model,
        dcw,
        of(sampling={"test_segments": 80}),
        of(sampling={"test_crops": 10}),
        of(prediction={"kind": "average"}),
        of(prediction={"kind": "average", "normalise": False}),
        of(prediction={"kind": "dcw", "top": 3}),
        of(prediction={"kind": "dcw", "normalise": False}),
        predict_recipe(experiment(), train="u"),
    }
    assert len(different) == 9
    assert of(prediction={"kind": "average", "top": 3}) == of(prediction={"kind": "average"})
    family = {"family": "sta_cnn"}
    assert of(model=family) == of(model=family, prediction={"kind": "dcw"}) == dcw


def chain(**changes: Any) -> dict[str, str]:
    """Recipes of a, b that begins with a, c that begins with b, and d alone; ``changes`` are to a."""
    experiments = {
        "c": {"modality": "flow", "initial": "b"},
        "b": {"modality": "flow", "initial": "a"},
        "a": {"modality": "flow", **changes},
        "d": {"modality": "flow"},
    }
    config = load({"name": "x", "dataset": "demo", "experiments": experiments})
    return train_recipes(config, stage_recipes(config))


def test_a_training_follows_the_one_that_it_begins_with() -> None:
    found = chain()
    assert found["a"] == found["d"]
    assert len(set(found.values())) == 3
    changed = chain(optim={"lr": 0.5})
    assert changed["d"] == found["d"]
    assert all(changed[name] != found[name] for name in "abc")
    assert chain(paper=50, sampling={"test_segments": 9}) == found


SAN = {"family": "sta_cnn", "spatial": "san"}


def san_experiment(**changes: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"modality": "frames", "sampling": {"snippet": 2}, "model": {**SAN, "san": changes}}
    )


def test_a_san_and_what_uses_it_follow_its_settings_and_the_content_of_its_files(tmp_path: Path) -> None:
    stages = stage_recipes(load({"name": "x", "dataset": "demo"}))

    def of(stages: dict[str, str] = stages, **changes: Any) -> tuple[str, str]:
        found = san_experiment(**changes)
        assert found.san is not None
        san = san_recipe(found.san, precision="32-true", stages=stages)
        return san, train_recipe(found, precision="32-true", stages=stages)

    files = {name: tmp_path / name for name in ("one", "copy", "other")}
    for name, file in files.items():
        file.write_bytes(b"other" if name == "other" else b"weights")
    for name in ("chairs", "moved", "more"):
        (tmp_path / f"{name}_data").mkdir()
        for pair in ("00001", "00002") if name == "more" else ("00001",):
            for suffix in ("_img1.ppm", "_img2.ppm", "_flow.flo"):
                (tmp_path / f"{name}_data" / f"{pair}{suffix}").touch()
    chairs = {
        name: of(targets="flying_chairs", flying_chairs=str(tmp_path / f"{name}_data"))
        for name in ("chairs", "moved", "more")
    }
    same = of()
    assert of(crop=224) == of(crop=[224, 224]) == same
    assert of(encoder=str(files["one"])) == of(encoder=str(files["copy"]))
    assert chairs["chairs"] == chairs["moved"]
    distinct = [
        same,
        of(lr=0.5),
        of(theta="hundredth"),
        of(crop=96),
        of(width=0.5),
        of(encoder=str(files["one"])),
        of(encoder=str(files["other"])),
        of({**stages, "flow": "other"}),
        of({**stages, "frames": "other"}),
        chairs["chairs"],
        chairs["more"],
    ]
    for place in (0, 1):
        assert len({pair[place] for pair in distinct}) == len(distinct)
    flow_alone = [of(where, targets="flying_chairs", flying_chairs=str(tmp_path / "chairs_data"))
                  for where in (stages, {**stages, "flow": "other"})]  # fmt: skip
    assert flow_alone[0] == flow_alone[1]
    with pytest.raises(ValueError, match=r"no checkpoint file .*absent; correct model.san.encoder"):
        of(encoder=str(tmp_path / "absent"))


def test_without_pre_training_only_the_encoders_content_and_the_networks_shape_count(tmp_path: Path) -> None:
    stages = stage_recipes(load({"name": "x", "dataset": "demo"}))

    def of(**changes: Any) -> str:
        found = san_experiment(**{"targets": "none", **changes})
        return train_recipe(found, precision="32-true", stages=stages)

    (tmp_path / "encoder").write_bytes(b"weights")
    assert of(lr=0.5, epochs=3, crop=96) == of()
    assert len({of(), of(width=0.5), of(last_pool_stride=2), of(encoder=str(tmp_path / "encoder"))}) == 4
    shared = [
        experiment(model={**SAN, "spatial": "shared", "san": {"width": width}}, sampling={"snippet": 5})
        for width in (1.0, 0.5)
    ]
    one, two = (train_recipe(each, precision="32-true", stages=stages) for each in shared)
    assert one == two
