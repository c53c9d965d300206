"""Inputs that nobody would choose: awkward and truncated videos, hostile names, links, tars and checkpoints."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.weights import read_torch_file
from pipeline.config import FlowConfig, FramesConfig, StoreConfig, load
from pipeline.dataset.digests import digest_files
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.receipts import Receipt
from pipeline.media import ffmpeg
from pipeline.stores.frames import ShardWriter, check_shard
from pipeline.stores.provenance import provenance
from pipeline.stores.sharing import Sharing
from stages import flow, frames, manifest, probe

FRAMES = FramesConfig(size=(32, 24))
FLOW = FlowConfig(size=(32, 24), nscales=1, warps=1, outer_iterations=1)


def listed(path: Path, name: str) -> dict[str, Any]:
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return {"id": name, "path": str(path), "digest": digest, "bytes": path.stat().st_size}


def count_by_cli(path: Path) -> tuple[int, int]:
    """Exit status of ffmpeg's command line, which goes on after errors, and the number of frames that it decodes."""
    command = [ffmpeg.binary(), "-nostdin", "-v", "quiet", "-i", f"file:{path}", "-map", "0:V:0"]
    command += ["-fps_mode", "passthrough", "-c:v", "wrapped_avframe", "-f", "framecrc", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, sum(not line.startswith("#") for line in done.stdout.splitlines())


def through_the_stages(videos: list[dict[str, Any]], work: Path) -> Receipt:
    """The frames stage's receipt of a shard; every video is in the tar with the frames that the CLI decodes, or not."""
    probed = probe.probe_shard(videos, shard="7", store=work / "probe")
    packed = frames.pack_shard(probed, shard="7", store=work / "frames", config=FRAMES)
    assert packed.videos.keys() == {video["id"] for video in videos}
    for outcome in packed.quarantined().values():
        assert outcome.reason
        assert "\n" not in outcome.reason
    paths = {video["id"]: Path(video["path"]) for video in videos}
    samples, wrong = check_shard(work / "frames" / "7.tar")
    assert wrong == []
    assert {sample.id for sample in samples} == packed.usable().keys()
    for sample in samples:
        assert count_by_cli(paths[sample.id]) == (0, sample.metadata["frames"])
    return packed


def test_every_awkward_file_is_packed_whole_or_quarantined(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in (shared_data / "awkward").rglob("*") if path.is_file())
    packed = through_the_stages([listed(path, f"{n}. {path.name}") for n, path in enumerate(paths)], tmp_path)
    refused = {name.split(". ", 1)[1] for name in packed.quarantined()}
    assert refused == {path.name for path in paths if path.suffix in (".json", ".pt")} | {"corrupted.mp4"}


CLIPS = (
    "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi",
    "clips/kinetics/part_0.mp4",
    "awkward/torchcodec/av1_video.mkv",
    "awkward/moviepy/transparent.webm",
    "awkward/moviepy/pigs_in_a_polka.gif",
    "awkward/decord/video_0.mov",
    "awkward/fluent-ffmpeg/te[s]t_ video ' _ .flv",
)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_cut_at_ten_places_is_packed_whole_or_quarantined(name: str, shared_data: Path, tmp_path: Path) -> None:
    clip, videos = shared_data / name, []
    whole = clip.read_bytes()
    for tenth in range(10):
        path = tmp_path / f"{tenth}{clip.suffix}"
        path.write_bytes(whole[: len(whole) * tenth // 10 + tenth])
        videos.append(listed(path, f"cut {tenth}"))
    packed = through_the_stages([*videos, listed(clip, "whole")], tmp_path)
    # FLV does not say how long it is, so a cut between two packets cannot be noticed
    assert packed.usable().keys() == {"whole"} or name.endswith(".flv")


@pytest.mark.slow
def test_flow_of_every_awkward_file_has_a_field_for_each_pair(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in (shared_data / "awkward").rglob("*") if path.is_file())
    videos = [listed(path, f"{n}. {path.name}") for n, path in enumerate(paths)]
    probed = probe.probe_shard(videos, shard="7", store=tmp_path / "probe")
    solved = flow.solve_shard(probed, shard="7", store=tmp_path / "flow", config=FLOW)
    assert solved.quarantined() == probed.quarantined()
    pairs = {name: facts["frames"] for name, facts in solved.usable().items()}
    assert pairs == {name: facts["frames"] - 1 for name, facts in probed.usable().items()}


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "a\\b", "..", ".", "a\tb"])
def test_an_id_that_is_a_path_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"video")
    (tmp_path / "b.avi").write_bytes(b"video")
    table = tmp_path / "videos.csv"
    table.write_text(f"path,label,id,split1\na.avi,run,{name},train\nb.avi,run,b,test\n")
    config = load({"name": "t", "dataset": "csv", "csv": str(table), "work": str(tmp_path / "work")})
    with pytest.raises(ValueError, match=r"the video id .* has a path or a control character in it"):
        manifest.select(manifest.find(config), config)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "nowhere"])
def test_a_link_to_what_is_no_file_is_refused_and_does_not_hang(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.avi").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"a.avi is not a regular file|cannot read the video .*a.avi"):
        digest_files([tmp_path / "a.avi"], cache=tmp_path / "cache", image_fps=25.0)


def test_a_link_out_of_the_dataset_is_read_as_a_video_or_not_at_all(
    tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    """Datasets are often folders of links. Nothing of a target that is no video reaches a store or a receipt."""
    (tmp_path / "secret").write_text("the password is swordfish\n" * 100)
    clip = make_clip(tmp_path / "elsewhere" / "clip.avi", "testsrc2=size=64x48:rate=25", "-frames:v", "4")
    links = tmp_path / "dataset"
    links.mkdir()
    (links / "secret.avi").symlink_to(tmp_path / "secret")
    (links / "clip.avi").symlink_to(clip)
    packed = through_the_stages([listed(path, path.stem) for path in sorted(links.iterdir())], tmp_path / "work")
    packed.write(tmp_path / "work" / "receipt.json")
    assert packed.count() == {"done": 1, "quarantined": 1}
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file() and b"sword" in path.read_bytes()]


def sample_of(name: str, key: str, digest: str) -> bytes:
    """A tar of one sample with one frame, of which everything is right but the name if that is not the key."""
    own = provenance("frames", parameters=FRAMES.model_dump(mode="json"), digest=digest, software={})
    file = io.BytesIO()
    image = b"\xff\xd8 not really \xff\xd9"
    ShardWriter(file, folder=Path()).add([image], metadata={"id": key, "artifact_key": key, **own})
    data = file.getvalue()
    if name == key:
        return data
    info = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict")
    info.name = name
    return info.tobuf(tarfile.PAX_FORMAT) + data[512:]


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize("how", ["another name", "a member behind", "a link in front", "a link behind"])
def test_a_shared_tar_with_members_outside_is_refused(
    how: str, tmp_path: Path, make_clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=64x48:rate=25", "-frames:v", "3")
    video = listed(clip, "a")
    probed = probe.probe_shard([video], shard="7", store=tmp_path / "probe")
    key = artifact_key("frames", FRAMES, video["digest"])
    end, plain = bytes(1024), sample_of(key, key, video["digest"])
    tar = {
        "another name": sample_of("../../../outside.json", key, video["digest"]) + end,
        "a member behind": plain + member("../../../outside") + end,
        "a link in front": member("../../../outside", kind=tarfile.SYMTYPE, link="/etc/passwd") + plain + end,
        "a link behind": plain + member("outside", kind=tarfile.SYMTYPE, link="/etc/passwd") + end,
    }[how]
    place = tmp_path / "shared" / "frames" / key[:2] / f"{key}.tar"
    place.parent.mkdir(parents=True)
    place.write_bytes(tar)
    (tmp_path / "shared" / "wherewhen.json").write_text('{"format":1,"project":"wherewhen"}\n')
    sharing = Sharing.of(StoreConfig(shared=str(tmp_path / "shared")))
    packed = frames.pack_shard(probed, shard="7", store=tmp_path / "frames", config=FRAMES, sharing=sharing)
    assert packed.count() == {"done": 1}
    assert f"{place} is not used: " in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*outside*") if "pytest" not in path.name]
    with tarfile.open(tmp_path / "frames" / "7.tar") as made:
        assert all(info.isreg() and "/" not in info.name for info in made)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["a pickle", "of torch.save", "of torch.save, the old format"])
def test_a_checkpoint_with_a_pickle_in_it_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    path, content = tmp_path / "model.pt", {"format": "wherewhen", "state_dict": Trap(tmp_path / "run")}
    match kind:
        case "a pickle":
            path.write_bytes(pickle.dumps(content, protocol=2))
        case "of torch.save":
            torch.save(content, path)
        case _:
            torch.save(content, path, _use_new_zipfile_serialization=False)
    for read in (read_torch_file, load_checkpoint):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            read(path)
    assert not (tmp_path / "run").exists()
