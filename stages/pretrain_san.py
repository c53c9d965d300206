"""Stage pretrain_san: teach a Spatial Attention Network to see motion, by predicting the flow between two frames.

STA-CNN's equations (3) and (4), see ``models.flownet``. The targets are the own stores' flow, of the training videos of
one split, or FlyingChairs'. A run that was killed continues to the same weights.

Shapes: B pairs, h w input size, k l size of the prediction.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.flownet import FlowPredictor, Theta, endpoint_error, flow_loss, load_encoder, save_encoder
from pipeline.config import ComputeConfig, SanConfig, canonical
from pipeline.dataset.builders.flying_chairs import flying_chairs
from pipeline.dataset.digests import file_digest
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import san_part
from pipeline.learning.clock import Clock, clocked
from pipeline.learning.devices import loader_options, one_process_a_device, start
from pipeline.learning.epochs import Seen, run_epochs, set_up
from pipeline.learning.flow_pairs import ChairsPairs, FlowTargets, PairSource, StoredPairs, paired_clips
from pipeline.learning.history import Row, history_table
from pipeline.learning.job import log, section_argument
from pipeline.learning.loader import TrainingBatches
from pipeline.learning.order import derived_seed
from pipeline.learning.readers import Index, open_reader, read_index
from pipeline.learning.resume import LastState, progress_of
from pipeline.learning.schedule import step_factor
from pipeline.stores.provenance import written_by
from pipeline.stores.publish import write_text
from pipeline.stores.sharing import Sharing
from pipeline.stores.sharing import add_arguments as add_store_arguments

COLUMNS = ("epoch", "lr", "train_loss", "endpoint_error_px", "seconds", "data_wait_seconds")
"""Of the history; the error is the mean distance between predicted and true flow in pixels of the input."""


@dataclass(frozen=True)
class Pairs:
    """What is learnt from."""

    source: PairSource
    identity: dict[str, Any]
    """Everything about the pairs that decides the weights, but for the pixels' places."""
    left_out: tuple[str, ...] = ()


def stored_pairs(
    manifest: Manifest,
    frames: Index,
    flow: Index,
    *,
    split: str,
    sharing: Sharing | None = None,
    frames_from: str | None = None,
) -> Pairs:
    """Frames and flow of the training videos of a split.

    Raises:
        ValueError: there is none, or the flow is not the one between the frames.
    """
    clips, left_out = paired_clips(manifest, frames, flow, split=split)
    indexes = {"frames": frames, "flow": flow}
    frame_reader, flow_reader = (
        open_reader(index, sharing=sharing, by="san", frames_from=frames_from) for index in indexes.values()
    )
    source = StoredPairs(
        clips=clips, frames=frame_reader, flow=flow_reader, bound_px=float(flow["parameters"]["bound"])
    )
    keys = {name: [index["videos"][clip.id]["key"] for clip in clips] for name, index in indexes.items()}
    parameters = {name: index["parameters"] for name, index in indexes.items()}
    return Pairs(source, {"clips": clips, "keys": keys, "parameters": parameters, "split": split}, tuple(left_out))


def rendered_pairs(folder: Path) -> Pairs:
    """All of FlyingChairs.

    Raises:
        ValueError: the folder holds none, or is not whole.
    """
    found = flying_chairs(folder, split_file=None)
    return Pairs(ChairsPairs(found), {"chairs": [pair.id for pair in found]})


def pretrain(pairs: Pairs, *, san: SanConfig, compute: ComputeConfig, seed: int, out: Path) -> None:
    """Write ``san.pt`` and ``history.csv`` to ``out``; meanwhile ``last.pt`` there lets it continue.

    Raises:
        ValueError: the settings, the device, the encoder's file or a pair do not fit, or the loss is not finite.
    """
    if san.encoder is not None and not san.encoder.is_file():
        raise ValueError(f"there is no checkpoint file {san.encoder}; correct model.san.encoder or set it to null")
    fabric = start(compute, precision=compute.precision)
    if pairs.left_out:
        log(fabric, f"{len(pairs.left_out)} train videos lack frames or flow: {', '.join(pairs.left_out)}")
    torch.manual_seed(derived_seed(seed, "san"))
    model = FlowPredictor(width=san.width, last_pool_stride=san.last_pool_stride)
    if san.encoder is not None:
        log(fabric, str(load_encoder(model.san, san.encoder)))
    last = LastState(
        out / "last.pt",
        fingerprint=fingerprint(pairs, san=san, compute=compute, seed=seed),
        settings={"san": san_part(san), "seed": seed, **written_by("san")},
        minutes=compute.checkpoint_minutes,
    )
    found = last.read(fabric)
    progress = progress_of(found, path=last.path, fabric=fabric)
    batches = TrainingBatches(
        videos=len(pairs.source),
        batch_size=san.batch_size,
        epochs=range(progress.epoch, san.epochs),
        seed=seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        first_step=progress.step,
        accumulate=compute.accumulate,
    )
    clock = Clock(fabric.device)
    loader = _loader(pairs.source, batches, san=san, model=model, compute=compute, fabric=fabric)
    job = set_up(
        model,
        make_optimizer(model, san=san),
        found,
        fabric=fabric,
        compute=compute,
        clock=clock,
        batches=batches,
        epochs=san.epochs,
        see=partial(_see, theta=san.theta),
        measures=("train_loss", "endpoint_error_px"),
        lr=san.lr,
        factor=lambda epoch, history: step_factor(epoch, milestones=san.milestones, gamma=san.gamma),
        remedy="lower model.san.lr",
        line=lambda row: _line(row, epochs=san.epochs),
    )

    def moved(batch: Any) -> tuple[Tensor, ...]:
        return tuple(values.to(fabric.device, non_blocking=True) for values in batch)

    history = run_epochs(job, clocked(loader, clock, then=moved), progress, last=last, out=out)
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        save_encoder(out / "san.pt", model.san)
        write_text(out / "history.csv", history_table(history, columns=COLUMNS))
        last.remove()
    fabric.barrier()


def _see(model: Any, batch: tuple[Tensor, Tensor], *, theta: Theta) -> Seen:
    """Frames (B, 6, h, w) uint8 and flow (B, 2, k, l) in pixels of the input."""
    frames, flow = batch
    predicted = model(frames)
    loss = flow_loss(predicted, flow, theta=theta)
    means = torch.stack([loss.detach(), endpoint_error(predicted.detach(), flow)])
    return Seen(loss, means * len(frames), len(frames))


def make_optimizer(model: nn.Module, *, san: SanConfig) -> torch.optim.Adam:
    """Adam with FlowNet's momenta; no decay on biases."""
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": san.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.Adam([{**group, "lr": san.lr, "initial_lr": san.lr} for group in groups])


def fingerprint(pairs: Pairs, *, san: SanConfig, compute: ComputeConfig, seed: int) -> str:
    """A hash of everything that decides the weights, but for the machine."""
    parts = {
        "pairs": pairs.identity,
        "san": san_part(san),
        "encoder": file_digest(san.encoder) if san.encoder else None,
        "precision": compute.precision,
        "seed": seed,
    }
    return hashlib.blake2b(canonical(parts).encode(), digest_size=16).hexdigest()


def _loader(
    source: PairSource,
    batches: TrainingBatches,
    *,
    san: SanConfig,
    model: FlowPredictor,
    compute: ComputeConfig,
    fabric: Fabric,
) -> Any:
    height, width = (16 * model.san.map_side(side) for side in san.crop_px)
    dataset = FlowTargets(source=source, size=san.crop_px, target_size=(height, width), seed=batches.seed)
    loader: Any = DataLoader(
        dataset,
        batch_sampler=batches,
        **loader_options(compute, fabric),
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False, move_to_device=False)


def _line(row: Row, *, epochs: int) -> str:
    """A row of the history as a line to read."""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, off by {row['endpoint_error_px']:.3f} px, "
        f"lr {row['lr']:.3g}, {row['seconds']:.1f} s"
    )


def _pairs(arguments: argparse.Namespace) -> Pairs:
    """What the command line names."""
    if arguments.san.targets == "flying_chairs":
        return rendered_pairs(arguments.san.flying_chairs)
    if arguments.san.targets == "none":
        raise ValueError("targets: none leaves nothing to learn; set model.san.targets, or train without this stage")
    given = {name: getattr(arguments, name) for name in ("manifest", "frames", "flow", "split")}
    if absent := [name for name, value in given.items() if value is None]:
        raise ValueError(f"targets: flow needs --{absent[0]}")
    return stored_pairs(
        read_manifest(arguments.manifest),
        read_index(arguments.frames, stage="frames"),
        read_index(arguments.flow, stage="flow"),
        split=arguments.split,
        sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        frames_from=arguments.compute.frames_from,
    )


def main(argv: list[str] | None = None) -> None:
    """Pre-train one Spatial Attention Network."""
    parser = argparse.ArgumentParser(prog="python -m stages.pretrain_san", description=main.__doc__)
    parser.add_argument("--san", type=section_argument(SanConfig), required=True, help="its settings as JSON")
    parser.add_argument("--compute", type=section_argument(ComputeConfig), required=True, help="where it runs, as JSON")
    parser.add_argument("--seed", type=int, required=True, help="of weights, order and draws")
    parser.add_argument("--out", type=Path, required=True, help="folder for san.pt and history.csv")
    own = parser.add_argument_group("with targets: flow")
    own.add_argument("--manifest", type=Path, help="the dataset's manifest")
    own.add_argument("--frames", type=Path, help="index of the frames")
    own.add_argument("--flow", type=Path, help="index of the flow")
    own.add_argument("--split", help="name of the split whose training videos are seen")
    add_store_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        one_process_a_device(arguments.compute, module="stages.pretrain_san")
        pairs = _pairs(arguments)
        pretrain(pairs, san=arguments.san, compute=arguments.compute, seed=arguments.seed, out=arguments.out)
    except (OSError, ValueError) as error:
        sys.exit(f"pretrain_san: {error}")


if __name__ == "__main__":
    main()
