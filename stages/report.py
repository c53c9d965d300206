"""Stage report: one self-contained page about a run: results, dataset, samples, training, attention, timings, settings.

The page needs no other file and no network. Equal input gives equal bytes: no date, no random number. What it shows is
gathered in ``pipeline.report``; how it looks stands in ``report.html.j2``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import jinja2

from pipeline import __version__
from pipeline.config import load
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.plan import stage_recipes
from pipeline.learning.readers import index_argument, read_index
from pipeline.learning.scores import read_scores
from pipeline.media import ffmpeg
from pipeline.report.formats import mebibytes, number, percent, points, seconds
from pipeline.report.page import Inputs, Pretraining, Run, build_context
from pipeline.report.strips import picture_reader
from pipeline.report.summaries import read_benchmarks, read_history
from pipeline.stores.publish import write_text
from pipeline.stores.sharing import Sharing


def render(context: dict[str, Any]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = {"percent": percent, "seconds": seconds, "number": number, "mebibytes": mebibytes, "points": points}
    environment.filters |= formats
    environment.globals |= formats
    return environment.get_template("report.html.j2").render(context)


def software_versions() -> dict[str, str]:
    """Of what has a say in the results."""
    packages = {"torch": "torch", "NumPy": "numpy", "zarr": "zarr", "Snakemake": "snakemake"}
    versions = {"wherewhen": __version__} | {name: metadata.version(package) for name, package in packages.items()}
    return versions | {
        "OpenCV": cv2.__version__,
        "ffmpeg": ffmpeg.version(),
        "Python": platform.python_version(),
    }


def read_inputs(arguments: argparse.Namespace) -> Inputs:
    """Read what the command line names.

    Raises:
        ValueError: a file is missing or is not what it should be.
    """
    config = load(arguments.config)
    indexes = {name: read_index(path, stage=name) for name, path in arguments.index}
    sharing = Sharing.of(config.store, notes=arguments.damaged)
    readers = {name: picture_reader(index, sharing=sharing) for name, index in indexes.items()}
    runs = json.loads(arguments.runs.read_text())
    trained = {run[kind] for run in runs for kind in ("recipe", "san") if run.get(kind)}
    recipes = {*stage_recipes(config).values(), *trained}
    return Inputs(
        config=config,
        manifest=read_manifest(arguments.manifest),
        results=_read_json(arguments.results),
        runs=tuple(_read_run(run) for run in runs),
        indexes={name: dict(index) for name, index in indexes.items()},
        readers=readers,
        timings=read_benchmarks(arguments.benchmarks, recipes=recipes),
        versions=software_versions(),
        notes=_read_json(arguments.notes),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); delete it and run again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no table; delete it and run again")
    return values


def _read_run(run: dict[str, Any]) -> Run:
    history = Path(run["folder"]) / "history.csv"
    return Run(
        **{name: run[name] for name in ("experiment", "split", "seed", "recipe")},
        scores=read_scores(Path(run["scores"])),
        history={} if run["experiment"] == "baseline" else read_history(history),
        san=_read_pretraining(run),
    )


def _read_pretraining(run: dict[str, Any]) -> Pretraining | None:
    """Of the run's Spatial Attention Network, if it has been pre-trained."""
    if not run.get("san"):
        return None
    folder = Path(run["san_folder"])
    return Pretraining(recipe=run["san"], folder=str(folder), history=read_history(folder / "history.csv"))


def main(argv: list[str] | None = None) -> None:
    """Write the page about a run."""
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=main.__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the whole configuration as JSON")
    parser.add_argument("--manifest", type=Path, required=True, help="the dataset's manifest")
    parser.add_argument("--results", type=Path, required=True, help="results.json of the evaluation")
    parser.add_argument("--index", type=index_argument, action="append", default=[], help="STORE=FILE")
    parser.add_argument("--runs", type=Path, required=True, help="JSON file: list of the runs with their folders")
    parser.add_argument("--notes", type=Path, required=True, help="JSON file: names of missing and of extra videos")
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of Snakemake's benchmark files")
    parser.add_argument("--damaged", type=Path, help="folder of notes about damage")
    parser.add_argument("--out", type=Path, required=True, help="HTML file to write")
    arguments = parser.parse_args(argv)
    try:
        page = render(build_context(read_inputs(arguments)))
    except KeyError as error:
        sys.exit(
            f"report: {arguments.results}, {arguments.runs} or an index has no {error}, so they are not of one run; "
            f"delete {arguments.results} and run again"
        )
    except (OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    write_text(arguments.out, page)


if __name__ == "__main__":
    main()
