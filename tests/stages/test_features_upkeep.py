"""Features in the commands on stores, and what a run does about notes of their damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Config, load
from pipeline.dataset.feature_receipts import FeatureReceipt
from pipeline.dataset.keys import artifact_key
from pipeline.stores.damage import Note, Notes
from pipeline.stores.feature_needs import feature_recipes
from pipeline.stores.features import FeatureStore
from pipeline.stores.heal import heal
from pipeline.stores.provenance import provenance
from tests.stages.store_project import CONFIGURED, Store, age, configure, files, flip

PARAMETERS = {"test_segments": 4, "network": "n"}
VIDEOS = ("run--run_0", "run--run_1")
EXPERIMENTS: dict[str, Any] = {
    "trunk": {"modality": "frames", "model": {"family": "atw"}, "weight": 0},
    "head": {"modality": "frames", "features": "trunk", "model": {"family": "where_when"}},
}


@pytest.fixture
def arrays(project: Path) -> FeatureStore:
    """Features of two videos, which a receipt of the configuration's head names, and of one that none names."""
    configure(experiments=EXPERIMENTS)
    config = load(Path("config.yaml"))
    return write(config)


def write(config: Config) -> FeatureStore:
    store = FeatureStore(config.store_folder("features", ""))
    facts = {}
    for video in (*VIDEOS, "forgotten"):
        key = artifact_key("features", PARAMETERS, video)
        made = provenance("features", parameters=PARAMETERS, digest=video, software={})
        store.write(key, np.full((4, 2, 3, 3), len(video), np.float16), made)
        facts[video] = {"key": key, "frames": 4, "shape": [2, 3, 3], "positions": [0, 1, 2, 3]}
    named = {video: facts[video] for video in VIDEOS}
    FeatureReceipt(store=str(store.root), parameters=PARAMETERS, videos=named).write(receipt(config))
    return store


def receipt(config: Config) -> Path:
    (recipe,) = feature_recipes(config)
    return config.work_dir / "receipts" / f"features-{recipe}" / "split1-seed0" / "00000.json"


def key_of(video: str) -> str:
    return artifact_key("features", PARAMETERS, video)


def test_ls_counts_features(arrays: FeatureStore, store: Store) -> None:
    line = next(line for line in store("ls", *CONFIGURED)[1].splitlines() if "features 1" in line)
    assert line.split()[:3] == ["features", "1", "3"]
    assert "small (2 of 2)" in line
    assert "network=n" in line
    assert "features 1" in store("ls", "work/stores")[1]


def test_verify_finds_and_removes_what_is_damaged(arrays: FeatureStore, store: Store) -> None:
    assert store("verify", *CONFIGURED)[0] == 0
    config = load(Path("config.yaml"))
    flip(arrays.path(key_of(VIDEOS[0])) / "c/0/0/0/0")
    status, out, _ = store("verify", *CONFIGURED)
    assert (status, f"damaged: video '{VIDEOS[0]}': features {key_of(VIDEOS[0])}" in out) == (1, True)
    assert receipt(config).exists()
    assert store("verify", *CONFIGURED, "--remove")[0] == 1
    assert not arrays.path(key_of(VIDEOS[0])).exists()
    assert not receipt(config).exists()  # so its job runs again
    assert store("verify", *CONFIGURED)[0] == 0
    write(config)
    arrays.remove(key_of(VIDEOS[1]))
    assert f"there are no features {key_of(VIDEOS[1])}" in store("verify", *CONFIGURED)[1]


def test_gc_deletes_what_no_receipt_names(arrays: FeatureStore, store: Store) -> None:
    assert "1 are too young" in store("gc", *CONFIGURED, "--delete")[1]
    age(arrays.root, seconds=2 * 3600)
    before = files(arrays.root)
    assert "1 files and folders" in store("gc", *CONFIGURED)[1]
    assert files(arrays.root) == before
    assert "1 files and folders" in store("gc", *CONFIGURED, "--delete")[1]
    assert [arrays.has(key_of(video)) for video in (*VIDEOS, "forgotten")] == [True, True, False]
    # of a sampling that is no more, and then comes back: its receipt does not vouch for what is gone
    old = receipt(load(Path("config.yaml")))
    configure(experiments={**EXPERIMENTS, "head": EXPERIMENTS["head"] | {"sampling": {"test_segments": 3}}})
    assert "2 files and folders" in store("gc", *CONFIGURED, "--delete")[1]
    assert not old.exists()


def leave_note(config: Config, video: str) -> None:
    note = Note(stage="train", made_by="features", video=video, key=key_of(video), reason="it is damaged")
    Notes(config.work_dir / "damaged").leave(note)


def test_a_note_of_damage_lets_the_next_run_make_them_anew(arrays: FeatureStore) -> None:
    config = load(Path("config.yaml"))
    leave_note(config, VIDEOS[0])
    assert list(heal(config)) == []  # it was whole
    assert receipt(config).exists()
    assert not list(Notes(config.work_dir / "damaged"))
    leave_note(config, VIDEOS[0])
    flip(arrays.path(key_of(VIDEOS[0])) / "c/0/0/0/0")
    (told,) = heal(config, dry_run=True)
    assert arrays.has(key_of(VIDEOS[0]))
    assert list(heal(config)) == [told]
    assert told.startswith(f"video '{VIDEOS[0]}': its features {key_of(VIDEOS[0])} were damaged or gone")
    assert not receipt(config).exists()
    assert [arrays.has(key_of(video)) for video in VIDEOS] == [False, True]
    assert list(heal(config)) == []


def test_another_dataset_learns_what_was_taken_from_a_common_store(project: Path) -> None:
    configure(experiments=EXPERIMENTS, store={"local": "common"})
    one = load(Path("config.yaml"))
    configure(work="other")
    other = load(Path("config.yaml"))
    arrays = write(one)
    write(other)
    leave_note(one, VIDEOS[0])
    arrays.remove(key_of(VIDEOS[0]))
    assert len(list(heal(one))) == 1
    assert (receipt(one).exists(), receipt(other).exists()) == (False, True)
    (told,) = heal(other)
    assert told.startswith("another run has removed features from common")
    assert not receipt(other).exists()
    assert list(heal(other)) == []
