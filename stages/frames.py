"""Stage frames: decode and resize every video of a shard once, as JPEG in one webdataset tar.

A video that did not change is copied from the tar of the run before, byte for byte; a removed one just disappears. The
new tar takes the old one's place when it is whole. What a killed job had written of one is copied too, so that only the
video that it was at is decoded again. Frames from a shared store are always copied, into it.
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
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.frames import Sample, ShardWriter, check_shard, samples
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.provenance import provenance
from pipeline.stores.publish import atomic_file, unfinished
from pipeline.stores.sharing import Sharing, add_arguments


def pack_shard(
    probed: Receipt,
    *,
    shard: str,
    store: Path,
    config: FramesConfig,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    sharing: Sharing | None = None,
) -> Receipt:
    """Bring the tar of a shard up to date. Nothing is written if it holds the right videos already.

    Args:
        probed: receipt of the probe stage on this shard.
        shard: its name.
        store: folder of the tars.
        config: geometry, rate and quality.
        on_error: what to do about an unusable video.
        sharing: the team's store; None for none.

    Raises:
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
        OSError: the shared store cannot be reached, or the disk is full.
    """
    remove_leftovers(store)
    sharing = sharing or Sharing()
    tar, videos = store / f"{shard}.tar", probed.usable()
    keys = {name: artifact_key("frames", config, facts["digest"]) for name, facts in videos.items()}
    if (held := _as_it_is(tar, keys, sharing)) is not None:
        outcomes = {s.id: Outcome(status="reused", facts=_facts(s, tar)) for s in held}
        earlier = outcomes | probed.quarantined()
        return work_through((), outcomes.__getitem__, stage="frames", shard=shard, earlier=earlier)
    with contextlib.ExitStack() as stack:
        known: dict[str, tuple[int, Sample]] = {}
        for older in (*unfinished(tar), tar):
            with contextlib.suppress(FileNotFoundError):  # another job has finished it meanwhile
                whole = _whole_samples(older, is_finished=older == tar)
                source = stack.enter_context(older.open("rb")).fileno()
                known |= {sample.artifact_key: (source, sample) for sample in whole}
        file = stack.enter_context(atomic_file(tar))
        writer = ShardWriter(file, folder=store)

        def attempt(name: str) -> Outcome:
            key = keys[name]
            if key in known:
                source, found = known[key]
                same_name = found.id == name
                sample = writer.copy(source, found) if same_name else writer.repack(source, found, video_id=name)
                sharing.give_frames(file, sample, folder=store)
                return Outcome(status="reused", facts=_facts(sample, tar))
            fetched = sharing.take_frames(writer, key, video_id=name, folder=store)
            sample = fetched or _decode(writer, name, key, videos[name], config)
            known[key] = file.fileno(), sample  # the same video under another id is not decoded again
            if fetched is None:
                sharing.give_frames(file, sample, folder=store)
            return Outcome(status="fetched" if fetched else "done", facts=_facts(sample, tar))

        receipt = work_through(
            videos, attempt, stage="frames", shard=shard, on_error=on_error, earlier=probed.quarantined()
        )
        writer.finish()
    return receipt


def _as_it_is(tar: Path, keys: dict[str, str], sharing: Sharing) -> list[Sample] | None:
    """The samples of the tar of the run before, if they are the right ones and the shared store has what it is to."""
    try:
        with tar.open("rb") as file:
            held = list(samples(tar))
            if [(sample.id, sample.artifact_key) for sample in held] != sorted(keys.items()):
                return None
            for sample in held:
                sharing.give_frames(file, sample, folder=tar.parent)
            return held
    except (FileNotFoundError, DamagedArtifact):
        return None


def _whole_samples(tar: Path, *, is_finished: bool) -> list[Sample]:
    """What can be copied from a tar of an earlier run, after a check of every byte."""
    whole, wrong = check_shard(tar)
    for error in wrong if is_finished else ():  # of an unfinished one it is known that the end is missing
        print(f"frames: {error}", file=sys.stderr, flush=True)
    return whole


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
        image_fps=facts["fps"],
    )
    every_frame = config.fps is None and config.max_seconds is None
    own = provenance(
        "frames",
        parameters=config.model_dump(mode="json", by_alias=True),
        digest=facts["digest"],
        software={"ffmpeg": ffmpeg.version()},
    )
    size = {"width": width, "height": height, "fps": config.fps or facts["fps"]}
    metadata = {"id": name, "artifact_key": key, **own, **size}
    with planned_source(path, digest=facts["digest"], image_fps=facts["fps"]):
        return writer.add(counted(images, expected=facts["frames"] if every_frame else None), metadata=metadata)


def _facts(sample: Sample, tar: Path) -> dict[str, Any]:
    """What a reader needs to know of a sample."""
    place = {"shard": tar.name, "offset": sample.offset, "length": sample.length, "key": sample.artifact_key}
    place["digest"] = sample.metadata["source_digest"]
    return place | {name: sample.metadata[name] for name in ("frames", "width", "height", "fps")}


def main(argv: list[str] | None = None) -> None:
    """Pack the frames of one shard."""
    parser = argparse.ArgumentParser(prog="python -m stages.frames", description=main.__doc__)
    parser.add_argument("--shard", type=Path, required=True, help="receipt of the probe stage; its name is the shard's")
    parser.add_argument("--store", type=Path, required=True, help="folder of the tars")
    parser.add_argument("--params", type=FramesConfig.model_validate_json, required=True, help="settings as JSON")
    parser.add_argument("--on-error", choices=("quarantine", "fail"), default="quarantine")
    parser.add_argument("--receipt", type=Path, required=True, help="receipt to write")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        pack_shard(
            Receipt.read(arguments.shard),
            shard=arguments.shard.stem,
            store=arguments.store,
            config=arguments.params,
            on_error=arguments.on_error,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        ).write(arguments.receipt)
    except (OSError, ValueError, UnusableVideo) as error:
        sys.exit(f"frames: {error}")


if __name__ == "__main__":
    main()
