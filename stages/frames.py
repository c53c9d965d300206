"""Stage frames: decode and resize every video of a shard once, as JPEG in one webdataset tar.

A video that did not change is copied from the tar of the run before, byte for byte; a removed one just disappears. The
new tar takes the old one's place when it is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

from pipeline.config import FramesConfig
from pipeline.dataset.digests import planned_source
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.receipts import Outcome, Receipt, work_through
from pipeline.media import ffmpeg
from pipeline.media.decode import counted, jpeg_frames, target_size
from pipeline.media.errors import UnusableVideo
from pipeline.stores.frames import Sample, ShardWriter, samples
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.publish import atomic_file


def pack_shard(
    probed: Receipt,
    *,
    shard: str,
    store: Path,
    config: FramesConfig,
    on_error: Literal["quarantine", "fail"] = "quarantine",
) -> Receipt:
    """Bring the tar of a shard up to date. Nothing is written if it holds the right videos already.

    Args:
        probed: receipt of the probe stage on this shard.
        shard: its name.
        store: folder of the tars.
        config: geometry, rate and quality.
        on_error: what to do about an unusable video.

    Raises:
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
    """
    remove_leftovers(store)
    tar, videos = store / f"{shard}.tar", probed.usable()
    keys = {name: artifact_key("frames", config, facts["digest"]) for name, facts in videos.items()}
    old = _samples_of(tar)
    if tar.exists() and [(sample.id, sample.artifact_key) for sample in old] == sorted(keys.items()):
        outcomes = {s.id: Outcome(status="reused", facts=_facts(s, tar)) for s in old}
        earlier = outcomes | probed.quarantined()
        return work_through((), outcomes.__getitem__, stage="frames", shard=shard, earlier=earlier)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(tar.open("rb")).fileno() if old else -1
        file = stack.enter_context(atomic_file(tar))
        known = {sample.artifact_key: (source, sample) for sample in old}
        writer = ShardWriter(file, folder=store)

        def attempt(name: str) -> Outcome:
            key = keys[name]
            if key in known:
                source, found = known[key]
                repack = writer.repack(source, found, video_id=name) if found.id != name else None
                return Outcome(status="reused", facts=_facts(repack or writer.copy(source, found), tar))
            sample = _decode(writer, name, key, videos[name], config)
            known[key] = file.fileno(), sample  # the same video under another id is not decoded again
            return Outcome(status="done", facts=_facts(sample, tar))

        receipt = work_through(
            videos, attempt, stage="frames", shard=shard, on_error=on_error, earlier=probed.quarantined()
        )
        writer.finish()
    return receipt


def _samples_of(tar: Path) -> list[Sample]:
    """What the tar of the run before holds; nothing if there is none, or if it is damaged."""
    try:
        return list(samples(tar))
    except FileNotFoundError:
        return []
    except ValueError as error:
        print(f"frames: {error}; its videos are decoded again", file=sys.stderr)
        return []


def _decode(writer: ShardWriter, name: str, key: str, facts: dict[str, Any], config: FramesConfig) -> Sample:
    width, height = target_size(facts["width"], facts["height"], size=config.size, short_side=config.short_side)
    path = Path(facts["path"])
    images = jpeg_frames(
        path,
        width=width,
        height=height,
        fps=config.fps,
        max_seconds=config.max_seconds,
        qscale=config.qscale,
    )
    every_frame = config.fps is None and config.max_seconds is None
    metadata = {
        "id": name,
        "artifact_key": key,
        "digest": facts["digest"],
        "parameters": config.model_dump(mode="json", by_alias=True),
        "width": width,
        "height": height,
        "fps": config.fps or facts["fps"],
        "ffmpeg": ffmpeg.version(),
    }
    with planned_source(path, digest=facts["digest"]):
        return writer.add(counted(images, expected=facts["frames"] if every_frame else None), metadata=metadata)


def _facts(sample: Sample, tar: Path) -> dict[str, Any]:
    """What a reader needs to know of a sample."""
    place = {"shard": tar.name, "offset": sample.offset, "length": sample.length, "key": sample.artifact_key}
    return place | {name: sample.metadata[name] for name in ("frames", "width", "height", "fps")}


def main(argv: list[str] | None = None) -> None:
    """Pack the frames of one shard."""
    parser = argparse.ArgumentParser(prog="python -m stages.frames", description=main.__doc__)
    parser.add_argument("--shard", type=Path, required=True, help="receipt of the probe stage; its name is the shard's")
    parser.add_argument("--store", type=Path, required=True, help="folder of the tars")
    parser.add_argument("--params", type=FramesConfig.model_validate_json, required=True, help="settings as JSON")
    parser.add_argument("--on-error", choices=("quarantine", "fail"), default="quarantine")
    parser.add_argument("--receipt", type=Path, required=True, help="receipt to write")
    arguments = parser.parse_args(argv)
    try:
        pack_shard(
            Receipt.read(arguments.shard),
            shard=arguments.shard.stem,
            store=arguments.store,
            config=arguments.params,
            on_error=arguments.on_error,
        ).write(arguments.receipt)
    except (OSError, ValueError, UnusableVideo) as error:
        sys.exit(f"frames: {error}")


if __name__ == "__main__":
    main()
