"""The report: self-contained, escaped, equal bytes for equal input, and every figure is the one in results.json."""

from __future__ import annotations

import base64
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from pipeline.config import canonical, load
from pipeline.dataset.manifest import Manifest, Segment, Video
from pipeline.dataset.plan import predict_recipe
from pipeline.learning.scores import read_scores, write_scores
from stages.report import main
from tests.stages.report_project import CLASSES, FRAMES, Page, Project, flow_index


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(project: Project) -> str:
    return project.report()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_well_formed_and_needs_nothing_else(html: str, page: Page) -> None:
    assert html.startswith("<!DOCTYPE html>")
    assert not page.open
    assert not page.crossed
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "image", "use")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        assert "srcset" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?://|url\(|@import|@font-face", html)
    assert len(html) < 3_000_000


def test_links_lead_to_sections_and_pictures_have_texts(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} <= set(ids)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) > 20
    assert all(attributes["alt"] for attributes in pictures)
    assert all(attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")


def test_every_accuracy_is_the_one_of_the_results(project: Project, page: Page) -> None:
    shown = page.rows("accuracy")
    assert set(project.results["summary"]) == {"rgb", "flow", "fused", "baseline"}
    for name, summary in project.results["summary"].items():
        top1, mean_class, runs = shown[name][:3]  # no paper's numbers: no columns for them
        assert top1 == f"{100 * summary['top1_mean']:.1f} ± {100 * summary['top1_std']:.1f}"
        assert mean_class == f"{100 * summary['mean_class_mean']:.1f} ± {100 * summary['mean_class_std']:.1f}"
        assert runs == str(summary["runs"])
    assert shown["chance"][0] == "33.3"
    assert f"training class: {100 * project.results['chance']['majority']:.1f}" in shown["chance"][-1]
    assert shown["fused"][-1] == "1 × rgb + 1.5 × flow, of scores before the softmax"
    assert shown["rgb"][-2:] == ["frames", "tiny, softmax_att, N = 4; relu, weights begin Gaussian"]


def test_every_run_is_listed(project: Project, page: Page) -> None:
    shown = [[" ".join(cell.split()) for cell in row] for row in page.tables["runs"][1:]]
    expected = [
        [
            r["experiment"],
            r["split"],
            str(r["seed"]),
            f"{100 * r['top1']:.1f}",
            f"{100 * r['mean_class']:.1f}",
            str(r["videos"]),
        ]
        for r in project.results["runs"]
    ]
    assert sorted(shown) == sorted(expected)


def test_the_headline_repeats_the_results(project: Project, page: Page) -> None:
    head = " ".join(page.sections["header"].split())
    for name, summary in project.results["summary"].items():
        assert f"{name} {100 * summary['top1_mean']:.1f}%" in head
    assert "chance 33.3%" in head
    assert "usable videos 16 of 18" in head
    assert "quarantined 2 11.1% of the videos" in head
    assert re.search(r"wherewhen \d+\.\d+\.\d+ · torch \d", head)
    assert "ffmpeg" in head


def test_bars_are_as_long_as_the_accuracies(project: Project, html: str) -> None:
    widths = [float(width) for width in re.findall(r'class="fill" style="width:([0-9.]+)%', html)]
    summary = project.results["summary"]
    expected = [100 * summary[name]["top1_mean"] for name in ("fused", "rgb", "flow", "baseline")]
    np.testing.assert_allclose(widths, expected, atol=0.005)


def test_videos_are_counted_by_class_and_part(project: Project, page: Page) -> None:
    rows = page.rows("classes")
    lost = {video.id for video in project.manifest.quarantined} | {project.unusable}
    for label in CLASSES:
        for column, (split, part) in enumerate(itertools.product(("split1", "split2"), ("train", "test"))):
            listed = [v for v in project.manifest.videos if label in v.labels and v.splits[split] == part]
            usable = [v for v in listed if v.id not in lost]
            expected = f"{len(usable)}" if len(usable) == len(listed) else f"{len(usable)} of {len(listed)}"
            assert rows[label][1 + column] == expected
    assert rows["all classes"][0] == "16 of 18"


def test_quarantined_videos_are_listed_with_stage_and_reason(project: Project, page: Page) -> None:
    rows = page.rows("quarantine")
    broken = project.manifest.quarantined[0]
    assert rows[broken.id] == ["wave", "probe", "it has no <video> stream"]
    assert rows[project.unusable][1:] == ["flow", "it is too dark"]
    assert "2 videos cannot be used (flow: 1, probe: 1)" in " ".join(page.sections["dataset"].split())


def test_names_are_escaped(html: str, page: Page) -> None:
    assert "<b>bold" not in html
    assert "<i>" not in html
    assert "<video>" not in html
    assert CLASSES[0] in page.rows("classes")
    assert CLASSES[1] in page.rows("matrix")


def test_the_confusion_matrix_is_the_sum_of_the_runs(project: Project, page: Page) -> None:
    rows = page.rows("matrix")
    fused = [run["confusion"] for run in project.results["runs"] if run["experiment"] == "fused"]
    total = np.sum(fused, axis=0)
    for label, counts in zip(project.results["classes"], total, strict=True):
        assert [int(cell) for cell in rows[label]] == counts.tolist()


def test_warped_flow_is_shown_and_much_clipped_videos_are_listed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    flow = project.indexes["flow"]
    first, second, *others = flow["videos"]
    flow["videos"][first]["clipped"] = 0.25
    flow["videos"][second]["clipped"] = 0.3125
    for video in others:
        flow["videos"][video]["clipped"] = 0.01  # no more than is allowed
    warped = flow_index(tmp_path / "warped", project.manifest, project.unusable, stage="warped_flow")
    for number, facts in enumerate(warped["videos"].values()):
        facts["camera"] = {"motion_px": 1.5 + number, "residual_px": 0.07, "moved": 0.5 if number else 1.0}
        facts["clipped"] = 0.0
    plain = Page(project.report())
    project.indexes["warped_flow"] = warped
    page = Page(project.report("warped.html"))

    assert list(page.rows("clipped-flow").items())[1:] == [(second, ["31.2"]), (first, ["25.0"])]
    assert "2 videos of the flow store have more than 1% of the vectors beyond the bound of 20 px" in " ".join(
        page.sections["dataset"].split()
    )
    assert "clipped-warped_flow" not in page.tables
    number = len(warped["videos"])
    told = " ".join(page.sections["dataset"].split())
    assert f"camera motion taken out of {100 * (0.5 + 0.5 / number):.1f}% of the pairs" in told
    assert f"{1.5 + (number - 1) / 2:.2f} px a pair in the median video, {0.5 + number:.2f} in the one" in told
    assert "flow that is left: 0.07 px in the median video" in told
    pictures = [sum("warped flow" in a.get("alt", "") for tag, a in one.tags if tag == "img") for one in (plain, page)]
    cells = [a for tag, a in page.tags if tag == "img" and a["alt"].startswith("flow ")]
    assert pictures == [0, len(cells)]
    assert len(cells) == 6 * len(CLASSES)


def test_samples_are_the_stored_frames(project: Project, page: Page) -> None:
    pictures = {a["alt"]: a["src"] for tag, a in page.tags if tag == "img"}
    for label in CLASSES:
        first = next(
            video.id
            for video in project.manifest.part("split1", "test")
            if label in video.labels and video.id != project.unusable
        )
        for frame in (1, 3, 5, 8, 10, 12):
            assert abs(_decoded(pictures[f"{first}, frame {frame}"]).mean() - 15 * frame) < 2
        red, green, blue = _decoded(pictures[f"flow 1 of {first}"]).mean(axis=(0, 1))
        assert red > 240  # to the right is red
        assert max(green, blue) < 20
    assert "full colour: 3.0 px" in " ".join(page.sections["samples"].split())


def _decoded(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, 3) RGB of a data URI."""
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]


def test_attention_bars_are_the_weights(project: Project, html: str) -> None:
    section = html[html.index('<section id="attention">') :]
    bars = re.findall(r'<svg class="bars".*?</svg>', section)
    assert len(bars) == 2 * section.count('<article class="video">') > 0
    stored = [np.load(run["scores"])["weights"] for run in project.runs if run["split"] == "split1" and not run["seed"]]
    known = np.concatenate(stored)
    for bar in bars:
        heights = np.array([float(height) for height in re.findall(r'height="([0-9.]+)"', bar)])
        shares = heights / heights.sum()
        assert np.abs(known - shares).max(axis=1).min() < 1e-3  # the weights of one of the videos
        uniform = 1 - float(re.search(r'class="uniform".*?y1="([0-9.]+)"', bar)[1])  # type: ignore[index]
        assert uniform == pytest.approx(heights.sum() / len(heights), abs=1e-3)


def test_attention_shows_right_and_wrong_videos(page: Page) -> None:
    text = page.sections["attention"]
    assert "✓ right" in text
    assert "✗ wrong" in text


def test_timings_add_up_and_leave_old_recipes_out(page: Page) -> None:
    row = page.rows("rules")["flow"]
    assert row[:6] == ["2", "15.0 s", "11.0 s", "12.5 s", "00000", "300 MiB"]
    assert row[6] == f"1.1 videos/s, {16 * (FRAMES - 1) / 15:.1f} pairs/s"


def test_the_configuration_on_the_page_makes_the_run_again(project: Project, html: str, page: Page) -> None:
    text = page.sections["made"]
    start = text.index("name: tiny")
    assert load(yaml.safe_load(text[start : text.index("Recipes:")])) == project.config
    recipes = page.rows("recipes")
    own = {f"{job} of {name}" for job in ("train", "predict") for name in ("rgb", "flow")}
    assert set(recipes) - {"stage"} == {"probe", "frames", "flow", "baseline", *own}
    assert recipes["train of rgb"] == ["0123456789ab"]
    assert recipes["predict of rgb"] == [predict_recipe(project.config.experiments["rgb"], train="0123456789ab")]


def test_equal_input_gives_equal_bytes(project: Project, html: str) -> None:
    assert project.report("again.html") == html


def on_splits(**splits: str) -> dict[str, Any]:
    """Settings of streams that each run on one split."""
    snippets = {"rgb": 1, "flow": 5}
    return {
        "experiments": {
            name: {
                "modality": "frames" if name == "rgb" else "flow",
                "splits": [split],
                "sampling": {"snippet": snippets[name], "test_segments": 8},
            }
            for name, split in splits.items()
        }
    }


def test_streams_without_a_split_in_common_stand_alone(tmp_path: Path) -> None:
    project = Project(tmp_path, settings=on_splits(rgb="split2", flow="split1"))
    assert set(project.results["summary"]) == {"rgb", "flow", "baseline"}
    page = Page(project.report())
    assert list(page.rows("accuracy"))[1:] == ["rgb", "flow", "baseline", "chance"]
    told = " ".join(page.sections["attention"].split())
    assert "What flow looked at in" in told
    assert "test videos of split1, seed 0 (without a run there: rgb)" in told


def test_attention_is_of_the_first_split_that_streams_ran_on(tmp_path: Path) -> None:
    project = Project(tmp_path, truth=True, settings=on_splits(rgb="split2", flow="split2"))
    html = project.report()
    told = " ".join(Page(html).sections["attention"].split())
    assert "What rgb, flow looked at in" in told
    assert "test videos of split2, seed 0: first the sharpest attention among videos that every stream shown" in told
    tested = [video.id for video in project.manifest.part("split2", "test")]
    section = html[html.index('<section id="attention">') :]
    assert 0 < section.count('<article class="video">') <= len(tested)


def test_a_pretraining_has_curves_and_a_recipe(tmp_path: Path) -> None:
    page = Page(Project(tmp_path, san=True).report())
    assert page.rows("recipes")["pretrain_san of rgb"] == ["ba9876543210"]
    titles = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert {"Loss of the SAN of rgb by epoch", "Endpoint error, px of the SAN of rgb by epoch"} <= set(titles)
    told = " ".join(page.sections["training"].split())
    assert "Pre-training, which predicts optical flow. 2 epochs of 0.5 s, 100.0% of it waiting for data." in told
    assert all(f"split{split}-seed{seed}" in told for split in (1, 2) for seed in (0, 7))


def test_where_the_time_of_training_went(page: Page) -> None:
    """Of the second epoch: the first waits for six of its eight seconds."""
    rows = page.rows("shares")
    assert rows["experiment"][-1] == "everything else"  # no column of GPU memory on a CPU
    for name in ("rgb", "flow"):
        assert rows[name] == ["8.0 s", "12.5", "25.0", "5.0", "20.0", "30.0", "10.0", "10.0"]
    titles = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    told = "waiting for data 25.0%, cutting 5.0%, forward 20.0%, backward 30.0%, update 10.0%, everything else 10.0%"
    assert f"an epoch of rgb: {told}" in titles
    assert "rgb, flow waited for data" in page.sections["pace"]
    assert "compute.workers" in page.sections["pace"]


def test_histories_that_do_not_tell_where_the_time_went_have_no_section(tmp_path: Path) -> None:
    project = Project(tmp_path, streams=("rgb",))
    for run in project.runs:
        path = Path(run["folder"]) / "history.csv"
        if run["experiment"] == "rgb":
            rows = [row.split(",") for row in path.read_text().splitlines()]
            kept = [i for i, name in enumerate(rows[0]) if name not in ("cut_seconds", "samples_per_second")]
            path.write_text("".join(",".join(row[i] for i in kept) + "\n" for row in rows))
    page = Page(project.report())
    assert not page.open
    assert "pace" not in page.sections
    assert "#pace" not in [attributes.get("href") for _, attributes in page.tags]


def test_results_of_another_run_are_one_sentence(tmp_path: Path) -> None:
    project = Project(tmp_path)
    del project.results["summary"]["fused"]
    with pytest.raises(
        SystemExit, match=r"^report: .*results\.json, .* has no 'fused', so they are not of one run; del"
    ):
        project.report()


def test_no_experiment(tmp_path: Path) -> None:
    project = Project(tmp_path, streams=())
    page = Page(project.report())
    assert not page.open
    assert "No experiment has results" in page.sections["results"]
    assert "Nothing was trained" in page.sections["training"]
    assert "There are no scores" in page.sections["confusion"]
    assert page.rows("classes")["wave"][0] == "5 of 6"


def test_one_stream_many_snippets_no_flow_no_benchmarks_nothing_lost(tmp_path: Path) -> None:
    project = Project(tmp_path, streams=("rgb",), snippets=80)
    kept = tuple(video for video in project.manifest.videos if video.usable)
    project.manifest = Manifest(kept)
    project.indexes["frames"]["quarantined"] = {}
    for file in (tmp_path / "benchmarks").rglob("*.tsv"):
        file.unlink()
    html = project.report()
    page = Page(html)
    assert "None: every video could be used" in page.sections["dataset"]
    assert "No job has been timed" in page.sections["timings"]
    assert "There is no flow store" in page.sections["samples"]
    bar = re.search(r'<svg class="bars".*?</svg>', html)
    assert bar is not None
    assert bar[0].count("<rect") == 80


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run with ground truth, spatial maps, named fusions and what a paper gives."""
    fusions = {
        "z_both": {"experiments": {"rgb": 1, "flow": 0.5}, "fuse_on": "prob", "paper": 94.6},
        "a_rgb": {"experiments": {"rgb": 1}},
    }
    project = Project(tmp_path_factory.mktemp("told"), truth=True)
    values = project.config.model_dump(mode="json")
    for name, experiment in values["experiments"].items():
        experiment |= {"weight": 1.0, "paper": {"rgb": 85.17, "flow": None}[name]}
    project.config = load(values | {"fusions": fusions})
    project.results = project.evaluate()
    return project


@pytest.fixture(scope="module")
def told_page(told: Project) -> Page:
    return Page(told.report())


def test_ours_stands_beside_the_papers_in_the_order_of_the_configuration(told: Project, told_page: Page) -> None:
    shown = told_page.rows("accuracy")
    assert list(shown)[1:] == ["z_both", "a_rgb", "rgb", "flow", "baseline", "chance"]
    both, rgb = (100 * told.results["summary"][name]["top1_mean"] for name in ("z_both", "rgb"))
    assert shown["z_both"][1:3] == ["94.6", f"{both - 94.6:+.1f}".replace("-", "−")]
    assert shown["rgb"][1:3] == ["85.17", f"{rgb - 85.17:+.1f}".replace("-", "−")]
    assert shown["flow"][1:3] == ["", ""]
    assert shown["z_both"][-1] == "1 × rgb + 0.5 × flow, of probabilities"
    assert shown["a_rgb"][-1] == "1 × rgb, of scores before the softmax"


def test_the_papers_numbers_are_marks_on_the_bars(told: Project) -> None:
    assert re.findall(r'class="paper" style="left:([0-9.]+)%', told.report()) == ["94.60", "85.17"]


def test_attention_against_truth_is_the_results(told: Project, told_page: Page) -> None:
    rows, summary = told_page.rows("truth"), told.results["summary"]
    assert list(rows)[1:] == ["rgb", "flow"]
    for name, kinds in (("rgb", ("temporal", "spatial")), ("flow", ("temporal",))):
        for column, kind in enumerate(kinds):
            figures = [100 * summary[name][f"{kind}_{what}"] for what in ("inside_mean", "inside_std", "uniform_mean")]
            expected = [f"{figures[0]:.1f} ± {figures[1]:.1f}", f"{figures[2]:.1f}"]
            assert rows[name][2 * column : 2 * column + 2] == expected
    assert rows["flow"][2:4] == ["–", "–"]
    assert rows["rgb"][4] == "8"  # the ninth test video is broken
    assert summary["rgb"]["spatial_uniform_mean"] == pytest.approx(0.5)  # the left half of the middle half


def test_maps_are_laid_over_frames_and_the_action_is_shaded(told: Project) -> None:
    html = told.report()
    page = Page(html)
    assert not page.crossed
    heats = [a for tag, a in page.tags if tag == "img" and a["alt"].startswith("spatial attention")]
    videos = html.count('<article class="video">')
    assert len(heats) == 8 * videos > 0
    picture = _decoded(heats[0]["src"]).astype(int)
    outside, inside = picture[:, 40:], picture[:, 13:35]
    assert np.ptp(outside, axis=2).max() < 40  # the grey frame, darkened, but for what JPEG spreads
    assert (inside[..., 0] - inside[..., 2]).max() > 100
    section = html[html.index('<section id="attention">') :]
    bars = re.findall(r'<svg class="bars".*?</svg>', section)
    assert all(re.findall(r'class="truth" d="M(\d)', bar) == ["3", "4", "5", "6", "7"] for bar in bars[::2])


def test_what_was_located_is_the_results(told: Project, told_page: Page) -> None:
    summary = told.results["summary"]
    for table, names, kinds, overlaps in (
        ("boxes", ["rgb"], ("boxes", "boxes_centre"), ("0.05", "0.1", "0.2", "0.3")),
        ("segments", ["rgb", "flow"], ("segments", "segments_uniform"), ("0.1", "0.2", "0.3", "0.4", "0.5")),
    ):
        rows = [[" ".join(cell.split()) for cell in row] for row in told_page.tables[table]]
        assert rows[1][1:-2] == [*overlaps, *overlaps]
        assert [row[0] for row in rows[2::2]] == names
        for row, (name, kind) in zip(rows[2:], itertools.product(names, kinds), strict=True):
            figures = summary[name]
            for cell, (metric, overlap) in zip(row[1:], itertools.product(("accuracy", "map"), overlaps), strict=False):
                mean, std = (100 * figures[f"{kind}_{metric}_{overlap}_{what}"] for what in ("mean", "std"))
                assert cell == f"{mean:.1f} ± {std:.1f}"
        assert rows[2][-1] == "8"


def test_padding_changes_no_byte_of_the_page(tmp_path: Path) -> None:
    """As of clips, of which a longer video has more."""
    project = Project(tmp_path, truth=True)
    expected = project.report()
    for run in project.runs:
        scores = read_scores(Path(run["scores"]))
        wider = {
            "weights": np.pad(scores.weights, ((0, 0), (0, 3))),
            "positions": np.pad(scores.positions, ((0, 0), (0, 3)), constant_values=-1),
            "maps": None if scores.maps is None else np.pad(scores.maps, ((0, 0), (0, 3), (0, 0), (0, 0))),
        }
        write_scores(Path(run["scores"]), replace(scores, **wider))
    project.results = project.evaluate()
    assert project.report("padded.html") == expected


def test_a_run_without_truth_says_nothing_of_it(page: Page) -> None:
    assert not {"truth", "boxes", "segments"} & set(page.tables)
    assert "Nothing to hold against truth" in page.sections["localisation"]


def test_many_classes_become_a_picture(tmp_path: Path) -> None:
    project = Project(tmp_path)
    names = [f"class {number:03d}" for number in range(101)]
    project.results["classes"] = names
    for run in project.results["runs"]:
        run["confusion"] = np.eye(101, dtype=int).tolist()
        run["confusion"][3][4] = 5
    page = Page(project.report())
    assert "matrix" not in page.tables
    assert page.rows("confused")["class 003"][0] == "class 004"
    large = next(a["src"] for tag, a in page.tags if tag == "img" and "101 classes" in a["alt"])
    assert len(large) < 20_000
    text = page.sections["confusion"]
    assert all(text.count(name) >= 2 for name in names)  # down and across


def test_a_large_dataset_stays_readable(tmp_path: Path) -> None:
    project = Project(tmp_path, streams=())
    extra = [
        Video(
            id=f"x{label:03d}-{i}",
            path="x",
            digest="0",
            bytes=1,
            labels=(f"class {label:03d}",),
            splits={"split1": ("train", "test", "")[i], "split2": "train"},
            frames=25 * (i + 1),
            fps=25.0,
            width=320 + label,
            height=240,
            segments=(Segment(f"class {label:03d}", 0.0, 0.5),),
        )
        for label in range(101)
        for i in range(3)
    ]
    project.manifest = Manifest(tuple(sorted([*project.manifest.videos, *extra], key=lambda video: video.id)))
    project.notes = {"missing": [f"<gone> {i}.avi" for i in range(250)], "extra": ["Thumbs.db"]}
    project.notes["unofficial"] = ["of <these>, x has not the official content"]
    html = project.report()
    page = Page(html)
    assert not page.crossed
    assert page.rows("splits")["split1"] == ["110", "109 of 110", "101"]
    closed = r'<details><summary>Videos of the 104 classes</summary>\s*<div class="scroll"><table id="classes">'
    assert re.search(closed, html)
    assert page.rows("classes")["class 007"] == ["3", "1", "1", "1", "3", "0", "3"]
    assert len(page.rows("formats")) < 12
    assert page.rows("formats")["others"][1] == "282"  # 303 but those of the seven widths that are listed
    told = " ".join(page.sections["dataset"].split())
    assert "303 in 303 videos; 0.5 s each; 2.5 min in all" in told
    assert "250 listed videos are not there" in told
    assert "<gone> 199.avi and 50 more" in told
    assert "<gone>" not in html
    assert "Of <these>, x has not the official content." in told
    assert "<these>" not in html
    assert "1 video is there but not in the annotations, and left out." in told
    assert "Thumbs.db" in told


def test_a_dataset_whose_videos_are_all_listed_says_nothing_of_missing_ones(page: Page) -> None:
    assert "Missing videos" not in page.sections["dataset"]
    assert "not listed" not in page.sections["dataset"]


@pytest.mark.parametrize("name", ["results.json", "frames.json"])
def test_a_broken_input_is_one_sentence(tmp_path: Path, name: str) -> None:
    project = Project(tmp_path, streams=())
    project.report()
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    arguments = ["--config", canonical(project.config), "--manifest", str(tmp_path / "manifest.tsv")]
    arguments += ["--runs", str(tmp_path / "runs.json"), "--notes", str(tmp_path / "notes.json")]
    arguments += ["--results", str(broken if name == "results.json" else tmp_path / "results.json")]
    arguments += ["--index", f"frames={broken if name == 'frames.json' else tmp_path / 'frames.json'}"]
    with pytest.raises(SystemExit, match=r"^report: .*broken\.json (cannot be read as JSON|is not an index)"):
        main([*arguments, "--benchmarks", str(tmp_path), "--out", str(tmp_path / "x.html")])
    assert not (tmp_path / "x.html").exists()
