"""A small run on disk - real stores, scores, benchmarks - with the report about it, and a reader of its page."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.config import canonical, load
from pipeline.dataset.manifest import Manifest, Segment, Tube, Video, write_manifest
from pipeline.dataset.plan import stage_recipes
from pipeline.learning.history import COLUMNS, history_table
from pipeline.learning.scores import Scores, write_scores
from pipeline.optical_flow.quantise import quantise
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import made_by
from stages.evaluate import evaluate
from stages.report import main

CLASSES = ("<b>bold</b>", 'say "hi" & go', "wave")
FRAMES, WIDTH, HEIGHT = 14, 48, 24
TIMES: dict[str, float | None] = {
    "seconds": 8.0,
    "data_wait_seconds": 2.0,
    "cut_seconds": 0.4,
    "forward_seconds": 1.6,
    "backward_seconds": 2.4,
    "update_seconds": 0.8,
    "samples_per_second": 12.5,
    "gpu_memory_mb": None,
}
"""Of an epoch of each run; the first waits longer for data."""
VOID = {"meta", "img", "link", "br", "hr", "input", "path"}


class Page(HTMLParser):
    """Cells of every table, attributes of every tag, text of every section; and whether tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._section, self._table, self._cell = "header", "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = values["id"]
        if tag == "table":
            self._table = values.get("id", "")
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._cell:
            self.tables[self._table][-1][-1] += data

    def rows(self, table: str) -> dict[str, list[str]]:
        """Rows of a table by their first cell, blanks made even."""
        return {" ".join(row[0].split()): [" ".join(cell.split()) for cell in row[1:]] for row in self.tables[table]}


def _videos() -> Manifest:
    videos = []
    for label, number in itertools.product(CLASSES, range(6)):
        name = f"{number} <i>&{CLASSES.index(label)}'ü"
        broken = label == "wave" and number == 0
        videos.append(
            Video(
                id=name,
                path=f"{name}.mp4",
                digest="0",
                bytes=1,
                labels=(label,),
                splits={"split1": "test" if number < 3 else "train", "split2": "train" if number < 3 else "test"},
                frames=None if broken else FRAMES,
                fps=None if broken else 25.0,
                width=None if broken else 96,
                height=None if broken else 48,
                stage="probe" if broken else None,
                reason="it has no <video> stream" if broken else None,
            )
        )
    return Manifest(tuple(sorted(videos, key=lambda video: video.id)))


def _frame_index(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """A real store of frames, whose grey level tells the frame's number."""
    folder.mkdir(parents=True)
    videos = {}
    with (folder / "00000.tar").open("w+b") as file:
        writer = ShardWriter(file, folder=folder)
        for video in manifest.videos:
            if video.usable:
                images = [
                    cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), 15 * i, np.uint8))[1].tobytes()
                    for i in range(FRAMES)
                ]
                made = {**made_by("frames"), "parameters": {}}
                sample = writer.add(images, metadata={"id": video.id, "artifact_key": video.id, **made})
                videos[video.id] = {
                    "shard": "00000.tar",
                    "offset": sample.offset,
                    "length": sample.length,
                    "key": video.id,
                    "frames": FRAMES,
                    "width": WIDTH,
                    "height": HEIGHT,
                    "fps": 25.0,
                }
        writer.finish()
    return _index("frames", folder, {}, videos, manifest)


def flow_index(folder: Path, manifest: Manifest, unusable: str, *, stage: str = "flow") -> dict[str, Any]:
    """A real store of flow or of warped flow, all of it to the right."""
    store, parameters, videos = FlowStore(folder), {"bound": 20.0}, {}
    field = quantise(np.stack([np.full((HEIGHT, WIDTH), 3.0), np.zeros((HEIGHT, WIDTH))]).astype(np.float32))
    for number, video in enumerate(manifest.videos):
        if video.usable and video.id != unusable:
            key = f"{number:032x}"
            store.write(key, [field] * (FRAMES - 1), describe=lambda _: {**made_by(stage), "parameters": parameters})
            size = {"frames": FRAMES - 1, "width": WIDTH, "height": HEIGHT, "fps": 25.0, "clipped": 0.0125}
            videos[video.id] = {"key": key, **size}
    index = _index(stage, folder, parameters, videos, manifest)
    index["quarantined"][unusable] = {"stage": "flow", "reason": "it is too dark"}
    return index


def _index(
    stage: str, store: Path, parameters: dict[str, Any], videos: dict[str, Any], manifest: Manifest
) -> dict[str, Any]:
    lost = {video.id: {"stage": video.stage, "reason": video.reason} for video in manifest.quarantined}
    return {"stage": stage, "store": str(store), "parameters": parameters, "videos": videos, "quarantined": lost}


def _marked(manifest: Manifest) -> Manifest:
    """The action is in the middle of every video, its actor in the left half of the frame."""
    return Manifest(
        tuple(
            replace(
                video,
                segments=(Segment(video.labels[0], 0.12, 0.4),),
                tubes=(Tube(video.labels[0], 0, ((0.0, 0.0, 48.0, 48.0),) * FRAMES),),
            )
            if video.usable
            else video
            for video in manifest.videos
        )
    )


def _spatial(random: np.random.Generator, videos: int, snippets: int) -> dict[str, Any]:
    """Maps of 2 x 4 cells on the middle of the frame."""
    maps = random.dirichlet(np.ones(8), (videos, snippets)).reshape(videos, snippets, 2, 4)
    return {"maps": maps.astype(np.float16), "view": np.tile(np.float32([0.25, 0, 0.75, 1]), (videos, 1))}


class Project:
    """The files of a run in a folder, and the report about them."""

    def __init__(
        self,
        folder: Path,
        *,
        streams: tuple[str, ...] = ("rgb", "flow"),
        snippets: int = 8,
        truth: bool = False,
        san: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Streams read frames if they are called rgb, else flow; with ``truth``, rgb has maps and videos are marked.

        With ``san``, rgb begins with a Spatial Attention Network that was pre-trained on each split and seed.
        """
        self.folder = folder
        self.san = san
        self.truth = truth
        self.manifest = _marked(_videos()) if truth else _videos()
        self.unusable = self.manifest.part("split1", "test")[1].id
        self.config = load(
            {
                "name": "tiny",
                "dataset": "csv",
                "csv": "videos & labels.csv",
                "splits": ["split1", "split2"],
                "seeds": [0, 7],
                "experiments": {
                    name: {
                        "modality": "frames" if name == "rgb" else "flow",
                        "weight": 1.0 if name == "rgb" else 1.5,
                        "sampling": {"snippet": 1 if name == "rgb" else 5, "test_segments": snippets},
                    }
                    for name in streams
                },
                **(settings or {}),
            }
        )
        self.indexes = {"frames": _frame_index(folder / "frames", self.manifest)}
        if "flow" in streams:
            self.indexes["flow"] = flow_index(folder / "flow", self.manifest, self.unusable)
        self.runs = self._train(streams, snippets)
        self.results = self.evaluate() if streams else self._no_results()
        self.notes: dict[str, list[str]] = {"missing": [], "extra": []}
        self._benchmark("flow/00000-{flow}.tsv", "12.5\t300.5\t11.0")
        self._benchmark("flow/00001-{flow}.tsv", "2.5\t-\tNA")
        self._benchmark("flow/00000-ffffffffffff.tsv", "999\t9999\t999")

    def _train(self, streams: tuple[str, ...], snippets: int) -> list[Any]:
        runs, random = [], np.random.default_rng(0)
        names = [(name, seed) for name in streams for seed in (0, 7)] + [("baseline", 0)] * bool(streams)
        for (name, seed), split in itertools.product(names, self.config.splits):
            known = self.config.experiments.get(name)
            if known and known.splits and split not in known.splits:
                continue
            folder = self.folder / "runs" / name / f"{split}-seed{seed}"
            kind = "flow" if name == "flow" else "frames"
            test = [v for v in self.manifest.part(split, "test") if v.id in self.indexes[kind]["videos"]]
            weights = random.dirichlet(np.ones(snippets), len(test)).astype(np.float32)
            scores = Scores(
                ids=np.array([video.id for video in test]),
                logits=random.normal(size=(len(test), len(CLASSES))).astype(np.float32),
                weights=weights,
                positions=np.tile(np.arange(snippets) * (FRAMES - 5) // snippets, (len(test), 1)),
                classes=np.array(self.manifest.classes),
                **(_spatial(random, len(test), snippets) if self.truth and name == "rgb" else {}),
            )
            write_scores(folder / "scores.npz", scores)
            row = dict.fromkeys(COLUMNS, 0.5) | TIMES
            first = {"epoch": 1, "test_top1": None, "train_loss": 2.0, "data_wait_seconds": 6.0}
            history = [row | first, row | {"epoch": 2}]
            (folder / "history.csv").write_text(history_table(history, columns=list(row)))
            runs.append(
                {
                    "experiment": name,
                    "split": split,
                    "seed": seed,
                    "recipe": "0123456789ab",
                    "folder": str(folder),
                    "scores": str(folder / "scores.npz"),
                    **(self._pretrained(split, seed) if self.san and name == "rgb" else {}),
                }
            )
        return runs

    def _pretrained(self, split: str, seed: int) -> dict[str, Any]:
        """The facts of a run whose SAN has been pre-trained."""
        folder = self.folder / "san" / "ba9876543210" / f"{split}-seed{seed}"
        folder.mkdir(parents=True)
        columns = ("epoch", "train_loss", "endpoint_error_px", "seconds", "data_wait_seconds")
        row = dict.fromkeys(columns, 0.5)
        (folder / "history.csv").write_text(history_table([row | {"epoch": 1}, row | {"epoch": 2}], columns=columns))
        return {"san": "ba9876543210", "san_folder": str(folder)}

    def _no_results(self) -> dict[str, Any]:
        chance = {"uniform": 1 / 3, "majority": 0.3}
        empty: dict[str, Any] = {
            "rows": [],
            "runs": [],
            "attention": [],
            "localisation": [],
            "summary": {},
            "left_out": {},
        }
        return {"classes": list(CLASSES), "chance": chance, **empty}

    def evaluate(self) -> dict[str, Any]:
        """What results.json holds."""
        indexes: Any = self.indexes
        return evaluate(self.manifest, self.runs, settings=self.config.evaluation, indexes=indexes)

    def _benchmark(self, name: str, row: str) -> None:
        path = self.folder / "benchmarks" / name.format(**stage_recipes(self.config))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tmax_rss\tcpu_time\n{row}\n")

    def report(self, name: str = "report.html") -> str:
        """Write the inputs, run the stage, return the page."""
        write_manifest(self.folder / "manifest.tsv", self.manifest)
        (self.folder / "results.json").write_text(json.dumps(self.results))
        arguments = ["--config", canonical(self.config), "--manifest", str(self.folder / "manifest.tsv")]
        (self.folder / "runs.json").write_text(json.dumps(self.runs))
        arguments += ["--results", str(self.folder / "results.json"), "--runs", str(self.folder / "runs.json")]
        (self.folder / "notes.json").write_text(json.dumps(self.notes))
        arguments += ["--notes", str(self.folder / "notes.json")]
        arguments += ["--benchmarks", str(self.folder / "benchmarks"), "--out", str(self.folder / name)]
        for stage, index in self.indexes.items():
            (self.folder / f"{stage}.json").write_text(json.dumps(index))
            arguments += ["--index", f"{stage}={self.folder / stage}.json"]
        main(arguments)
        return (self.folder / name).read_text()
