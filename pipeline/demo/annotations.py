"""The demo's truth in the files that three datasets are published with, so that their builders read it.

    annotations/ucf101/        classInd.txt, trainlist0k.txt, testlist0k.txt (lines end in CRLF, as the official ones)
    annotations/thumos14/      detclasslist.txt, annotation_{val,test}/<Class>_{val,test}.txt, Ambiguous_*.txt, and
                               UCF-101's first lists, for training on trimmed clips
    annotations/ucf101_24/     finalAnnots.mat, trainlist01.txt, testlist01.txt (names without extension)

and as one `truth.json`, which has all of it and what no format of theirs has: every frame's box, also outside the
action, and the camera. Frames are counted from 0 and intervals are half-open there; the formats' own rules hold in
their files.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from pipeline.demo.clips import FPS, SPLITS, Clip
from pipeline.demo.render import actor_boxes
from pipeline.demo.scene import CLASSES

LABELS = sorted(str(act.label) for act in CLASSES)
THUMOS14_PARTS = {"validation": "val", "test": "test"}
MATLAB_HEADER = b"MATLAB 5.0 MAT-file, wherewhen demo".ljust(116)  # scipy would write the time here


def annotation_files(clips: Sequence[Clip]) -> dict[str, bytes]:
    """Content of every annotation file of the dataset, by its path in the dataset's folder."""
    trimmed = [clip for clip in clips if clip.group is not None]
    untrimmed = [clip for clip in clips if clip.group is None]
    lists = _ucf101(trimmed)
    intervals = _thumos14(untrimmed) | {name: lists[name] for name in ("trainlist01.txt", "testlist01.txt")}
    return {
        **{f"annotations/ucf101/{name}": text.encode() for name, text in lists.items()},
        **{f"annotations/thumos14/{name}": text.encode() for name, text in intervals.items()},
        **{f"annotations/ucf101_24/{name}": content for name, content in _ucf101_24(trimmed).items()},
    }


def truth(clips: Sequence[Clip]) -> str:
    """The content of `truth.json`."""
    facts = {"fps": FPS, "videos": {clip.path: clip_truth(clip) for clip in clips}}
    return json.dumps(facts, sort_keys=True) + "\n"


def clip_truth(clip: Clip) -> dict[str, Any]:
    """What is true of a clip; docs are in data_manifests/demo/README.md."""
    scene = clip.scene
    homographies = scene.camera.homographies(scene.num_frames, size_px=scene.size_px)
    return {
        "group": clip.group,
        "splits": clip.splits,
        "num_frames": scene.num_frames,
        "size_px": list(scene.size_px),
        "camera": scene.camera.kind,
        "actions": [
            {
                "label": act.label,
                "motion": act.motion,
                "look": act.look,
                "frames": [slot.start, slot.end],
                "seconds": [slot.start / FPS, slot.end / FPS],
            }
            for slot, act in zip(scene.slots, clip.acts, strict=True)
        ],
        "boxes_px": actor_boxes(scene, clip.acts).tolist(),
        "homographies": (homographies.round(9) + 0.0).tolist(),  # 0.0: there is no -0 in the file
    }


def _file_name(clip: Clip) -> str:
    """`Class/v_Class_g01_c01`, as UCF-101's lists have it, without the extension."""
    return clip.path.partition("/")[2].removesuffix(".mp4")


def _ucf101(clips: Sequence[Clip]) -> dict[str, str]:
    number = {label: n for n, label in enumerate(LABELS, 1)}
    files = {"classInd.txt": [f"{n} {label}" for label, n in number.items()]}
    for k in range(1, SPLITS + 1):
        for part in ("train", "test"):
            chosen = [clip for clip in clips if clip.splits[f"split{k}"] == part]
            # Numbers stand in the lists to train on alone.
            files[f"{part}list{k:02d}.txt"] = [
                f"{_file_name(clip)}.mp4" + (f" {number[str(clip.acts[0].label)]}" if part == "train" else "")
                for clip in sorted(chosen, key=_file_name)
            ]
    return {name: "".join(f"{line}\r\n" for line in lines) for name, lines in files.items()}


def _thumos14(clips: Sequence[Clip]) -> dict[str, str]:
    files = {"detclasslist.txt": "".join(f"{n} {label}\n" for n, label in enumerate(LABELS, 1))}
    for part, short in THUMOS14_PARTS.items():
        for label in (*LABELS, None):
            files[f"annotation_{short}/{label or 'Ambiguous'}_{short}.txt"] = "".join(
                f"{clip.name}  {slot.start / FPS:.2f} {slot.end / FPS:.2f}\n"
                for clip in clips
                if f"/{part}/" in clip.path
                for slot, act in zip(clip.scene.slots, clip.acts, strict=True)
                if act.label == label
            )
    return files


def _ucf101_24(clips: Sequence[Clip]) -> dict[str, bytes]:
    fields = [("num_imgs", object), ("name", object), ("tubes", object)]
    annot = np.zeros((1, len(clips)), dtype=fields)
    for place, clip in enumerate(clips):
        annot[0, place] = (_packed([[clip.scene.num_frames]]), _file_name(clip), _tubes(clip))
    content = io.BytesIO()
    scipy.io.savemat(content, {"annot": annot}, do_compression=True)
    files = {"finalAnnots.mat": MATLAB_HEADER + content.getvalue()[len(MATLAB_HEADER) :]}
    for part in ("train", "test"):
        names = sorted(_file_name(clip) for clip in clips if clip.splits["split1"] == part)
        files[f"{part}list01.txt"] = "".join(f"{name}\n" for name in names).encode()
    return files


def _tubes(clip: Clip) -> NDArray[Any]:
    """The actor's tube in each action: class and first and last frame from 1, boxes as x, y, width, height."""
    boxes = actor_boxes(clip.scene, clip.acts)
    boxes[:, 2:] -= boxes[:, :2]
    fields = [("ef", object), ("sf", object), ("class", object), ("boxes", object)]
    tubes = np.zeros((1, len(clip.acts)), dtype=fields)
    for place, (slot, act) in enumerate(zip(clip.scene.slots, clip.acts, strict=True)):
        number = LABELS.index(str(act.label)) + 1
        rows = boxes[slot.start : slot.end]
        tubes[0, place] = (_packed([[slot.end]]), _packed([[slot.start + 1]]), _packed([[number]]), _packed(rows))
    return tubes


def _packed(values: Any) -> NDArray[Any]:
    """Whole numbers in the smallest unsigned type that holds them, as MATLAB's files have it."""
    numbers = np.asarray(values)
    return numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)
