"""Stage train: one experiment on one split with one seed.

The weights after the last epoch are the result. Test accuracy appears in the history to be looked at; it selects
nothing but ``best.pt``, which nothing reads. A run that was killed continues to the same weights.

Shapes: B videos, N snippets, C channels, S input size, K classes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from models.build import Model, build
from models.checkpoint import load_checkpoint, save_checkpoint
from models.sta_net import STANet
from models.tsn import parameter_groups
from models.weights import load_initial
from pipeline.config import ComputeConfig, ExperimentConfig, OptimConfig, canonical
from pipeline.dataset.digests import file_digest
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import training_part
from pipeline.families import ImageNetworkConfig
from pipeline.learning.batches import loaders
from pipeline.learning.clock import Clock
from pipeline.learning.devices import one_process_a_device, start
from pipeline.learning.epochs import Seen, run_epochs, set_up
from pipeline.learning.history import Row, epoch_line, history_table
from pipeline.learning.job import add_arguments, feature_shape, log, model_keywords, read_source, total
from pipeline.learning.loader import Clip, TrainingBatches, select
from pipeline.learning.order import derived_seed
from pipeline.learning.readers import FeatureIndex, Index, index_argument, read_index
from pipeline.learning.resume import LastState, Progress, progress_of
from pipeline.learning.schedule import is_best, is_test_epoch, lr_factor
from pipeline.stores.provenance import written_by
from pipeline.stores.publish import write_text
from pipeline.stores.sharing import Sharing

KERAS_RHO = 0.9
"""How RMSprop forgets in Keras, with which JSTA was published; torch's own is 0.99."""


def train(
    manifest: Manifest,
    index: Index | FeatureIndex,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    split: str,
    seed: int,
    out: Path,
    begin: Beginning | None = None,
    beside: Index | None = None,
    sharing: Sharing | None = None,
) -> None:
    """Train and write ``model.pt`` and ``history.csv`` to ``out``; meanwhile ``last.pt`` there lets it continue.

    ``best.pt`` beside them has the weights with the best test accuracy, ``metrics.csv`` and ``tensorboard`` the curves.

    Args:
        index: of what the experiment reads: its modality's store, or features.
        beside: with MARS, of the teacher's store.

    Raises:
        ValueError: the videos, the settings, the device or a file to begin with do not fit, or the loss is not finite.
    """
    begin = begin or Beginning()
    begin.check(experiment)
    if (experiment.mars is None) != (beside is None):
        raise ValueError("MARS sees flow beside frames, other trainings do not; give the index of flow with --teacher")
    fabric = start(compute, precision=compute.precision)
    clips, test_clips = _clips(manifest, index, split=split, fabric=fabric, beside=beside)
    keywords = model_keywords(experiment, num_classes=len(manifest.classes), feature_shape=feature_shape(index))
    torch.manual_seed(derived_seed(seed, "weights"))
    model = begin.build(
        keywords, experiment=experiment, classes=manifest.classes, split=split, seed=seed, fabric=fabric
    )
    about = {"settings": training_part(experiment), "precision": compute.precision, "split": split, "seed": seed}
    about |= written_by("train")
    last = LastState(
        out / "last.pt",
        fingerprint=fingerprint(clips, index, experiment=experiment, begin=begin, beside=beside, about=about),
        settings=about,
        minutes=compute.checkpoint_minutes,
    )
    found = last.read(fabric)
    if found is None and fabric.is_global_zero:
        (out / "best.pt").unlink(missing_ok=True)  # of a training before
    progress = progress_of(found, path=last.path, fabric=fabric)
    batches = order_of(clips, index, experiment=experiment, compute=compute, seed=seed, fabric=fabric, begun=progress)
    clock = Clock(fabric.device)
    devices: dict[str, Any] = {"compute": compute, "fabric": fabric, "clock": clock}
    stores: dict[str, Any] = {"beside": beside, "sharing": sharing}
    stream, tests = loaders((clips, test_clips), index, batches, experiment=experiment, **stores, **devices)
    save = partial(save_checkpoint, model=model, build=keywords, classes=manifest.classes, extra=about)

    def finish_epoch(epoch: int, history: list[Row]) -> None:
        tested = is_test_epoch(epoch, epochs=experiment.optim.epochs)
        history[-1]["test_top1"] = accuracy(model, tests, fabric=fabric) if tested else None
        if tested and fabric.is_global_zero and is_best(history):
            save(out / "best.pt")

    optimizer, settings = make_optimizer(model, experiment=experiment), loop_settings(model, optim=experiment.optim)
    job = set_up(model, optimizer, found, batches=batches, finish_epoch=finish_epoch, **settings, **devices)
    history = run_epochs(job, iter(stream), progress, last=last, out=out)
    if fabric.is_global_zero:
        save(out / "model.pt")
        write_text(out / "history.csv", history_table(history))
        last.remove()
    fabric.barrier()


@dataclass(frozen=True)
class Beginning:
    """Trained weights that a training begins with, beside the pretrained file of its settings."""

    initial: Path | None = None
    """``model.pt`` of another training, of which every tensor of equal name and shape is taken."""
    san: Path | None = None
    """Weights of the Spatial Attention Network."""
    teacher: Path | None = None
    """``model.pt`` of the training whose features MARS imitates."""

    def check(self, experiment: ExperimentConfig) -> None:
        """Say what is missing before anything is begun.

        Raises:
            ValueError: a file is, or the settings speak of one that is not given, or not of one that is.
        """
        pretrained = experiment.pretrained
        if pretrained is not None and not pretrained.is_file():
            raise ValueError(f"there is no checkpoint file {pretrained}; correct model.pretrained or set it to null")
        for file in filter(None, (self.initial, self.san, self.teacher)):
            if not file.is_file():
                raise ValueError(f"there is no checkpoint file {file}; train what it comes from first")
        if (experiment.initial is None) != (self.initial is None):
            raise ValueError(f"the experiment's initial is {experiment.initial}, but --initial is {self.initial}")
        if (experiment.mars is None) != (self.teacher is None):
            taught_by = experiment.mars and experiment.mars.teacher
            raise ValueError(f"the experiment's teacher is {taught_by}, but --teacher is {self.teacher}")
        wanted = experiment.san is not None and (experiment.san.targets != "none" or experiment.san.encoder is not None)
        if wanted != (self.san is not None):
            raise ValueError(
                "a Spatial Attention Network that begins with trained weights needs them by --san"
                if wanted
                else f"--san {self.san} has no place to go; it is for spatial: san that begins with trained weights"
            )

    def build(
        self,
        keywords: dict[str, Any],
        *,
        experiment: ExperimentConfig,
        classes: Sequence[str],
        split: str,
        seed: int,
        fabric: Fabric,
    ) -> Model:
        """The model with the weights that it begins with and its teacher; what became of every file is logged.

        Raises:
            ValueError: a file is none of these weights, or ``initial`` or ``teacher`` was trained on other classes,
                another split or with another seed.
        """
        files: dict[str, Any] = {"san_pretrained": str(self.san)} if self.san else {}
        model = build(**keywords, **files)
        reports = [getattr(model, name, None) for name in ("load_report", "san_load_report")]
        if self.initial is not None:
            _trained_alike(self.initial, classes=classes, split=split, seed=seed)
            reports.append(load_initial(model, self.initial))
        if self.teacher is not None:
            assert isinstance(model, STANet)
            assert experiment.mars is not None
            teacher = _trained_alike(self.teacher, classes=classes, split=split, seed=seed)
            assert isinstance(teacher, STANet)
            model.teach(teacher, alpha=experiment.mars.alpha)
        for report in reports:
            log(fabric, str(report) if report else None)
        return model

    def digests(self) -> dict[str, str]:
        """Of the files' content."""
        files = {"initial": self.initial, "san": self.san, "teacher": self.teacher}
        return {name: file_digest(file) for name, file in files.items() if file is not None}


def _trained_alike(file: Path, *, classes: Sequence[str], split: str, seed: int) -> Model:
    """Its model. Test videos of this split may have been learnt in another; another order mixes classes up."""
    found = load_checkpoint(file, expect_classes=classes)
    for key, wanted in (("split", split), ("seed", seed)):
        if found.extra.get(key) != wanted:
            raise ValueError(f"{file} was trained with {key} {found.extra.get(key)}, not {wanted}; give its own")
    return found.model


def loop_settings(model: Model, *, optim: OptimConfig) -> dict[str, Any]:
    """What the loop is told of this kind of training: fields of ``Training``."""
    return {
        "epochs": optim.epochs,
        "see": partial(_see, loss_of=model.loss, label_smoothing=optim.label_smoothing),
        "measures": ("train_loss", "train_top1"),
        "lr": optim.lr,
        "factor": lambda epoch, history: lr_factor(epoch, optim=optim, losses=[row["train_loss"] for row in history]),
        "clip_norm": optim.clip_norm,
        "remedy": "lower optim.lr or set optim.clip_norm",
        "line": partial(epoch_line, epochs=optim.epochs),
    }


def _see(model: Any, batch: Any, *, loss_of: Callable[..., Tensor], label_smoothing: float) -> Seen:
    """Snippets (B, N, C, S, S) or what a head takes, and labels (B,), through the model."""
    inputs, labels, _, _ = batch
    output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    labels = labels.to(output.logits.device, non_blocking=True)
    loss = loss_of(output, labels, label_smoothing=label_smoothing)
    right = (output.logits.argmax(dim=1) == labels).sum()
    return Seen(loss, torch.stack([loss.detach() * len(labels), right]), len(labels))


def make_optimizer(model: nn.Module, *, experiment: ExperimentConfig) -> torch.optim.Optimizer:
    """The optimizer; a group's own rate is in ``initial_lr``.

    No decay on biases and BatchNorm. TSN's learning-rate multipliers belong to fine-tuning of image networks: without a
    pretrained file all parameters have the same rate, with ``initial`` too, because a convolution that has been trained
    on this very input has no averaged colours to make up for; and so have networks of clips, as in their papers' code.
    What ``train_only`` does not name is frozen.

    Raises:
        ValueError: ``train_only`` names no parameter.
    """
    optim = experiment.optim
    tuning = experiment.pretrained is not None and isinstance(experiment.model, ImageNetworkConfig)
    if optim.train_only is not None:
        _freeze_others(model, optim.train_only)
    modality = "rgb" if experiment.modality == "frames" else experiment.modality
    groups = []
    for group in parameter_groups(model, modality=modality):
        lr = optim.lr * (group["lr_mult"] if tuning else 1.0)
        decay = optim.weight_decay * group["decay_mult"]
        groups.append({"params": group["params"], "lr": lr, "initial_lr": lr, "weight_decay": decay})
    match optim.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, momentum=optim.momentum, dampening=optim.dampening)
        case "adam":
            return torch.optim.Adam(groups)
        case "adamw":
            return torch.optim.AdamW(groups)
        case "rmsprop":
            return torch.optim.RMSprop(groups, alpha=KERAS_RHO)


def _freeze_others(model: nn.Module, parts: Sequence[str]) -> None:
    """Only parameters whose name has one of ``parts`` in it learn; BatchNorm's statistics go on moving everywhere."""
    learning = 0
    for name, parameter in model.named_parameters():
        learns = any(part in name for part in parts)
        learning += learns
        parameter.requires_grad_(learns and parameter.requires_grad)
    if not learning:
        raise ValueError(f"optim.train_only {', '.join(parts)} is in no parameter's name; correct it or set it to null")


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Any], *, fabric: Fabric) -> float:
    """Share of test videos whose class is right by the centre crops of as many snippets as in training.

    Args:
        model: not wrapped, because the processes' shares of the videos differ in length.
        batches: (views (B, 1, N, C, S, S) or what a head takes, labels (B,), ...) on the device.
    """
    if fabric.world_size > 1:  # BatchNorm's statistics are those of each process; rank 0's are the ones that are saved
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for inputs, labels, _, _ in batches:
        with fabric.autocast():
            output = model(*inputs) if isinstance(inputs, tuple) else model(inputs[:, 0])
        right = (output.logits.argmax(dim=1) == labels.to(output.logits.device, non_blocking=True)).sum()
        sums[0] += right  # nothing here waits for the device
        sums[1] += len(labels)
    right_sum, videos = total(sums, fabric).tolist()
    return right_sum / videos


def fingerprint(
    clips: Sequence[Clip],
    index: Index | FeatureIndex,
    *,
    experiment: ExperimentConfig,
    begin: Beginning,
    beside: Index | None,
    about: dict[str, Any],
) -> str:
    """A hash of everything that decides the weights, but for the machine."""
    pretrained = experiment.pretrained
    parts = {
        "clips": [[*clip, index["videos"][clip.id]["key"]] for clip in clips],  # the key follows the pixels
        "index": {"stage": index["stage"], "parameters": index["parameters"]},
        "pretrained": file_digest(pretrained) if pretrained else None,
        **begin.digests(),
        **({"beside": [beside["videos"][clip.id]["key"] for clip in clips]} if beside else {}),
        **({"shards": _shards(clips, index)} if experiment.optim.shuffle == "shards" else {}),
        "about": about,
    }
    return hashlib.blake2b(canonical(parts).encode(), digest_size=16).hexdigest()


def order_of(
    clips: Sequence[Clip],
    index: Index | FeatureIndex,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    seed: int,
    fabric: Fabric,
    begun: Progress,
) -> TrainingBatches:
    """The batches of this process that are left."""
    optim = experiment.optim
    return TrainingBatches(
        videos=len(clips),
        batch_size=optim.batch_size,
        epochs=range(begun.epoch, optim.epochs),
        seed=seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        first_step=begun.step,
        accumulate=compute.accumulate,
        shards=_shards(clips, index) if optim.shuffle == "shards" else None,
        buffer=optim.shuffle_buffer,
    )


def _shards(clips: Sequence[Clip], index: Index | FeatureIndex) -> list[int]:
    """Number of the shard that each clip lies in."""
    names = [index["videos"][clip.id]["shard"] for clip in clips]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]


def _clips(
    manifest: Manifest, index: Index | FeatureIndex, *, split: str, fabric: Fabric, beside: Index | None
) -> tuple[list[Clip], list[Clip]]:
    """Training and test clips; what a store lacks is logged, a class without a training video is an error."""
    parts = []
    for part in ("train", "test"):
        clips, left_out = select(manifest, index, split=split, part=part)
        if beside is not None and part == "train":
            without = [clip.id for clip in clips if clip.id not in beside["videos"]]
            clips = [clip for clip in clips if clip.id in beside["videos"]]
            if without:
                told = f"{len(without)} {part} videos have no {beside['stage']} and are left out: {', '.join(without)}"
                log(fabric, told)
        if left_out:
            log(
                fabric,
                f"{len(left_out)} {part} videos have no {index['stage']} and are left out: {', '.join(left_out)}",
            )
        parts.append(clips)
    trained = {clip.label for clip in parts[0]}
    for number, name in enumerate(manifest.classes):
        if number not in trained:
            raise ValueError(
                f"the class {name!r} has no training video with {index['stage']} in {split}; "
                "add one, or list it in exclude_labels"
            )
    return parts[0], parts[1]


def main(argv: list[str] | None = None) -> None:
    """Train one experiment on one split."""
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, required=True, help="of weights, order and draws")
    parser.add_argument("--initial", type=Path, nargs="?", help="model.pt of the experiment that this one begins with")
    parser.add_argument("--san", type=Path, nargs="?", help="weights of the Spatial Attention Network to begin with")
    parser.add_argument("--teacher", type=Path, nargs="?", help="model.pt of the flow network that MARS imitates")
    parser.add_argument("--beside", type=index_argument, nargs="?", help="with --teacher, STORE=FILE of what it sees")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.pt and history.csv")
    arguments = parser.parse_args(argv)
    try:
        one_process_a_device(arguments.compute, module="stages.train")
        beside = arguments.beside and read_index(arguments.beside[1], stage=arguments.beside[0])
        train(
            read_manifest(arguments.manifest),
            read_source(arguments),
            experiment=arguments.experiment,
            compute=arguments.compute,
            split=arguments.split,
            seed=arguments.seed,
            out=arguments.out,
            begin=Beginning(arguments.initial, arguments.san, arguments.teacher),
            beside=beside,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    main()
