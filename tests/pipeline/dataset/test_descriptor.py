"""Descriptors of published datasets against the official annotation files themselves."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import scipy.io
import yaml
from pydantic import ValidationError

from pipeline.dataset import descriptor as module
from pipeline.dataset.builders import hmdb51, ucf101, ut_interaction
from pipeline.dataset.descriptor import Descriptor, absent, describe, unofficial
from pipeline.dataset.sources import Dataset

OWN = {"demo", "class_folders", "csv"}
PUBLISHED = sorted({*get_args(Dataset), "flying_chairs"} - OWN)
FOLDERS = {"ucf101": "ucf101_splits", "hmdb51": "hmdb51_splits", "thumos14": "thumos14", "ucf101_24": "ucf101_24"}
"""Where the official files of a dataset are in the shared data."""


def described(dataset: str) -> Descriptor:
    descriptor = describe(dataset)
    assert descriptor is not None
    return descriptor


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_every_published_dataset_is_described(dataset: str) -> None:
    descriptor = described(dataset)
    assert len(set(descriptor.classes)) == len(descriptor.classes)
    assert "://" in descriptor.home
    assert not descriptor.annotations.sha256 or "://" in descriptor.annotations.from_
    keys = ("<- videos", "<- annotations") if dataset not in ("ut_interaction", "flying_chairs") else ()
    assert all(key in descriptor.layout.replace(", annotations", " <- annotations") for key in keys)


def test_own_videos_have_no_descriptor_and_no_descriptor_is_left_over() -> None:
    assert [describe(dataset) for dataset in OWN] == [None] * len(OWN)
    assert sorted(path.stem for path in module.FOLDER.glob("*.yaml")) == PUBLISHED


def test_numbers_of_classes_are_the_published_ones() -> None:
    sizes = {dataset: len(described(dataset).classes) for dataset in PUBLISHED}
    assert sizes == {
        "flying_chairs": 0,
        "hmdb51": 51,
        "moments_in_time": 339,
        "penn_action": 15,
        "thumos14": 20,
        "ucf101": 101,
        "ucf101_24": 24,
        "ut_interaction": 7,
    }


@pytest.mark.parametrize("dataset", FOLDERS)
def test_checksums_are_those_of_the_official_files(dataset: str, shared_data: Path) -> None:
    folder = shared_data / "annotations" / FOLDERS[dataset]
    known = {name: sha256 for name, sha256 in described(dataset).annotations.sha256.items() if sha256}
    assert known
    assert known == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in known}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert there - set(known) <= {"class_list.txt", "annotation_val/detclasslist.txt"}


def test_the_official_files_give_no_note(shared_data: Path) -> None:
    for dataset in ("ucf101", "hmdb51", "ucf101_24"):
        assert unofficial(described(dataset), shared_data / "annotations" / FOLDERS[dataset]) == ()


def test_classes_are_those_of_the_official_files(shared_data: Path) -> None:
    official = shared_data / "annotations"
    listed = ucf101.class_numbers(official / "ucf101_splits/classInd.txt")
    assert described("ucf101").classes == tuple(sorted(listed, key=lambda name: listed[name]))
    hmdb = {path.name.partition("_test_split")[0] for path in (official / "hmdb51_splits").glob("*_test_split?.txt")}
    assert described("hmdb51").classes == tuple(sorted(hmdb))
    numbered = [
        line.split() for line in (official / "thumos14/annotation_val/detclasslist.txt").read_text().splitlines()
    ]
    assert described("thumos14").classes == tuple(name for _, name in numbered)
    tested = {line.partition("/")[0] for line in (official / "ucf101_24/testlist01.txt").read_text().splitlines()}
    assert described("ucf101_24").classes == tuple(sorted(tested))
    labels = sorted((official / "penn_action/labels").glob("*.mat"))
    acted = {str(scipy.io.loadmat(path, variable_names=["action"])["action"][0]) for path in labels}
    assert described("penn_action").classes == tuple(sorted(acted))
    second = {line for line in (official / "moments/category_momentsv2.txt").read_text().splitlines() if line}
    assert second < set(described("moments_in_time").classes)  # the second release dropped 34 classes of the first
    assert described("ut_interaction").classes == ut_interaction.CLASSES


def test_splits_are_those_of_the_official_files(shared_data: Path, tmp_path: Path) -> None:
    official, videos = shared_data / "annotations", tmp_path / "videos"
    videos.mkdir()
    for k in (1, 2, 3):
        lines = {
            part: (official / f"ucf101_splits/{part}list0{k}.txt").read_text().split("\n") for part in ("train", "test")
        }
        assert described("ucf101").splits[f"split{k}"] == {part: sum(map(bool, text)) for part, text in lines.items()}
        flags = Counter(
            line.split()[1]
            for path in (official / "hmdb51_splits").glob(f"*_test_split{k}.txt")
            for line in path.read_text().splitlines()
        )
        parts = {"train": flags["1"], "test": flags["2"], "unused": flags["0"]}
        assert described("hmdb51").splits[f"split{k}"] == parts
        assert described("hmdb51").videos == flags.total()
    assert described("ucf101").videos == len(ucf101.ucf101(videos, official / "ucf101_splits").missing)
    assert len(hmdb51.hmdb51(videos, official / "hmdb51_splits").missing) == 6766


def _tiny(tmp_path: Path, **files: str | None) -> Descriptor:
    for name in files:
        (tmp_path / name).write_text(name)
    values = dict.fromkeys(("title", "about", "home", "licence", "citation", "layout"), "x")
    return Descriptor.model_validate(
        values | {"videos": None, "annotations": {"from": "https://here", "sha256": files}}
    )


def test_other_content_and_absent_files_are_notes(tmp_path: Path) -> None:
    right = hashlib.sha256(b"a").hexdigest()
    descriptor = _tiny(tmp_path, a=right, b="0" * 64, c=None)
    assert unofficial(descriptor, tmp_path) == (
        f"of the annotation files in {tmp_path}, b has not the official content",
    )
    (tmp_path / "a").unlink()
    (tmp_path / "c").unlink()
    assert absent(descriptor, tmp_path) == ["a", "c"]
    assert unofficial(descriptor, tmp_path) == (
        f"2 of 3 official annotation files of x are not in {tmp_path}: a, c; they come from https://here",
        f"of the annotation files in {tmp_path}, b has not the official content",
    )


def test_many_files_are_named_by_the_first(tmp_path: Path) -> None:
    descriptor = _tiny(tmp_path, **{f"f{i}": "0" * 64 for i in range(9)})
    (note,) = unofficial(descriptor, tmp_path)
    assert "f0, f1, f2, f3, f4 and 4 more have not the official content" in note
    (note,) = unofficial(descriptor, tmp_path / "nowhere")
    assert note.startswith("9 of 9 ")
    assert ": f0, f1, f2, f3, f4 and 4 more; they come from" in note


def test_a_descriptor_with_another_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = yaml.safe_load((module.FOLDER / "ucf101.yaml").read_text())
    with pytest.raises(ValidationError, match="license"):
        Descriptor.model_validate(good | {"license": "MIT"})
    (tmp_path / "ucf101.yaml").write_text(yaml.safe_dump(good | {"videos": "many"}))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"ucf101\.yaml is not a descriptor: .*videos"):
        describe("ucf101")
