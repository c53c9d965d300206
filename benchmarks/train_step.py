"""The training step of each model, forward and backward, beside its bare backbone with a linear classifier.

    python -m benchmarks.train_step [--device cpu | cuda] [--backbones NAME ...] [--videos N] [--rounds N]

The bare backbone has the same normalisation, dropout and batch, and cross-entropy on every snippet. All models of a row
take one step each in turn, starting with another one in each round; a round gives one ratio of times, and the median of
the ratios less one is the overhead. So the machine's other work disturbs all alike. On the CPU time is processor time
of one thread, on a CUDA device wall time. Reading data and the optimiser's own step are not part of it.

STA-CNN's RGB stream has a second trunk, the Spatial Attention Network (an eighth of its width beside the backbone
tiny); its step alone is timed too: `san_cost` is its time over the bare backbone's, `overhead_over_both_trunks` what
the rest of the model adds to the two. The 3D networks see one clip of 112 pixels a video: ResNeXt3D-101 as published,
16 frames, with STA in layer4; Res3D-18 as published, 8 frames, with JSTA's block after res3b. An image is what the
classifier sees of one snippet: a stack of flow, a frame, or a clip.

`utilisation` is the rate of a step's multiplications and additions (of convolutions and matrices, as torch counts
them) over that of one large matrix product or convolution on the same device and thread, whichever is faster: on a GPU
the model FLOP utilisation against what the device reaches, not against its data sheet. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.backbones.convention import Normalise
from models.build import BACKBONES, VIDEO_BACKBONES, build, build_backbone, build_video_backbone
from models.flownet import SpatialAttentionNetwork

CLASSES, SEGMENTS, DROPOUT = 101, 3, 0.5
FLOW_CHANNELS, RGB_CHANNELS = 10, 6
SIDE_PX = {"tiny": 96, "resnext3d101": 112, "res3d18": 112}
LARGE_SIDE_PX = 224
CLIP_FRAMES = {"resnext3d101": 16, "res3d18": 8}
CLIP_FAMILIES = {"resnext3d101": "sta_net", "res3d18": "jsta"}
SAN_WIDTH = {"tiny": 0.125}
CPU_VIDEOS = {"tiny": 24}
FEW_CPU_VIDEOS, CUDA_VIDEOS = 2, 32
ROUNDS = {"tiny": 21, "resnext3d101": 11, "res3d18": 11}  # short steps differ more, and little is looked for
FEW_ROUNDS = 7
MATRIX = 2048
NOT_MEASURED = "not measured: there is no CUDA device"

Step = Callable[[], None]


class Bare(nn.Module):
    """The backbone, dropout and a linear classifier: snippets (M, C, H, W) raw -> (M, K)."""

    def __init__(self, name: str, *, modality: str, in_channels: int, side: int) -> None:
        super().__init__()
        self.clips = name in VIDEO_BACKBONES
        if self.clips:
            backbone: Any = build_video_backbone(name, in_channels=3, frames=in_channels // 3, size=side)
        else:
            backbone = build_backbone(name, in_channels=in_channels)
        self.normalise = Normalise(backbone.input_spec, modality=modality, in_channels=in_channels)
        self.backbone = backbone
        self.dropout = nn.Dropout(DROPOUT)
        self.fc = nn.Linear(backbone.feature_dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        if self.clips:
            x = x.unflatten(1, (-1, 3)).transpose(1, 2)  # M 3T H W -> M T 3 H W -> M 3 T H W
        return self.fc(self.dropout(self.backbone(x)))


def bare_step(model: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """One step on snippets (B, N, C, H, W) of videos with labels (B,)."""
    snippets, each = x.flatten(0, 1), labels.repeat_interleave(x.shape[1])

    def step() -> None:
        F.cross_entropy(model(snippets), each).backward()

    return step


def model_step(backbone: str, x: Tensor, labels: Tensor, *, modality: str, **switches: Any) -> Step:
    """One step of a family on snippets (B, N, C, H, W) of videos with labels (B,)."""
    clips = backbone in VIDEO_BACKBONES
    seen: dict[str, Any] = {"snippet": x.shape[2] // 3} if clips else {"segments": x.shape[1]}
    model = build(
        num_classes=CLASSES,
        modality=modality,
        in_channels=x.shape[2],
        **seen,
        dropout=DROPOUT,
        backbone=backbone,
        input_size=x.shape[-1],
        **switches,
    ).to(x.device)

    def step() -> None:
        model.loss(model(x), labels, label_smoothing=0.0).backward()

    return step


def san_step(x: Tensor, *, width: float) -> Step:
    """One step of the Spatial Attention Network alone."""
    san, snippets = SpatialAttentionNetwork(width=width).to(x.device), x.flatten(0, 1)

    def step() -> None:
        san(snippets).mean().backward()

    return step


def flow_steps(backbone: str, x: Tensor, labels: Tensor) -> dict[str, Step]:
    """What a flow stream may be; the first is the bare backbone."""
    bare = Bare(backbone, modality="flow", in_channels=FLOW_CHANNELS, side=x.shape[-1]).to(x.device)
    sta: dict[str, Any] = {"family": "sta_cnn", "modality": "flow", "groups": 1, "top": 1}
    return {
        "bare": bare_step(bare, x, labels),
        "atw": model_step(backbone, x, labels, modality="flow"),
        "sta_cnn temporal": model_step(backbone, x, labels, **sta),
        "sta_cnn flow stream": model_step(backbone, x, labels, **sta, spatial="shared"),
    }


def rgb_steps(backbone: str, x: Tensor, labels: Tensor) -> dict[str, Step]:
    """The RGB stream with its second trunk, and that trunk alone."""
    bare = Bare(backbone, modality="rgb", in_channels=3, side=x.shape[-1]).to(x.device)
    switches: dict[str, Any] = {"family": "sta_cnn", "modality": "rgb", "groups": 1, "top": 1, "spatial": "san"}
    width = SAN_WIDTH.get(backbone, 1.0)
    return {
        "bare": bare_step(bare, x[:, :, :3], labels),
        "sta_cnn rgb stream": model_step(backbone, x, labels, **switches, san_width=width),
        "san": san_step(x, width=width),
    }


def clip_steps(backbone: str, x: Tensor, labels: Tensor) -> dict[str, Step]:
    """A 3D network with attention; the first is the bare backbone."""
    family = CLIP_FAMILIES[backbone]
    bare = Bare(backbone, modality="rgb", in_channels=x.shape[2], side=x.shape[-1]).to(x.device)
    return {
        "bare": bare_step(bare, x, labels),
        family: model_step(backbone, x, labels, modality="rgb", family=family),
    }


def seconds_of(step: Step, *, device: torch.device) -> float:
    """Processor time on the CPU, wall time on a CUDA device."""
    if device.type == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(steps: dict[str, Step], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step in each round, after one that is not counted."""
    names = list(steps)
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(steps[name], device=device))
    return seconds


def peak_flops(*, device: torch.device) -> float:
    """Operations a second of a large matrix product or of a convolution with a large kernel, whichever has more."""
    a, b = torch.randn(2, MATRIX, MATRIX, device=device)
    images, kernels = torch.randn(4, 64, 112, 112, device=device), torch.randn(64, 64, 7, 7, device=device)
    rates = []
    works: list[Callable[[], Any]] = [lambda: a @ b, lambda: F.conv2d(images, kernels, padding=3)]
    for work in works:
        with FlopCounterMode(display=False) as counter:
            work()
        fastest = min(seconds_of(work, device=device) for _ in range(ROUNDS["tiny"]))
        rates.append(counter.get_total_flops() / fastest)
    return max(rates)


def step_flops(steps: dict[str, Step]) -> dict[str, int]:
    """Operations of each step, counted while it runs."""
    found = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        found[name] = counter.get_total_flops()
    return found


def compare(
    seconds: dict[str, list[float]], *, images: int, flops: dict[str, int], peak: float
) -> dict[str, dict[str, float]]:
    """A row a model: images a second, utilisation, and times relative to the bare backbone's."""
    rows = {}
    for name, own in seconds.items():
        ratios = [mine / bare for mine, bare in zip(own, seconds["bare"], strict=True)]
        rows[name] = {"images_per_second": images / statistics.median(own)}
        rows[name]["utilisation"] = flops[name] / statistics.median(own) / peak
        if name == "san":
            rows[name]["san_cost"] = statistics.median(ratios)
        elif name != "bare":
            rows[name]["overhead"] = statistics.median(ratios) - 1
        if name != "bare":
            rows[name] |= {"smallest_ratio": min(ratios), "largest_ratio": max(ratios)}
    if "san" in seconds:
        triples = zip(seconds["sta_cnn rgb stream"], seconds["san"], seconds["bare"], strict=True)
        both = statistics.median(whole / (san + bare) for whole, san, bare in triples)
        rows["sta_cnn rgb stream"]["overhead_over_both_trunks"] = both - 1
    return rows


def inputs(backbone: str) -> list[tuple[str, int, int, Callable[[str, Tensor, Tensor], dict[str, Step]]]]:
    """What a backbone is timed on: modality, snippets a video, channels of one, and the steps."""
    if backbone in VIDEO_BACKBONES:
        return [("rgb", 1, 3 * CLIP_FRAMES[backbone], clip_steps)]
    return [("flow", SEGMENTS, FLOW_CHANNELS, flow_steps), ("rgb", SEGMENTS, RGB_CHANNELS, rgb_steps)]


def measure(
    backbones: list[str], *, videos: int | None, rounds: int | None, device: torch.device, peak: float
) -> dict[str, Any]:
    """Rows by backbone and modality; printed as they come."""
    result: dict[str, Any] = {}
    for backbone in backbones:
        side = SIDE_PX.get(backbone, LARGE_SIDE_PX)
        few = CPU_VIDEOS.get(backbone, FEW_CPU_VIDEOS) if device.type == "cpu" else CUDA_VIDEOS
        batch = videos or few
        turns = rounds or ROUNDS.get(backbone, FEW_ROUNDS)
        result[backbone] = {"videos": batch, "side_px": side, "rounds": turns}
        labels = torch.arange(batch, device=device) % CLASSES
        for modality, snippets, channels, steps in inputs(backbone):
            torch.manual_seed(0)
            shape = (batch, snippets, channels, side, side)
            x = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            models = steps(backbone, x, labels)
            flops = step_flops(models)
            seconds = interleaved(models, rounds=turns, device=device)
            rows = compare(seconds, images=batch * snippets, flops=flops, peak=peak)
            result[backbone][modality] = rows
            for name, row in rows.items():
                numbers = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
                print(f"{backbone} {side} px {modality} {name}: {numbers}", flush=True)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Training steps of the models beside their bare backbones.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--backbones", nargs="+", choices=(*BACKBONES, *CLIP_FRAMES), default=["tiny", "bn_inception", *CLIP_FRAMES]
    )
    parser.add_argument(
        "--videos", type=int, help=f"a batch, {SEGMENTS} snippets or one clip each (default: by device)"
    )
    parser.add_argument("--rounds", type=int, help="of steps that are timed (default: by backbone)")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"device": "cuda", "backbones": NOT_MEASURED}))
        return
    device = torch.device(arguments.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peak = peak_flops(device=device)
        sizes: dict[str, Any] = {"videos": arguments.videos, "rounds": arguments.rounds}
        backbones = measure(arguments.backbones, **sizes, device=device, peak=peak)
    finally:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU core"
    setting = {"device": name, "segments": SEGMENTS, "peak_gflops": peak / 1e9}
    print(json.dumps({**setting, "torch": torch.__version__, "backbones": backbones}, sort_keys=True))


if __name__ == "__main__":
    main()
