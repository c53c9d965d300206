"""The benchmark of loading compares like with like: the same videos, as many snippets, batches of one shape."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import loader, loader_peers, processes
from pipeline.learning.augmentation import cut
from pipeline.learning.loader import collate
from pipeline.learning.readers import read_index


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[loader.Material, Path]:
    folder = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MOST_FRAMES": 16, "FIELDS": 8, "VIDEOS": 4, "SHARDS": 2}.items():
            patch.setattr(loader, name, value)
        patch.setattr(loader, "found_clips", lambda place: [loader.make_clip(place)])
        return loader.prepare(folder), folder


def test_a_peers_batch_is_as_ours(material: tuple[loader.Material, Path]) -> None:
    """Of smooth pictures, so that crops of equal chance are alike on average."""
    stored, folder = material
    dataset = loader.snippets(stored.frames, segments=3)
    batch = collate([dataset[0, number] for number in range(len(dataset))])
    ours = cut(batch.images, batch.views, size=dataset.size, flow_from=None)
    draw = partial(loader_peers.draws, stored.lengths, segments=3, snippet=1)
    folders = [folder / "jpeg" / "0"] * len(stored.files)
    peer = loader_peers.jpeg_frames(folders, draw(seed=0))
    assert (ours.dtype, peer.dtype) == (torch.uint8, torch.uint8)
    assert ours.shape == peer.shape == (4, 3, 3, 224, 224)
    assert ours.float().mean().item() == pytest.approx(peer.float().mean().item(), abs=20)


def test_ratios_are_medians_round_by_round() -> None:
    assert loader._ratio([3.0, 8.0, 5.0], [1.0, 2.0, 5.0]) == (3.0, [1.0, 4.0])


def test_the_dataset_for_processes_is_one_that_is_trained_on(tmp_path: Path) -> None:
    processes.make_dataset(tmp_path)
    index = read_index(tmp_path / "frames.json", stage="frames")
    dataset = loader.snippets(index, segments=3)
    batch = collate([dataset[0, number] for number in range(2)])
    assert batch.images.shape == (2, 3, 3, processes.HEIGHT, processes.WIDTH)
