"""The demo dataset: how fast it renders, what it looks like, and what a run on it shows.

    python -m benchmarks.demo [--width 160] [--height 120] [--clips N] [--pictures DIR]
    python -m benchmarks.demo --config config/demo_streams.yaml

The first measures frames a second of one core, rendering alone and with encoding, by processor time of this process and
its children, so that other programs disturb it less; ``--pictures`` writes a contact sheet.
The second reads the scores of a finished run and compares its streams over seeds. A class of the demo is a motion and a
look, each shared with one other class, so a stream that sees one of them tosses a coin between two classes. Beside
top-1 the table therefore has the share of clips whose motion is right and of those whose look is right, and how much
of the attention lies inside the action. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config, FusionConfig, load
from pipeline.demo.clips import FPS, PRESETS, Clip, list_clips
from pipeline.demo.render import actor_boxes, render_clip
from pipeline.demo.scene import CLASSES
from pipeline.learning.scores import Scores, read_scores
from pipeline.stores.publish import write_bytes
from stages.evaluate import fuse
from stages.make_demo import encode

Marks = NDArray[Any]
"""(V,) one number a test video: 1 right, 0 wrong, or a share."""

SHEET_COLUMNS = 8
SCALE = 2
ACTION_RGB, IDLE_RGB = (255, 255, 255), (110, 110, 110)


def cpu_seconds() -> float:
    """User and system time of this process and of the children that it waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def speed(clips: list[Clip]) -> dict[str, float]:
    """Frames a second of one core."""
    cv2.setNumThreads(1)
    render_clip(clips[0].scene, clips[0].acts)
    seconds = {"render": 0.0, "encode": 0.0}
    frames = 0
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            start = cpu_seconds()
            drawn = render_clip(clip.scene, clip.acts)
            middle = cpu_seconds()
            encode(drawn, Path(folder, f"{clip.name}.mp4"), fps=FPS)
            seconds["render"] += middle - start
            seconds["encode"] += cpu_seconds() - middle
            frames += len(drawn)
    both = sum(seconds.values())
    return {
        "frames": frames,
        "render_frames_per_second": round(frames / seconds["render"], 1),
        "render_and_encode_frames_per_second": round(frames / both, 1),
    }


def contact_sheet(clips: list[Clip]) -> NDArray[np.uint8]:
    """A row a clip: frames spread evenly, with the actor's box, bright inside the action: (H, W, 3) RGB."""
    return np.vstack([_row(clip) for clip in clips])


def _row(clip: Clip) -> NDArray[np.uint8]:
    frames, boxes = render_clip(clip.scene, clip.acts), actor_boxes(clip.scene, clip.acts)
    acting = np.zeros(len(frames), bool)
    for slot in clip.scene.slots:
        acting[slot.start : slot.end] = True
    tiles = []
    for t in np.linspace(0, len(frames) - 1, SHEET_COLUMNS).round().astype(int):
        tile = cv2.resize(frames[t], None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
        x0, y0, x1, y1 = (int(value) * SCALE for value in boxes[t])
        cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), ACTION_RGB if acting[t] else IDLE_RGB, 2 if acting[t] else 1)
        tiles.append(tile)
    labels = [act.label or "ambiguous" for act in clip.acts]
    cv2.putText(
        tiles[0],
        f"{'+'.join(dict.fromkeys(labels))}, {clip.scene.camera.kind}",
        (4, 12),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.38,
        (255, 255, 255),
    )
    return np.hstack(tiles)


def write_pictures(folder: Path) -> list[str]:
    """A clip of each class, and an untrimmed video of each kind, of the preset `small`."""
    clips = list_clips(PRESETS["small"], seed=0)
    trimmed = [next(c for c in clips if c.acts == (act,) and c.group == k + 1) for k, act in enumerate(CLASSES)]
    untrimmed = [clip for clip in clips if clip.group is None]
    sheet = contact_sheet([*trimmed, *untrimmed[:2]])
    found, content = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert found
    write_bytes(folder / "demo_contact_sheet.png", content.tobytes())
    return [str(folder / "demo_contact_sheet.png")]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one run, or a fusion of runs, said of the test videos of one split, against the truth."""

    top1: Marks
    motion: Marks
    look: Marks
    moving: NDArray[np.bool_]
    """(V,) whether the camera moves."""
    attention: Marks | None = None
    """(V,) share of the attention inside the action; None for a fusion."""
    uniform: Marks | None = None
    """(V,) what equal weights would put there."""


def judge(scores: Scores, truth: dict[str, Any], *, snippet: int) -> Judged:
    """Compare scores with the truth.

    Args:
        scores: of one run.
        truth: facts by video id.
        snippet: frames or flow fields a snippet; it counts as inside the action if its middle is.
    """
    facts = [truth[name] for name in scores.ids.tolist()]
    said = [scores.classes[row] for row in scores.logits.argmax(axis=1)]
    middles = scores.positions + snippet / 2
    ends = np.array([fact["actions"][0]["frames"] for fact in facts])
    inside = (middles >= ends[:, :1]) & (middles < ends[:, 1:])
    return Judged(
        **_right(said, facts),
        attention=(scores.weights * inside).sum(axis=1),
        uniform=inside.mean(axis=1),
    )


def _right(said: list[str], facts: list[dict[str, Any]]) -> dict[str, Any]:
    acts = {act.label: act for act in CLASSES}
    true = [fact["actions"][0] for fact in facts]
    return {
        "top1": np.array([name == action["label"] for name, action in zip(said, true, strict=True)]),
        "motion": np.array([acts[name].motion == action["motion"] for name, action in zip(said, true, strict=True)]),
        "look": np.array([acts[name].look == action["look"] for name, action in zip(said, true, strict=True)]),
        "moving": np.array([fact["camera"] != "static" for fact in facts]),
    }


def judge_run(config: Config, work: Path) -> dict[str, list[Judged]]:
    """Every stream of a finished run, and its fusions, each once a split and seed.

    Fusions are those that the configuration names, where all of their streams ran, or all that its streams with a
    weight can make.

    Raises:
        ValueError: a score file is missing.
    """
    videos = json.loads((work / "dataset/truth.json").read_text())["videos"]
    truth = {Path(path).stem: fact for path, fact in videos.items()}
    runs = [run for run in json.loads((work / "plan/runs.json").read_text()) if run["experiment"] != "baseline"]
    judged: dict[str, list[Judged]] = defaultdict(list)
    groups: dict[tuple[str, int], dict[str, Scores]] = defaultdict(dict)
    for run in runs:
        name, scores = run["experiment"], read_scores(Path(run["scores"]))
        judged[name].append(judge(scores, truth, snippet=config.experiments[name].sampling.snippet))
        if run["weight"] > 0:
            groups[run["split"], run["seed"]][name] = scores
    for streams in groups.values():
        for label, fusion in _fusions(config, list(streams)).items():
            chosen, on = [streams[name] for name in fusion.experiments], fusion.fuse_on or config.fuse_on
            ids, total, _ = fuse(chosen, weights=list(fusion.experiments.values()), on=on)
            said = chosen[0].classes[total.argmax(axis=1)].tolist()
            judged[label].append(Judged(**_right(said, [truth[name] for name in ids.tolist()])))
    return judged


def _fusions(config: Config, streams: list[str]) -> dict[str, FusionConfig]:
    if config.fusions:
        return {name: fusion for name, fusion in config.fusions.items() if fusion.experiments.keys() <= set(streams)}
    several = [names for size in range(2, len(streams) + 1) for names in itertools.combinations(streams, size)]
    return {
        " + ".join(names): FusionConfig(experiments={name: config.experiments[name].weight for name in names})
        for names in several
    }


def table(judged: dict[str, list[Judged]]) -> dict[str, dict[str, float | None]]:
    """Means over the runs of each stream; ``top1_std`` is over the runs."""
    rows: dict[str, dict[str, float | None]] = {}
    for name, runs in judged.items():
        top1 = [float(run.top1.mean()) for run in runs]
        rows[name] = {
            "runs": len(runs),
            "top1": float(np.mean(top1)),
            "top1_std": float(np.std(top1, ddof=1)) if len(runs) > 1 else None,
            "motion": _mean([run.motion for run in runs]),
            "motion_moving_camera": _mean([run.motion[run.moving] for run in runs]),
            "motion_static_camera": _mean([run.motion[~run.moving] for run in runs]),
            "look": _mean([run.look for run in runs]),
            "attention": _mean([run.attention for run in runs if run.attention is not None]),
            "uniform": _mean([run.uniform for run in runs if run.uniform is not None]),
        }
    return rows


def _mean(parts: list[Marks]) -> float | None:
    return float(np.mean([part.mean() for part in parts])) if parts else None


def show(rows: dict[str, dict[str, float | None]]) -> None:
    """Print the table in per cent."""
    columns = [column for column in next(iter(rows.values())) if column != "runs"]
    print("".join([f"{'stream':24}", *(f"{column.replace('_', ' '):>22}" for column in columns)]))
    for name, row in rows.items():
        cells = ("" if row[column] is None else f"{100 * float(row[column] or 0):.1f}" for column in columns)
        print("".join([f"{name:24}", *(f"{cell:>22}" for cell in cells)]))


def main(argv: list[str] | None = None) -> None:
    """Measure the renderer, or read a run; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=main.__doc__)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--height", type=int, default=120)
    parser.add_argument("--clips", type=int, default=24, help="how many to render")
    parser.add_argument("--pictures", type=Path, help="folder for a contact sheet")
    parser.add_argument("--config", type=Path, help="compare the streams of this configuration's finished run instead")
    parser.add_argument("--work", type=Path, help="work folder of that run, if not the configuration's")
    arguments = parser.parse_args(argv)
    if arguments.config:
        config = load(arguments.config)
        rows = table(judge_run(config, arguments.work or config.work_dir))
        show(rows)
        print(json.dumps({"benchmark": "demo", "streams": rows}, sort_keys=True))
        return
    size = replace(PRESETS["full"], size_px=(arguments.width, arguments.height))
    clips = [clip for clip in list_clips(size, seed=0) if clip.group is not None][:: size.groups][: arguments.clips]
    result: dict[str, Any] = {"benchmark": "demo", "width": arguments.width, "height": arguments.height, **speed(clips)}
    if arguments.pictures:
        result["pictures"] = write_pictures(arguments.pictures)
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
