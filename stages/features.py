"""Stage features: what the trained network of one experiment makes of every video of a shard, for another to read.

Of a jsta the features of clips, (n, D) float32; of a 2D network the last maps of frames, (n, C, h, w) float16. The
store is addressed by content: the key is a hash of the network's weights without its classifier, of the sampling and
of the stored video. So a network that was trained again has its videos computed anew, and nothing else has.

Shapes: n clips or frames of a video, t of one item, L channels, S input size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.checkpoint import load_checkpoint
from models.jsta import JSTASpatial
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.feature_receipts import FeatureReceipt
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.plan import features_part
from pipeline.families import ImageNetworkConfig
from pipeline.learning.augmentation import Augmented
from pipeline.learning.batches import flow_from, scoring_snippets
from pipeline.learning.devices import loader_options, start
from pipeline.learning.job import model_keywords, section_argument
from pipeline.learning.loader import Clip
from pipeline.learning.readers import Index, open_reader, read_index
from pipeline.learning.sampling import scoring_positions
from pipeline.progress import track
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.features import FeatureStore
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.provenance import provenance
from pipeline.stores.sharing import Sharing
from pipeline.stores.sharing import add_arguments as add_store_arguments


def make_features(
    videos: Iterable[str],
    index: Index,
    *,
    shard: str,
    checkpoint: Path,
    experiment: ExperimentConfig,
    source: ExperimentConfig,
    compute: ComputeConfig,
    store: Path,
    sharing: Sharing | None = None,
) -> FeatureReceipt:
    """Make sure that the features of those videos of a shard that the index holds are in the store.

    Args:
        videos: ids of the shard.
        index: of the store that both experiments read.
        shard: its name.
        checkpoint: trained model of ``source``.
        experiment: that will read the features; its sampling decides what is looked at.
        source: whose network looks.
        compute: where it runs.
        store: folder of the arrays.
        sharing: the team's store of flow, and where notes about damage are left.

    Raises:
        DamagedArtifact: stored frames or flow are damaged.
        ValueError: the checkpoint is of another model than ``source``, or its features are not finite.
    """
    model = load_network(checkpoint, source=source)
    parameters = features_part(experiment) | {"network": network_digest(model, source=source)}
    found = {video: index["videos"][video] for video in sorted(videos) if video in index["videos"]}
    keys = {video: artifact_key("features", parameters, facts["key"]) for video, facts in found.items()}
    arrays = FeatureStore(store)
    remove_leftovers(store)
    missing = {key: video for video, key in reversed(keys.items()) if not _usable(arrays, key)}
    made = _features(model, [*missing.values()], index, experiment=experiment, compute=compute, sharing=sharing)
    for video, features in track(made, total=len(missing), label=f"features {shard}"):
        remove_leftovers(arrays.path(keys[video]).parent)
        arrays.write(keys[video], features, _attributes(parameters, source=found[video]["key"]))
    print(f"features {shard}: {len(missing)} made, {len(set(keys.values())) - len(missing)} reused", file=sys.stderr)
    facts = {video: _facts(arrays, key, found[video], experiment=experiment) for video, key in keys.items()}
    return FeatureReceipt(store=str(store), parameters=parameters, videos=facts)


def load_network(checkpoint: Path, *, source: ExperimentConfig) -> nn.Module:
    """The trained model of ``source``.

    Raises:
        ValueError: the file is missing or not a checkpoint of this model.
    """
    if not checkpoint.is_file():
        raise ValueError(f"there is no checkpoint file {checkpoint}; train the model first")
    found = load_checkpoint(checkpoint)
    wanted = model_keywords(source, num_classes=len(found.classes))
    names = sorted((found.build.keys() | wanted.keys()) - {"pretrained"})
    if other := [name for name in names if found.build.get(name) != wanted.get(name)]:
        told = ", ".join(f"{name} is {found.build.get(name)!r} instead of {wanted.get(name)!r}" for name in other)
        raise ValueError(f"{checkpoint} is a checkpoint of another model: {told}")
    return found.model


def network_digest(model: nn.Module, *, source: ExperimentConfig) -> str:
    """A hash of all that decides what the network makes of an input: its settings, and names and values of tensors.

    The classifier is not among them.
    """
    match source.model:
        case ImageNetworkConfig(backbone=backbone):  # its attention comes after the maps
            settings: dict[str, Any] = {"backbone": backbone}
        case section:
            settings = section.model_dump(mode="json", exclude={"family", "pretrained", "dropout", *section.unheard})
    digest = hashlib.blake2b(json.dumps([settings, source.modality], sort_keys=True).encode(), digest_size=16)
    network: Any = model.backbone
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def _usable(arrays: FeatureStore, key: str) -> bool:
    """Whether an array is there, as far as opening it tells; a damaged one is deleted."""
    if not arrays.has(key):
        return False
    try:
        arrays.shape(key)
    except DamagedArtifact as error:
        print(error, file=sys.stderr, flush=True)
        arrays.remove(key)
        return False
    return True


def _features(
    model: nn.Module,
    videos: Sequence[str],
    index: Index,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    sharing: Sharing | None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Id and array of each video, one video in memory at a time."""
    if not videos:
        return
    fabric = start(compute, precision="32-true", alone=True)
    model.to(fabric.device).eval()
    clips = [Clip(video, 0, index["videos"][video]["frames"]) for video in videos]
    reader = open_reader(index, sharing=sharing, by="features", frames_from=compute.frames_from)
    dataset = scoring_snippets(clips, reader, experiment=experiment)
    loader: Any = DataLoader(dataset, batch_size=None, **loader_options(compute, fabric))
    size, flow = experiment.sampling.input_size, flow_from(experiment)
    items = Augmented(batches=loader, size=size, flow_from=flow, device=fabric.device)
    for number, chunks in groupby(items, key=lambda item: item[2]):
        yield videos[number], np.concatenate([_look(model, views[0]) for views, *_ in chunks])


@torch.inference_mode()
def _look(model: Any, views: Tensor) -> NDArray[Any]:
    """(t, L, S, S) raw values -> (t, D) float32 of a jsta, (t, C, h, w) float16 of a 2D network."""
    if isinstance(model, JSTASpatial):
        clips: NDArray[Any] = model.clip_features(views).float().cpu().numpy()
        return clips
    maps: NDArray[Any] = model.backbone.feature_map(model.normalise(views)).half().cpu().numpy()
    return maps


def _attributes(parameters: dict[str, Any], *, source: str) -> dict[str, Any]:
    software = {"torch": torch.__version__.partition("+")[0]}
    return provenance("features", parameters=parameters, digest=source, software=software)


def _facts(arrays: FeatureStore, key: str, found: dict[str, Any], *, experiment: ExperimentConfig) -> dict[str, Any]:
    sampling = experiment.sampling
    positions = scoring_positions(
        found["frames"], snippet=sampling.snippet, segments=sampling.test_segments, stride=sampling.stride
    )
    count, *shape = arrays.shape(key)
    assert count == len(positions)
    known: dict[str, Any] = {name: found[name] for name in ("width", "height", "fps") if name in found}
    return {
        "key": key,
        "frames": count,
        "shape": shape,
        "positions": positions.tolist(),
        "source_frames": found["frames"],
        **known,
    }


def main(argv: list[str] | None = None) -> None:
    """Make the features of one shard."""
    parser = argparse.ArgumentParser(prog="python -m stages.features", description=main.__doc__)
    experiment = section_argument(ExperimentConfig)
    parser.add_argument("--shard", type=Path, required=True, help="the plan's media file of the shard")
    parser.add_argument("--index", type=Path, required=True, help="index of the store of the experiments' modality")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt of the source's training")
    parser.add_argument("--experiment", type=experiment, required=True, help="that reads the features, as JSON")
    parser.add_argument("--source", type=experiment, required=True, help="that makes the features, as JSON")
    parser.add_argument("--compute", type=section_argument(ComputeConfig), required=True, help="where it runs, as JSON")
    parser.add_argument("--store", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--receipt", type=Path, required=True, help="receipt to write")
    add_store_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        receipt = make_features(
            [row["id"] for row in json.loads(arguments.shard.read_text())],
            read_index(arguments.index, stage=arguments.experiment.modality),
            shard=arguments.shard.stem,
            checkpoint=arguments.checkpoint,
            experiment=arguments.experiment,
            source=arguments.source,
            compute=arguments.compute,
            store=arguments.store,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"features: {error}")
    receipt.write(arguments.receipt)


if __name__ == "__main__":
    main()
