"""Configuration, plan, recipes and paths; the rules below only put them together."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

# This checkout's code, here and in the jobs, whatever else is installed.
sys.path.insert(0, workflow.basedir)
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")])
)

if not os.access(
    workflow.basedir, os.W_OK
):  # numba keeps compiled code beside the source where it can
    os.environ.setdefault("NUMBA_CACHE_DIR", os.path.abspath(".numba"))

from pipeline.config import canonical, load
from pipeline.dataset.keys import VERSIONS
from pipeline.dataset.plan import (
    baseline_recipe,
    predict_recipe,
    read_shards,
    stage_recipes,
    train_recipe,
    predicting_part,
    training_part,
    write_plan,
)
from pipeline.lock import hold
from pipeline.stores.publish import write_if_changed
from stages.manifest import demo_folder, digest, find


def prepare(checked):
    """Bring the plan up to date and return its shards; only the main process writes, jobs read.

    The lock is taken before anything is written, so that no second run, not even a dry one, changes the plan under a
    first.
    """
    plan = checked.work_dir / "plan"
    if not workflow.is_main_process:
        return read_shards(plan)
    lock = checked.work_dir / ".lock"
    if checked.dataset == "demo":
        hold(lock)
        make_demo(checked)
    found = find(checked)
    hold(lock)
    found = digest(found, cache=plan / "digests.sqlite")
    return write_plan(found, shards=checked.shards, folder=plan)


def make_demo(checked):
    """Render the demo's videos, or see that they are there. Before planning, because the plan lists files."""
    command = [
        sys.executable,
        "-m",
        "stages.make_demo",
        "--out",
        str(demo_folder(checked)),
    ]
    command += ["--preset", checked.demo.preset, "--seed", str(checked.demo.seed)]
    if checked.demo.videos_per_class:
        command += ["--videos-per-class", str(checked.demo.videos_per_class)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise ValueError(
            "the demo dataset could not be rendered; the lines above say why"
        )


try:
    CONFIG = load(config)
    RECIPES = stage_recipes(CONFIG)
    TRAIN = {
        name: train_recipe(
            experiment, precision=CONFIG.compute.precision, stages=RECIPES
        )
        for name, experiment in CONFIG.experiments.items()
    }
    SHARDS = prepare(CONFIG)
except (OSError, ValueError) as error:
    sys.exit(f"wherewhen: {error}")

WORK = CONFIG.work_dir
PLAN = WORK / "plan"
PYTHON = shlex.quote(sys.executable)
COMPUTE = canonical(CONFIG.compute)
TRAIN_THREADS = CONFIG.compute.devices * (
    CONFIG.compute.threads + CONFIG.compute.workers
)
# A GPU is asked for where there is one here, or where the configuration says that jobs will find one.
GPU = CONFIG.compute.accelerator == "cuda" or (
    CONFIG.compute.accelerator == "auto" and Path("/dev/nvidia0").exists()
)
STORES = CONFIG.stores


def on_gpu(section):
    """1 if jobs of this flow section solve on a GPU. Several share one, because decoding takes a core for each."""
    return int(GPU and section.backend in ("auto", "torch", "triton"))


MANIFEST = f"{WORK}/manifest-{RECIPES['probe']}.tsv"
RESULTS = f"{WORK}/results.json"
REPORT = f"{WORK}/report.html"


def receipts_folder(stage):
    return f"{WORK}/receipts/{stage}-{RECIPES[stage]}"


def receipts(stage):
    return [f"{receipts_folder(stage)}/{shard}.json" for shard in SHARDS]


def store(stage):
    return (
        f"{WORK}/stores/flow"
        if stage in ("flow", "warped_flow")
        else f"{WORK}/stores/{stage}-{RECIPES[stage]}"
    )


def index_file(stage):
    return f"{WORK}/index/{stage}-{RECIPES[stage]}.json"


def run_folder(experiment):
    return f"{WORK}/runs/{experiment}-{TRAIN[experiment]}/{{split}}-seed{{seed}}"


def scores_file(experiment):
    recipe = predict_recipe(CONFIG.experiments[experiment], train=TRAIN[experiment])
    return f"{run_folder(experiment)}/scores-{recipe}.npz"


BASELINE = f"{WORK}/runs/baseline-{baseline_recipe(RECIPES)}/{{split}}/scores.npz"


def runs():
    """Every score file of the configuration, as evaluating and reporting read them."""
    found = [
        {
            "experiment": name,
            "split": split,
            "seed": seed,
            "weight": experiment.weight,
            "recipe": TRAIN[name],
            "folder": run_folder(name).format(split=split, seed=seed),
            "scores": scores_file(name).format(split=split, seed=seed),
        }
        for name, experiment in CONFIG.experiments.items()
        for split in CONFIG.splits
        for seed in CONFIG.seeds
    ]
    baseline = [
        {
            "experiment": "baseline",
            "split": split,
            "seed": 0,
            "weight": 0.0,
            "recipe": baseline_recipe(RECIPES),
            "folder": str(Path(BASELINE.format(split=split)).parent),
            "scores": BASELINE.format(split=split),
        }
        for split in CONFIG.splits
    ]
    return found + baseline


# What a job is told of its experiment: no more than its results depend on, or a change elsewhere would run it again.
TRAINING = {name: canonical(training_part(e)) for name, e in CONFIG.experiments.items()}
PREDICTING = {
    name: canonical(predicting_part(e)) for name, e in CONFIG.experiments.items()
}
RUNS = f"{PLAN}/runs.json"  # by file, because a command-line argument holds at most 128 KiB
if workflow.is_main_process:
    write_if_changed(Path(RUNS), json.dumps(runs(), sort_keys=True, indent=1) + "\n")


wildcard_constraints:
    shard=r"\d{5}",
    split=r"[A-Za-z0-9_-]+",
    seed=r"-?\d+",
