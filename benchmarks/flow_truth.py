"""TV-L1 against ground truth: errors of ours and of OpenCV, and pictures of both. Run by `python -m benchmarks.flow`.

Shapes: frames (H, W) grey uint8; flow (2, H, W) in pixels, channel 0 = x; pictures (H, W, 3) RGB.
"""

from pathlib import Path
from typing import Any, NamedTuple, get_args

import cv2
import numpy as np

from pipeline.dataset.builders.flying_chairs import flying_chairs
from pipeline.optical_flow.colour import colour_wheel, flow_to_rgb
from pipeline.optical_flow.flo import read_flo
from pipeline.optical_flow.params import TVL1Params, Variant
from pipeline.optical_flow.solve import solve

Array = np.ndarray[Any, np.dtype[Any]]

DIFFERENCE_PX = 0.5  # length that gets full colour in the picture of the difference
LABEL_HEIGHT = 18


class Pair(NamedTuple):
    """Two frames and the flow between them, NaN where it is not known."""

    name: str
    prev: Array
    next: Array
    truth: Array


def pairs_with_truth(folder: Path) -> list[Pair]:
    """The pairs under a folder with `middlebury/NAME` and `flyingchairs`."""
    pairs = []
    for scene in sorted((folder / "middlebury").iterdir()):
        frames = [scene / f"frame{number}.png" for number in (10, 11)]
        pairs.append(_pair(f"Middlebury {scene.name}", frames, scene / "flow10.flo"))
    for chairs in flying_chairs(folder / "flyingchairs", split_file=None):
        pairs.append(_pair(f"FlyingChairs {chairs.id}", [chairs.prev, chairs.next], chairs.flow))
    return pairs


def accuracy(pairs: list[Pair]) -> list[dict[str, Any]]:
    """Mean endpoint errors a pair and variant, printed as a table; of OpenCV there is its CPU solver alone."""
    rows = []
    print(f"{'pair':24s} {'variant':14s} {'OpenCV CPU':>10s} {'ours':>8s} {'ratio':>7s}   mean endpoint error, px")
    for pair in pairs:
        opencv = _error(solve(pair.prev, pair.next, backend="opencv"), pair.truth)
        for variant in get_args(Variant):
            params = TVL1Params(variant=variant)
            ours = _error(solve(pair.prev, pair.next, backend="numba", params=params), pair.truth)
            print(f"{pair.name:24s} {variant:14s} {opencv:10.4f} {ours:8.4f} {ours / opencv:7.4f}")
            rows.append({"pair": pair.name, "variant": variant, "opencv_cpu_px": opencv, "ours_px": ours})
    return [row | {"ratio": row["ours_px"] / row["opencv_cpu_px"]} for row in rows]


def draw(pairs: list[Pair], folder: Path) -> list[Path]:
    """For each pair a picture of frame, truth, OpenCV's flow, ours and their difference, with the colour wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for pair in pairs:
        opencv, ours = (solve(pair.prev, pair.next, backend=backend) for backend in ("opencv", "numba"))
        largest = float(np.nanquantile(np.hypot(*pair.truth), 0.99))
        panels = {
            "first frame": np.repeat(pair.prev[..., None], 3, axis=2),
            f"truth, full colour at {largest:.1f} px": _coloured(pair.truth, largest),
            f"OpenCV, error {_error(opencv, pair.truth):.3f} px": _coloured(opencv, largest),
            f"ours, error {_error(ours, pair.truth):.3f} px": _coloured(ours, largest),
            f"ours - OpenCV, full at {DIFFERENCE_PX} px": _coloured(ours - opencv, DIFFERENCE_PX),
        }
        picture = np.hstack([_labelled(text, panel) for text, panel in panels.items()])
        _put_wheel(picture[LABEL_HEIGHT:, : pair.prev.shape[1]])
        paths.append(folder / f"{pair.name.replace(' ', '_')}.png")
        if not cv2.imwrite(str(paths[-1]), picture[..., ::-1]):
            raise SystemExit(f"cannot write the picture {paths[-1]}")
    return paths


def _pair(name: str, frames: list[Path], truth: Path) -> Pair:
    prev, next = map(_read_grey, frames)
    return Pair(name, prev, next, read_flo(truth))


def _read_grey(path: Path) -> Array:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SystemExit(f"cannot read the frame {path}")
    return image


def _error(flow: Array, truth: Array) -> float:
    return float(np.nanmean(np.hypot(*(flow - truth))))


def _coloured(flow: Array, max_px: float) -> Array:
    """Unknown flow is black."""
    picture = flow_to_rgb(np.nan_to_num(flow), max_px=max_px)
    picture[np.isnan(flow[0])] = 0
    return picture


def _labelled(text: str, picture: Array) -> Array:
    strip = np.full((LABEL_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, LABEL_HEIGHT - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def _put_wheel(picture: Array) -> None:
    """Into the lower left corner."""
    side = min(picture.shape[:2]) // 5
    wheel = colour_wheel(side)
    corner = picture[-side:, :side]
    alpha = wheel[..., 3:] / 255
    corner[:] = np.rint(alpha * wheel[..., :3] + (1 - alpha) * corner)
