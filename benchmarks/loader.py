"""Loading training videos beside what others do, and what training waits for it: ``python -m benchmarks.loader``.

One core: CPU seconds (``time.process_time``), one thread, each way in a process of its own, ways alternating, medians
of the ratios of each round; files in the page cache. Videos are real where there are any: 340x256, frames at ffmpeg's
quality 2, flow as the store has it. From call to (B, N, C, 224, 224) uint8, cut, resized and mirrored: `cut` of what
`collate` makes of `TrainingSnippets`; the peers are those of `benchmarks.loader_peers`, which draw alike. ``ours`` is
what all epochs but the first cost; in that, ``first``, the places of a video's frames are read and checked, too.
``uncut`` is ours without `cut`: what a loader process does for a model on a GPU, which cuts itself, while a peer's does
all. ``limit`` is decoding alone, of JPEGs and chunks in memory into memory that is there.

Then in wall seconds: loader processes; reading in the order of shards from disk and from a web server on this machine;
and a real training's share of waiting for data (BN-Inception with ATW, 3 segments, one epoch).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import http.server
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numcodecs
import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader

from benchmarks import loader_peers as peers
from benchmarks.frames import REAL_CLIP, make_clip
from benchmarks.stores import write_flow
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.manifest import Manifest, Video
from pipeline.learning.augmentation import cut
from pipeline.learning.loader import Clip, TrainingBatches, TrainingSnippets, collate
from pipeline.learning.memory import keep_freed_memory
from pipeline.learning.order import epoch_order
from pipeline.learning.readers import Index, open_reader
from pipeline.media.decode import gray_frames, jpeg_frames
from pipeline.optical_flow.quantise import quantise
from pipeline.optical_flow.solve import solve_video
from pipeline.stores.flow import FlowStore
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import provenance
from stages.train import train

HEIGHT, WIDTH = peers.HEIGHT, peers.WIDTH
FLOW_STACK = 5
SEGMENTS = (3, 9)
CLIPS = ("kinetics/demo.mp4", "ucf101/*.avi", "activitynet/*.mp4", "../actions/ut_interaction_set1/0_*.avi")
MOST_FRAMES, FIELDS = 300, 60
VIDEOS, SHARDS, BATCHES = 16, 4, 4
TRAINING_BATCH = 4
Work = Callable[[int], object]
"""One batch; called with the number of the round."""


@dataclass(frozen=True)
class Material:
    """The same videos in every form; there are more of them than clips, so they repeat."""

    files: list[Path]
    jpegs: list[list[bytes]]
    frames: Index
    flow: Index

    @property
    def lengths(self) -> list[int]:
        return [len(jpegs) for jpegs in self.jpegs]


def found_clips(folder: Path) -> list[Path]:
    """Real clips, or a synthetic one."""
    patterns = (sorted(REAL_CLIP.parents[1].glob(pattern))[:1] for pattern in CLIPS)
    return [path for paths in patterns for path in paths] or [make_clip(folder)]


def prepare(folder: Path) -> Material:
    """Shards of frames, a store of flow and folders of JPEG files."""
    clips = found_clips(folder)
    decoded = [list(itertools.islice(jpeg_frames(clip, width=WIDTH, height=HEIGHT), MOST_FRAMES)) for clip in clips]
    for number, (clip, images) in enumerate(zip(clips, decoded, strict=True)):
        peers.write_jpeg_frames(folder / "jpeg" / str(number), itertools.islice(_pixels(clip, images), len(images)))
    gray = itertools.islice(gray_frames(clips[0], width=WIDTH, height=HEIGHT), FIELDS + 1)
    fields = np.stack([quantise(flow) for flow in solve_video(gray)])
    peers.write_jpeg_flow(folder / "jpeg_flow", fields)
    files = [clips[number % len(clips)] for number in range(VIDEOS)]
    jpegs = [decoded[number % len(clips)] for number in range(VIDEOS)]
    return Material(files, jpegs, _write_frames(folder / "frames", jpegs), _write_flow(folder / "flow", fields))


def _pixels(clip: Path, jpegs: Sequence[bytes]) -> Iterator[peers.Image]:
    """RGB frames as OpenCV decodes the clip; what it misses at the end, of our JPEG files."""
    capture, number = cv2.VideoCapture(str(clip)), 0
    while True:
        is_there, frame = capture.read()
        if not is_there:
            break
        yield cv2.resize(frame, (WIDTH, HEIGHT))[..., ::-1]  # type: ignore[misc]
        number += 1
    for image in jpegs[number:]:
        yield simplejpeg.decode_jpeg(image, "RGB")


def _write_frames(folder: Path, jpegs: Sequence[list[bytes]]) -> Index:
    """In ``SHARDS`` tars."""
    folder.mkdir()
    facts: dict[str, dict[str, Any]] = {}
    for shard in range(SHARDS):
        with (folder / f"{shard:05d}.tar").open("w+b") as file:
            writer = ShardWriter(file, folder=folder)
            for video in range(shard * VIDEOS // SHARDS, (shard + 1) * VIDEOS // SHARDS):
                digest = f"{video:032x}"
                own, key = provenance("frames", parameters={}, digest=digest, software={}), _key(digest)
                size = {"width": WIDTH, "height": HEIGHT, "fps": 25.0}
                sample = writer.add(jpegs[video], metadata={"id": f"v{video:03d}", "artifact_key": key, **own, **size})
                place = {"shard": f"{shard:05d}.tar", "offset": sample.offset, "length": sample.length}
                facts[sample.id] = {"key": key, "frames": len(jpegs[video]), "digest": digest, **place, **size}
            writer.finish()
    return {"stage": "frames", "store": str(folder), "parameters": {}, "videos": facts, "quarantined": {}}


def _key(digest: str) -> str:
    return artifact_key("frames", {}, digest)


def _write_flow(folder: Path, fields: Any) -> Index:
    store, size = FlowStore(folder), {"width": WIDTH, "height": HEIGHT, "frames": len(fields)}
    facts = {f"v{video:03d}": {"key": write_flow(store, fields, video=video), **size} for video in range(VIDEOS)}
    return {"stage": "flow", "store": str(folder), "parameters": {}, "videos": facts, "quarantined": {}}


def snippets(index: Index, *, segments: int, size: int = peers.SIZE, **changes: Any) -> TrainingSnippets:
    """Of all videos, by a reader of its own."""
    clips = [Clip(name, number % 2, facts["frames"]) for number, (name, facts) in enumerate(index["videos"].items())]
    return TrainingSnippets(
        clips=clips,
        reader=changes.pop("reader", None) or open_reader(index),
        snippet=FLOW_STACK if index["stage"] == "flow" else 1,
        segments=segments,
        size=size,
        flip=True,
        seed=0,
        **{"scales": peers.SCALES, **changes},
    )


@dataclass
class Ours:
    """A batch of all videos, as training has it."""

    index: Index
    settings: dict[str, Any]
    is_cut: bool = True
    """Whether it is cut here, and not on a GPU."""
    is_first: bool = False
    """Whether no video was read before, as in a training's first epoch."""
    dataset: TrainingSnippets | None = None

    def __call__(self, epoch: int) -> None:
        keep_freed_memory()
        if self.dataset is None or self.is_first:
            self.dataset = snippets(self.index, **self.settings)
        batch = collate([self.dataset[epoch, number] for number in range(len(self.dataset))])
        if self.is_cut:
            flow_from = 0 if self.index["stage"] == "flow" else None
            cut(batch.images, batch.views, size=self.dataset.size, flow_from=flow_from)


def ours(index: Index, *, segments: int) -> dict[str, Work | str]:
    """Cut on this core or not, and both in the first epoch."""
    kinds = {"ours": (True, False), "ours_uncut": (False, False), "ours_first": (True, True)}
    settings = {"segments": segments}
    return {name: Ours(index, settings, is_cut=is_cut, is_first=first) for name, (is_cut, first) in kinds.items()}


def interleaved(works: Mapping[str, Work], *, rounds: int, once: Container[str] = ()) -> dict[str, list[float]]:
    """CPU seconds of each work in each round, each in a process of its own: what one frees, another gets sooner.

    A round is ``BATCHES`` batches, or one of those that take long. The first two, which warm up, are not counted.
    """
    spawn, pipes = multiprocessing.get_context("spawn"), dict[str, Any]()
    spent: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        pipes[name], there = spawn.Pipe()
        spawn.Process(target=_answer, args=(work, there, 1 if name in once else BATCHES), daemon=True).start()
    names = list(pipes)
    for number in range(rounds + 2):
        first = number % len(names)  # who comes after one that fills the caches with its own pays for it
        for name in names[first:] + names[:first]:
            pipes[name].send(number)
            seconds = pipes[name].recv()
            if number > 1:
                spent[name].append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    return spent


def _answer(work: Work, pipe: Any, batches: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    while (number := pipe.recv()) is not None:
        begun = time.process_time()
        for batch in range(batches):
            work(batches * number + batch)
        pipe.send((time.process_time() - begun) / batches)


def of_drawn(read: Callable[[Any, list[peers.Draw]], object], source: Any, draw: Any, most: int, number: int) -> None:
    """A peer's batch of the first videos."""
    read(source, draw(seed=number)[:most])


def decode_jpegs(jpegs: Sequence[Sequence[bytes]], drawn: Sequence[peers.Draw]) -> None:
    """The least that has to be done for frames."""
    out = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for draw in drawn:
        for index in draw.indices:
            simplejpeg.decode_jpeg(jpegs[draw.video][index], "RGB", buffer=out)


def decode_chunks(chunks: Sequence[bytes], drawn: Sequence[peers.Draw]) -> None:
    """The least that has to be done for flow."""
    out = np.empty((2, HEIGHT, WIDTH), np.uint8)
    for draw in drawn:
        for index in draw.indices:
            numcodecs.blosc.decompress(chunks[index], out)


def compared(works: dict[str, Work | str], *, rounds: int, videos: dict[str, int]) -> dict[str, Any]:
    """Milliseconds a video of each way and how many times as long as ours a peer takes; why, if it cannot."""
    told: dict[str, Any] = {name: work for name, work in works.items() if isinstance(work, str)}
    measured = {name: work for name, work in works.items() if not isinstance(work, str)}
    spent = interleaved(measured, rounds=rounds, once=videos)
    each = {name: [1e3 * seconds / videos.get(name, VIDEOS) for seconds in row] for name, row in spent.items()}
    for name, row in each.items():
        told[f"{name}_ms"] = round(statistics.median(row), 3)
        if not name.startswith("ours") and name != "limit":
            told[f"vs_{name}"], told[f"vs_{name}_range"] = _ratio(row, each["ours"])
            told[f"uncut_vs_{name}"], _ = _ratio(row, each["ours_uncut"])
            told[f"first_vs_{name}"], _ = _ratio(row, each["ours_first"])
    told["limit_share"], _ = _ratio(each["limit"], each["ours"])
    return told


def _ratio(one: list[float], other: list[float]) -> tuple[float, list[float]]:
    """Median over rounds, least and most."""
    ratios = [first / second for first, second in zip(one, other, strict=True)]
    return round(statistics.median(ratios), 2), [round(min(ratios), 2), round(max(ratios), 2)]


def rgb(material: Material, folder: Path, *, segments: int, rounds: int) -> dict[str, Any]:
    """Frames: ours beside the peers."""
    few = len(set(material.files))
    folders = [folder / "jpeg" / str(number % few) for number in range(VIDEOS)]
    tars = sorted((folder / "frames").glob("*.tar"))[: max(1, few * SHARDS // VIDEOS)]
    held = len(tars) * VIDEOS // SHARDS
    draw = partial(peers.draws, material.lengths, segments=segments, snippet=1)
    works: dict[str, Work | str] = {
        **ours(material.frames, segments=segments),
        "limit": partial(of_drawn, decode_jpegs, material.jpegs, draw, VIDEOS),
        "jpeg_folder": partial(of_drawn, peers.jpeg_frames, folders, draw, VIDEOS),
        "torchcodec": peers.why_not("torchcodec") or partial(of_drawn, peers.torchcodec, material.files, draw, few),
        "webdataset": peers.why_not("webdataset") or partial(of_drawn, peers.webdataset, tars, draw, held),
    }
    return compared(works, rounds=rounds, videos={"torchcodec": few, "webdataset": held})


def flow(material: Material, folder: Path, *, segments: int, rounds: int) -> dict[str, Any]:
    """Stacks of flow: ours beside JPEG files."""
    folders = [folder / "jpeg_flow"] * VIDEOS
    draw = partial(peers.draws, [FIELDS] * VIDEOS, segments=segments, snippet=FLOW_STACK)
    store, (name, *_) = FlowStore(folder / "flow"), material.flow["videos"]
    codec = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.NOSHUFFLE)
    chunks = [codec.encode(field) for field in store.read(material.flow["videos"][name]["key"], 0, FIELDS)]
    works: dict[str, Work | str] = {
        **ours(material.flow, segments=segments),
        "limit": partial(of_drawn, decode_chunks, chunks, draw, VIDEOS),
        "jpeg_folder": partial(of_drawn, partial(peers.jpeg_flow, snippet=FLOW_STACK), folders, draw, VIDEOS),
    }
    return compared(works, rounds=rounds, videos={})


def reduced(material: Material, *, rounds: int) -> dict[str, Any]:
    """Frames for an input of 112 pixels, decoded whole and at half the size where the crop allows it."""
    settings: dict[str, Any] = {"segments": 3, "size": 112, "scales": (1.0, 0.875)}
    works = {name: Ours(material.frames, {**settings, "reduced": name == "half"}) for name in ("half", "whole")}
    spent = interleaved(works, rounds=rounds)
    ratios = [whole / half for whole, half in zip(spent["whole"], spent["half"], strict=True)]
    each = {f"{name}_ms": round(1e3 * statistics.median(row) / VIDEOS, 3) for name, row in spent.items()}
    return {**each, "speed_up": round(statistics.median(ratios), 2)}


def workers(material: Material, *, epochs: int) -> dict[str, float]:
    """Videos a second, wall time, by number of loader processes; an epoch of starting them is not counted."""
    told = {}
    for count in (0, 1, 2):
        batches = TrainingBatches(videos=VIDEOS, batch_size=4, epochs=range(epochs + 1), seed=0)
        loaded = iter(
            DataLoader(
                snippets(material.frames, segments=3),
                batch_sampler=batches,
                num_workers=count,
                collate_fn=collate,
                multiprocessing_context="fork" if count else None,
            )
        )
        for _ in range(batches.steps):
            next(loaded)
        begun = time.perf_counter()
        for _ in loaded:
            pass
        told[str(count)] = round(epochs * VIDEOS / (time.perf_counter() - begun), 1)
    return told


class Ranged(http.server.SimpleHTTPRequestHandler):
    """A folder with byte ranges; counts what it is asked for."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would hold an answer back for 40 ms
    counts: Any

    def do_GET(self) -> None:
        """Answer one range."""
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        with open(self.translate_path(self.path), "rb") as file:
            file.seek(first)
            data = file.read(last + 1 - first)
        with self.counts.get_lock():
            self.counts[0] += 1
            self.counts[1] += len(data)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _serve(folder: Path, counts: Any, port: Any) -> None:
    Ranged.counts = counts
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranged, directory=str(folder)))
    port.send(server.server_address[1])
    server.serve_forever()


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[tuple[str, Any]]:
    """Address of a server in a process of its own, and its counts of requests and bytes."""
    spawn = multiprocessing.get_context("spawn")
    counts, (here, there) = spawn.Array("q", 2), spawn.Pipe()
    process = spawn.Process(target=_serve, args=(folder, counts, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}", counts
    finally:
        process.terminate()
        process.join()


def from_afar(material: Material, *, rounds: int) -> dict[str, Any]:
    """Three frames of every video, in the order of shards: from disk, and from a web server."""
    facts = list(material.frames["videos"].values())
    order = epoch_order(VIDEOS, seed=0, epoch=0, shards=[int(one["shard"][:5]) for one in facts], buffer=4)
    seconds: dict[str, list[float]] = {"disk": [], "http": []}
    with web_server(Path(material.frames["store"])) as (url, counts):
        for _ in range(rounds + 1):
            places: dict[str, Path | str] = {"disk": Path(material.frames["store"]), "http": url}
            shards = {name: FrameShards(place) for name, place in places.items()}
            counts[0] = counts[1] = 0
            for name, reader in shards.items():
                begun = time.perf_counter()
                for number in order:
                    frames = facts[number]["frames"]
                    reader.read_frames(facts[number], [frames // 6, frames // 2, 5 * frames // 6])
                seconds[name].append(time.perf_counter() - begun)
        told = {f"{name}_videos_per_s": round(VIDEOS / statistics.median(row[1:]), 1) for name, row in seconds.items()}
        return {
            **told,
            "requests_per_video": counts[0] / VIDEOS,
            "bytes_per_video": round(counts[1] / VIDEOS),
            "bytes_of_whole_samples": round(statistics.mean(one["length"] for one in facts)),
        }


def data_wait(material: Material, folder: Path) -> dict[str, Any]:
    """What a training's history says, of a process of its own with one thread."""
    out = folder / "run"
    out.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(material.frames, out))
    process.start()
    process.join()
    if process.exitcode:
        return {"data_wait_share": f"not measured: the training ended with {process.exitcode}"}
    (row,) = csv.DictReader((out / "history.csv").open())
    seconds, waited = float(row["seconds"]), float(row["data_wait_seconds"])
    return {"data_wait_share": round(waited / seconds, 4), "seconds": seconds, "data_wait_seconds": waited}


def _train(index: Index, out: Path) -> None:
    torch.set_num_threads(1)
    videos = [
        Video(id=name, path=name, digest=name, bytes=1, labels=(str(number % 2),), splits={"s": part})
        for number, name in enumerate(index["videos"])
        for part in ["train" if number < VIDEOS - 2 else "test"]
    ]
    settings: dict[str, Any] = {
        "modality": "frames",
        "model": {"backbone": "bn_inception"},
        "sampling": {"snippet": 1, "segments": 3, "test_segments": 3, "input_size": peers.SIZE},
        "optim": {"epochs": 1, "batch_size": TRAINING_BATCH},
    }
    experiment, compute = ExperimentConfig.model_validate(settings), ComputeConfig(accelerator="cpu", workers=0)
    train(Manifest(tuple(videos)), index, experiment=experiment, compute=compute, split="s", seed=0, out=out)


def main(argv: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where everything is written; by default that of temporary files")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, rounds = Path(name), arguments.rounds
        material = prepare(folder)
        parts: dict[str, Any] = {"clips": [path.name for path in dict.fromkeys(material.files)]}
        for segments in SEGMENTS:
            parts[f"rgb_{segments}"] = rgb(material, folder, segments=segments, rounds=rounds)
            parts[f"flow_{segments}"] = flow(material, folder, segments=segments, rounds=rounds)
            for what in ("rgb", "flow"):
                print(f"{what}, {segments} snippets: {parts[f'{what}_{segments}']}", flush=True)
        parts["reduced_112"] = reduced(material, rounds=rounds)
        parts["videos_per_s_by_workers"] = workers(material, epochs=60)
        parts["from_afar"] = from_afar(material, rounds=rounds)
        parts["training"] = data_wait(material, folder)
    for part in ("reduced_112", "videos_per_s_by_workers", "from_afar", "training"):
        print(f"{part}: {parts[part]}", flush=True)
    print(json.dumps({"benchmark": "loader", **headlines(parts), **parts}))


def headlines(parts: dict[str, Any]) -> dict[str, Any]:
    """The smaller ratio of 3 and 9 snippets, or why there is none."""
    told: dict[str, Any] = {}
    for what, peer in (("rgb", "torchcodec"), ("rgb", "jpeg_folder"), ("rgb", "webdataset"), ("flow", "jpeg_folder")):
        for uncut in ("", "uncut_"):
            found = [parts[f"{what}_{segments}"].get(f"{uncut}vs_{peer}") for segments in SEGMENTS]
            told[f"{what}_{uncut}vs_{peer}"] = min(found) if None not in found else parts[f"{what}_3"][peer]
    return {**told, "data_wait_share": parts["training"]["data_wait_share"]}


if __name__ == "__main__":
    main()
