"""A whole small project to run: a copy of the checkout, eight tiny videos, a configuration, and a way to count.

Jobs are counted from Snakemake's own table, videos from the receipts that a run wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import psutil
import yaml

CODE = ("Snakefile", "pipeline", "models", "stages", "profiles", "config")
CLASSES = ("bars", "fractal")
STAGES = ("probe", "frames", "flow")

OPTIM = {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "lr": 0.002}
CONFIG = {
    "name": "small",
    "dataset": "csv",
    "csv": "videos.csv",
    "work": "work",
    "shards": 2,
    "max_quarantined": 0.5,
    "frames": {"size": [40, 32]},
    "flow": {"size": [40, 32], "warps": 2},
    "experiments": {
        "rgb": {
            "modality": "frames",
            "sampling": {"segments": 2, "test_segments": 3, "input_size": 32},
            "optim": OPTIM,
        },
        "flow": {
            "modality": "flow",
            "sampling": {"segments": 2, "snippet": 2, "test_segments": 3, "input_size": 32},
            "optim": OPTIM,
        },
    },
}


def render(path: Path, label: str, *, frames: int = 6, start: float = 0.0) -> None:
    """A tiny real video: moving bars, or a zoom into a fractal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = {
        "bars": f"testsrc2=size=48x40:rate=25,trim=start={start + 0.04}:duration=2,setpts=PTS-STARTPTS",
        "fractal": f"mandelbrot=size=48x40:rate=25:start_scale={1.0 + start}",
    }[label]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        "-f",
        "lavfi",
        "-i",
        source,
        "-frames:v",
        str(frames),
    ]
    subprocess.run([*command, "-c:v", "mpeg4", "-q:v", "3", "-bitexact", str(path)], check=True)


@dataclass(frozen=True)
class Run:
    """What one call of Snakemake did."""

    returncode: int
    output: str
    jobs: Counter[str]
    """Number of jobs by rule, without the target rule itself."""
    computed: Counter[str]
    """Number of videos computed by stage."""
    reused: Counter[str]


@dataclass(frozen=True)
class Project:
    """A folder with code, videos and a configuration."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def command(self, target: str, *arguments: str) -> list[str]:
        settings = ["--cores", "2", "--configfile", "config.yaml", "--nocolor"]
        return [sys.executable, "-m", "snakemake", target, *settings, *arguments]

    def run(self, *arguments: str, target: str = "preprocess_all", check: bool = True) -> Run:
        """Run Snakemake to the end and count what it did."""
        start = time.time_ns()
        done = subprocess.run(
            self.command(target, *arguments), cwd=self.folder, capture_output=True, text=True, env=environment()
        )
        output = done.stdout + done.stderr
        assert not check or done.returncode == 0, output
        fresh = [
            json.loads(path.read_text())
            for path in self.work.glob("receipts/*/*.json")
            if path.stat().st_mtime_ns >= start
        ]
        return Run(done.returncode, output, job_table(output), outcomes(fresh, "done"), outcomes(fresh, "reused"))

    def rows(self) -> list[str]:
        return (self.folder / "videos.csv").read_text().splitlines(keepends=True)

    def write_rows(self, rows: list[str]) -> None:
        (self.folder / "videos.csv").write_text("".join(rows))

    def stores(self) -> dict[str, bytes]:
        """Every byte of every store, by path."""
        root = self.work / "stores"
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    def copy(self, folder: Path) -> Project:
        """The same project elsewhere, with all modification times."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)


def environment() -> dict[str, str]:
    """The tests' own environment, with one thread a job so that results do not depend on the machine's load."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def job_table(output: str) -> Counter[str]:
    """Numbers of jobs by rule from Snakemake's "Job stats" table; the target rules are not work."""
    lines = re.findall(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", output, flags=re.DOTALL)[:1]
    pairs = re.findall(r"^(\S+) +(\d+)$", lines[0] if lines else "", flags=re.MULTILINE)
    return Counter({rule: int(count) for rule, count in pairs if rule not in ("train_all", "preprocess_all")})


def outcomes(receipts: list[dict], status: str) -> Counter[str]:  # type: ignore[type-arg]
    """Number of videos of one status by stage, stages without any left out."""
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts[receipt["stage"]] += sum(video["status"] == status for video in receipt["videos"].values())
    return +counts


def make_project(folder: Path, root: Path) -> Project:
    """Copy the code and render two classes of four videos."""
    folder.mkdir()
    unfinished = shutil.ignore_patterns("*.pyc.*", "*.tmp.*")  # compiled code that another process is writing
    for name in CODE:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=unfinished)
        else:
            shutil.copy2(source, folder / name)
    rows = ["path,label,split1\n"]
    for label in CLASSES:
        for i in range(4):
            render(folder / f"videos/{label}{i}.avi", label, start=0.2 * i)
            rows.append(f"videos/{label}{i}.avi,{label},{'test' if i == 3 else 'train'}\n")
    project = Project(folder)
    project.write_rows(rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return project


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to Snakemake and everything it started."""

    def family() -> list[psutil.Process]:
        try:
            return [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        except psutil.NoSuchProcess:
            return []

    for act in (psutil.Process.suspend, psutil.Process.kill):  # suspended first, so that none starts another meanwhile
        for member in family():
            with contextlib.suppress(psutil.NoSuchProcess):
                act(member)
    process.wait()
