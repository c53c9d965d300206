"""What others do to load training videos, beside which `benchmarks.loader` measures ours; written from their manuals.

All give the same thing, (N, C, S, S) uint8 of a video, from the same draws of frames and crop, in one thread:

    torchcodec    random access into the source file, a new decoder for each video, as training opens them
    jpeg_frames   a folder of JPEG files, quality 95, as denseflow writes and mmaction2's RawFrameDecode reads them:
                  Resize (-1, 256), MultiScaleCrop, Resize 224, Flip, FormatShape, without its normalisation
    jpeg_flow     the same of two grey JPEG files a field
    webdataset    our tar through ``WebDataset(...).decode("rgb8")``, which decodes every frame, before any is chosen
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.learning import sampling, transforms

HEIGHT, WIDTH, SIZE = 256, 340, 224
SCALES = (1.0, 0.875, 0.75, 0.66)
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Draw:
    """What is looked at of one video."""

    video: int
    indices: list[int]
    view: transforms.View


def draws(lengths: Sequence[int], *, segments: int, snippet: int, seed: int) -> list[Draw]:
    """One for each video, as TSN draws them."""
    rng, found = np.random.default_rng(seed), []
    for video, frames in enumerate(lengths):
        positions = sampling.train_positions(frames, snippet=snippet, segments=segments, rng=rng)
        indices = sampling.snippet_indices(positions, snippet, frames).ravel().tolist()
        view = transforms.draw_view(HEIGHT, WIDTH, size=SIZE, scales=SCALES, flip=True, rng=rng)
        found.append(Draw(video, indices, view))
    return found


def treated(images: Sequence[Image], view: transforms.View) -> list[Image]:
    """Short side 256, crop, 224 x 224, mirrored: every image for itself, one step after the other."""
    images = [cv2.resize(image, (WIDTH, HEIGHT)) for image in images]  # type: ignore[misc]
    images = [image[view.y : view.y + view.height, view.x : view.x + view.width] for image in images]
    images = [cv2.resize(image, (SIZE, SIZE)) for image in images]  # type: ignore[misc]
    if view.mirrored:
        for image in images:
            cv2.flip(image, 1, image)
    return list(images)


def batch_of(videos: Sequence[NDArray[np.uint8]]) -> Tensor:
    """(B, N, C, S, S) of what is (N, S, S, C) each."""
    return torch.stack([torch.from_numpy(np.ascontiguousarray(video.transpose(0, 3, 1, 2))) for video in videos])


def write_jpeg_frames(folder: Path, frames: Iterator[Image]) -> None:
    """RGB frames as ``img_00001.jpg`` and so on."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        cv2.imwrite(f"{folder}/img_{number:05d}.jpg", frame[..., ::-1], QUALITY)


def write_jpeg_flow(folder: Path, fields: NDArray[np.uint8]) -> None:
    """Quantised fields as ``flow_x_00001.jpg``, ``flow_y_00001.jpg`` and so on."""
    folder.mkdir(parents=True)
    for number, field in enumerate(fields, 1):
        for component, plane in zip("xy", field, strict=True):
            cv2.imwrite(f"{folder}/flow_{component}_{number:05d}.jpg", plane, QUALITY)


def jpeg_frames(folders: Sequence[Path], drawn: Sequence[Draw]) -> Tensor:
    """(B, N, 3, S, S)."""
    videos = []
    for draw in drawn:
        images = []
        for index in draw.indices:
            image = _decoded(folders[draw.video] / f"img_{index + 1:05d}.jpg", cv2.IMREAD_COLOR)
            images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image))
        videos.append(np.stack(treated(images, draw.view)))  # type: ignore[arg-type]
    return batch_of(videos)


def jpeg_flow(folders: Sequence[Path], drawn: Sequence[Draw], *, snippet: int) -> Tensor:
    """(B, N, 2n, S, S)."""
    videos = []
    for draw in drawn:
        names = [f"flow_{component}_{index + 1:05d}.jpg" for index in draw.indices for component in "xy"]
        planes = [_decoded(folders[draw.video] / name, cv2.IMREAD_GRAYSCALE) for name in names]
        planes = treated(planes, draw.view)
        if draw.view.mirrored:
            for x in planes[::2]:
                np.subtract(255, x, out=x)
        videos.append(torch.from_numpy(np.stack(planes).reshape(-1, 2 * snippet, SIZE, SIZE)))
    return torch.stack(videos)


def _decoded(path: Path, flag: int) -> Image:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)  # type: ignore[return-value]


def why_not(peer: str) -> str | None:
    """Why a peer cannot be measured here; None if it can."""
    try:
        match peer:
            case "torchcodec":
                import torchcodec.decoders  # noqa: F401
            case "webdataset":
                import PIL  # noqa: F401
                import webdataset  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"not measured: {peer} cannot be used ({' '.join(str(error).split())[:120]})"
    return None


def torchcodec(files: Sequence[Path], drawn: Sequence[Draw]) -> Tensor:
    """(B, N, 3, S, S) out of source files."""
    from torchcodec.decoders import VideoDecoder

    videos = []
    for draw in drawn:
        decoder = VideoDecoder(files[draw.video], dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
        last = (decoder.metadata.num_frames or 1) - 1
        frames = decoder.get_frames_at(indices=[min(index, last) for index in draw.indices]).data.numpy()
        videos.append(np.stack(treated(list(frames), draw.view)))
    return batch_of(videos)


def webdataset(tars: Sequence[Path], drawn: Sequence[Draw]) -> Tensor:
    """(B, N, 3, S, S) out of our tars, from first to last."""
    import webdataset as library

    samples: Any = library.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode("rgb8")
    videos = []
    for sample, draw in zip(samples, drawn, strict=True):
        images = [sample[f"{index:06d}.jpg"] for index in draw.indices]
        videos.append(np.stack(treated(images, draw.view)))
    return batch_of(videos)
