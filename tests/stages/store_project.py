"""A small dataset through the stages to its stores, without Snakemake: eight videos in two buckets, one unusable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, FlowConfig, FramesConfig, load
from pipeline.dataset.plan import stage_recipes, write_plan
from stages import flow, frames, manifest, probe
from stages.index import index

Store = Callable[..., tuple[int, str, str]]
"""The fixture that runs a command."""
CONFIGURED = ("--configfile", "config.yaml")

CONFIG: dict[str, Any] = {
    "name": "small",
    "dataset": "class_folders",
    "videos": "videos",
    "work": "work",
    "shards": 2,
    "frames": {"size": [48, 36]},
    "flow": {"size": [32, 24], "nscales": 2, "warps": 1, "outer_iterations": 2},
    "store": {"shared": "shared", "mode": "read-write"},
}
USABLE = 7
ARRAYS = USABLE - 1
"""Two of them have equal bytes."""
TARS = 2
BROKEN = "run--run_broken"


def make(folder: Path, make_clip: Callable[..., Path]) -> None:
    """Render the videos, write ``config.yaml`` and run the stages once."""
    folder.mkdir(parents=True)
    for i in range(3):
        for label, start in (("run", 0.04), ("jump", 0.4)):
            source = f"testsrc2=size=64x48:rate=25,trim=start={start + 0.2 * i}:duration=2,setpts=PTS-STARTPTS"
            make_clip(folder / "videos" / label / f"{label}_{i}.avi", source, "-frames:v", str(5 + i))
    shutil.copy(folder / "videos/jump/jump_0.avi", folder / "videos/run/run_twin.avi")
    (folder / "videos/run/run_broken.avi").write_bytes(b"no video")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    here = Path.cwd()
    os.chdir(folder)
    try:
        run(load(Path("config.yaml")))
    finally:
        os.chdir(here)


def run(config: Config) -> dict[str, dict[str, int]]:
    """Plan, and run the preprocessing stages on every shard; gives the number of videos by stage and status."""
    recipes, plan = stage_recipes(config), config.work_dir / "plan"
    found = manifest.select(manifest.find(config), config)
    found = manifest.digest(found, cache=plan / "digests.sqlite", image_fps=config.image_fps)
    shards = write_plan(found, shards=config.shards, folder=plan)
    counts: dict[str, dict[str, int]] = {"frames": {}, "flow": {}}
    done: dict[str, list[Any]] = {"frames": [], "flow": []}
    for shard in shards:
        rows = json.loads((plan / "media" / f"{shard}.json").read_text())
        probed = probe.probe_shard(rows, shard=shard, store=config.work_dir / "stores" / "probe")
        packed = frames.pack_shard(
            probed, shard=shard, store=config.store_folder("frames", recipes["frames"]), config=config.frames
        )
        solved = flow.solve_shard(probed, shard=shard, store=config.store_folder("flow", ""), config=config.flow)
        for receipt in (packed, solved):
            receipt.write(config.work_dir / "receipts" / f"{receipt.stage}-{recipes[receipt.stage]}" / f"{shard}.json")
            done[receipt.stage].append(receipt)
            for status, count in receipt.count().items():
                counts[receipt.stage][status] = counts[receipt.stage].get(status, 0) + count
    for stage, receipts in done.items():
        section: FlowConfig | FramesConfig = getattr(config, stage)
        parameters = json.loads(section.model_dump_json(by_alias=True))
        store = str(config.store_folder(stage, recipes[stage]))
        file = config.work_dir / "index" / f"{stage}-{recipes[stage]}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(index(receipts, stage=stage, store=store, parameters=parameters)))
    return counts


def files(folder: Path) -> dict[str, bytes]:
    """Every byte in a folder, by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def arrays(folder: Path = Path("work/stores")) -> list[Path]:
    return sorted((folder / "flow").glob("??/*"))


def tars(folder: Path = Path("work/stores")) -> list[Path]:
    return sorted(folder.glob("frames-*/*.tar"))


def age(folder: Path, *, seconds: float) -> None:
    """Let everything in a folder look as if it was last written to some time ago."""
    for path in (folder, *folder.rglob("*")):
        moment = path.stat().st_mtime - seconds
        os.utime(path, (moment, moment))


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a file, in the middle or at a place."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def configure(**settings: object) -> None:
    """Change the configuration of the project in the current folder."""
    path = Path("config.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))


def process(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "stages.store", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def rows(out: str) -> dict[str, list[int]]:
    """Numbers of a table by the first word of the line."""
    table = [line.split() for line in out.splitlines()[1:] if line.startswith("  ")]
    return {name: [int(value) for value in values] for name, *values in table}
