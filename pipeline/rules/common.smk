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
    NOTES_FILE,
    baseline_recipe,
    features_recipe,
    predict_recipe,
    read_shards,
    san_recipe,
    stage_recipes,
    train_recipes,
    write_notes,
    write_plan,
)
from pipeline.learning.gpus import visible
from pipeline.lock import hold
from pipeline.optical_flow.solve import jobs_share_a_gpu
from pipeline.stores.imports import arrivals_file, count_arrivals
from pipeline.stores.publish import write_if_changed
from pipeline.stores.ready import make_ready
from stages.manifest import (
    demo_folder,
    digest,
    find,
    remarks,
    select,
    unofficial_annotations,
)


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
    notes = unofficial_annotations(checked)
    listing = find(checked)
    videos = select(listing, checked)
    hold(lock)
    stores = make_ready(checked, dry_run=workflow.output_settings.dryrun)
    for remark in (*notes, *remarks(listing), *stores):
        print(remark, file=sys.stderr)
    videos = digest(videos, cache=plan / "digests.sqlite", image_fps=checked.image_fps)
    write_notes(listing, unofficial=notes, folder=plan)
    shards = write_plan(videos, shards=checked.shards, folder=plan)
    for remark in count_arrivals(checked, RECIPES, shards):
        print(remark, file=sys.stderr)
    return shards


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
    TRAIN = train_recipes(CONFIG, RECIPES)
    FEATURES = {
        name: features_recipe(experiment, train=TRAIN[experiment.features])
        for name, experiment in CONFIG.experiments.items()
        if experiment.features
    }
    SAN = {
        name: san_recipe(
            experiment.san, precision=CONFIG.compute.precision, stages=RECIPES
        )
        for name, experiment in CONFIG.experiments.items()
        if experiment.san and experiment.san.targets != "none"
    }
    SHARDS = prepare(CONFIG)
except (OSError, ValueError) as error:
    sys.exit(f"wherewhen: {error}")

WORK = CONFIG.work_dir
PLAN = WORK / "plan"
PYTHON = shlex.quote(sys.executable)
COMPUTE = canonical(CONFIG.compute)
# Told to jobs outside of their params: where artifacts are found changes no result, so it runs nothing again.
SHARING = f"--sharing {shlex.quote(canonical(CONFIG.store))} --damaged {shlex.quote(str(WORK / 'damaged'))}"
# A GPU is asked for where there is one here, or where the configuration says that jobs will find one.
GPU = CONFIG.compute.accelerator == "cuda" or (
    CONFIG.compute.accelerator == "auto" and any(Path("/dev").glob("nvidia[0-9]*"))
)
# Of who reads the manifest and the indexes of all videos: 2.4 and 0.8 GB for a million, in 4,000 shards or so.
WHOLE_MB = len(SHARDS) // 100 * 100
# Of one process that runs a model, with those that load for it. Four batches ahead of each of these are 0.5 GB, if they
# are of 128 videos, four frames of 340 x 256.
LOADERS = CONFIG.compute.loader_processes(
    cuda=GPU,
    cores=(
        (os.cpu_count() or 1) // CONFIG.compute.devices if workflow.local_exec else None
    ),
)
MODEL_THREADS = CONFIG.compute.threads + LOADERS
MODEL_MB = 4000 + 2000 * LOADERS + WHOLE_MB
TRAIN_THREADS = CONFIG.compute.devices * MODEL_THREADS
STORES = CONFIG.stores
if workflow.is_main_process:
    # On this machine as many jobs of one GPU as there are, each on its own (pipeline/learning/gpus.py), and four flow
    # jobs, which share the first; others with --resources gpu=N flow_gpu=M. Not in the profile, because Slurm, which
    # counts GPUs itself, would be held to it.
    here = visible(
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        present=len(list(Path("/dev").glob("nvidia[0-9]*"))),
    )
    limits = {"gpu": len(here) or CONFIG.compute.devices, "flow_gpu": 4}
    for name, limit in limits.items():
        if workflow.local_exec and name not in workflow.global_resources:
            workflow.register_resource(name, limit)


def on_gpu(section):
    """1 if jobs of this flow section solve on a GPU. Several share one, because decoding takes a core for each.

    Where the solver runs is not training's `accelerator` to say, but `cuda` promises that jobs will find a GPU. Only
    the main process counts resources.
    """
    if section.imported is not None or not workflow.is_main_process:
        return 0
    promised = CONFIG.compute.accelerator == "cuda"
    return int(jobs_share_a_gpu(section.backend, promised=promised))


MANIFEST = f"{WORK}/manifest-{RECIPES['probe']}.tsv"
RESULTS = f"{WORK}/results.json"
NOTES = f"{PLAN}/{NOTES_FILE}"
REPORT = f"{WORK}/report.html"


def receipts_folder(stage):
    return f"{WORK}/receipts/{stage}-{RECIPES[stage]}"


def receipts(stage):
    return [f"{receipts_folder(stage)}/{shard}.json" for shard in SHARDS]


def arrivals(stage):
    """What a job on imported flow waits for; nothing where flow is computed."""
    if getattr(CONFIG, stage).imported is None:
        return []
    return str(arrivals_file(PLAN, stage, RECIPES[stage], "{shard}"))


def store(stage):
    return str(CONFIG.store_folder(stage, RECIPES[stage]))


def index_file(stage):
    return f"{WORK}/index/{stage}-{RECIPES[stage]}.json"


def run_folder(name):
    """Of a training; experiments whose training is the same share it."""
    experiment = CONFIG.experiments[name]
    kind = f"{experiment.modality}-{experiment.model.family}-{TRAIN[name]}"
    return f"{WORK}/runs/{kind}/{{split}}-seed{{seed}}"


def scores_file(name):
    recipe = predict_recipe(CONFIG.experiments[name], train=TRAIN[name])
    return f"{run_folder(name)}/scores-{recipe}.npz"


def san_folder(name):
    """Of a pre-training: FlyingChairs knows no splits."""
    chairs = CONFIG.experiments[name].san.targets == "flying_chairs"
    return f"{WORK}/san/{SAN[name]}" + ("" if chairs else "/{split}-seed{seed}")


def features_folder(name):
    """Of the receipts of the features that a head reads; heads that read the same share it."""
    return f"{WORK}/receipts/features-{FEATURES[name]}/{{split}}-seed{{seed}}"


def features_read(name):
    """What a job on features waits for."""
    return (
        [f"{features_folder(name)}/{shard}.json" for shard in SHARDS]
        if name in FEATURES
        else []
    )


def first_with_each(value_of):
    """Experiment by value: of those with equal values the first, in whose name their common job runs."""
    firsts = {}
    for name, value in value_of.items():
        firsts.setdefault(value, name)
    return list(firsts.values())


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
            "san": SAN.get(name),
            "san_folder": (
                san_folder(name).format(split=split, seed=seed) if name in SAN else None
            ),
            "folder": run_folder(name).format(split=split, seed=seed),
            "scores": scores_file(name).format(split=split, seed=seed),
        }
        for name, experiment in CONFIG.experiments.items()
        for split in experiment.splits or CONFIG.splits
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


class ByRule(dict):
    """What a job of each rule is told, as ``{TOLD:{rule}.}`` in its command has it.

    Not in its params: all that its results depend on is in a recipe, which stands in their path, and what else is told,
    as a weight in the fusion or where a file lies, must run nothing again.
    """

    def __format__(self, rule):
        # after the dot because Snakemake itself reads a last q or u
        return shlex.join(self[rule.removesuffix(".")])


TOLD = ByRule()
for name, experiment in CONFIG.experiments.items():
    settings, san = ["--experiment", canonical(experiment)], experiment.san
    known = (
        ["--san", str(san.encoder)] if san and san.encoder and name not in SAN else []
    )
    TOLD |= {f"train_{name}": settings + known, f"predict_{name}": settings}
    if name in FEATURES:
        source = canonical(CONFIG.experiments[experiment.features])
        TOLD[f"features_{name}"] = settings + ["--source", source]
    if name in SAN:
        TOLD[f"pretrain_san_{name}"] = ["--san", canonical(san)]
RUNS = f"{PLAN}/runs.json"  # by file, because a command-line argument holds at most 128 KiB
if workflow.is_main_process:
    write_if_changed(Path(RUNS), json.dumps(runs(), sort_keys=True, indent=1) + "\n")


wildcard_constraints:
    shard=r"\d{5}",
    split=r"[A-Za-z0-9_-]+",
    seed=r"-?\d+",
