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

from pipeline.config import canonical, load
from pipeline.dataset.plan import (
    baseline_recipe,
    predict_recipe,
    read_shards,
    stage_recipes,
    train_recipe,
    training_part,
    write_plan,
)
from pipeline.lock import hold
from stages.manifest import demo_folder, scan


def prepare():
    """Check the configuration and bring the plan up to date; only the main process writes, jobs read."""
    checked = load(config)
    plan = checked.work_dir / "plan"
    if not workflow.is_main_process:
        return checked, read_shards(plan)
    if checked.dataset == "demo":
        make_demo(checked)
    found = scan(checked, cache=plan / "digests.sqlite")
    return checked, write_plan(found, shards=checked.shards, folder=plan)


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


def hold_lock():
    """Let no second run work in the same folder."""
    try:
        hold(WORK / ".lock")
    except ValueError as error:
        sys.exit(f"wherewhen: {error}")


try:
    CONFIG, SHARDS = prepare()
    RECIPES = stage_recipes(CONFIG)
    TRAIN = {
        name: train_recipe(
            experiment, precision=CONFIG.compute.precision, stages=RECIPES
        )
        for name, experiment in CONFIG.experiments.items()
    }
except ValueError as error:
    sys.exit(f"wherewhen: {error}")

WORK = CONFIG.work_dir
PLAN = WORK / "plan"
PYTHON = shlex.quote(sys.executable)
COMPUTE = canonical(CONFIG.compute)
STORES = ("frames", "flow")
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
        if stage == "flow"
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


wildcard_constraints:
    shard=r"\d{5}",
    split=r"[A-Za-z0-9_-]+",
    seed=r"-?\d+",
