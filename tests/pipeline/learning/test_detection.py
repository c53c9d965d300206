"""Mean average precision against loops over everything, the rules one by one, and THUMOS14's own annotations."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.manifest import Segment
from pipeline.learning.detection import (
    Detection,
    Matcher,
    mean_over_classes,
    read_detections,
    suppress,
    temporal_average_precisions,
    temporal_iou,
    write_detections,
)

ALPHAS = (0.1, 0.25, 0.5)
Truth = dict[str, list[Segment]]


def iou(a: Detection | Segment, b: Detection | Segment) -> float:
    """Intersection over union of two intervals."""
    common = min(a.end, b.end) - max(a.start, b.start)
    return common / (a.end - a.start + b.end - b.start - common) if common > 0 else 0.0


def right_th14(found: list[Detection], own: list[Segment], alpha: float) -> list[int]:
    """Places of the right detections: each ground truth takes the best of those that are left."""
    taken: list[int] = []
    for segment in own:
        best, place = alpha, None
        for k, detection in enumerate(found):
            if k not in taken and iou(segment, detection) > best:
                best, place = iou(segment, detection), k
        if place is not None:
            taken.append(place)
    return taken


def right_pascal(found: list[Detection], own: list[Segment], alpha: float) -> list[int]:
    """Places of the right detections: each goes to the ground truth that it overlaps most, taken or not."""
    right, taken = [], set()
    for k, detection in enumerate(found):
        overlaps = [iou(segment, detection) for segment in own]
        if overlaps and max(overlaps) >= alpha:
            wanted = overlaps.index(max(overlaps))
            if wanted not in taken:
                right.append(k)
            taken.add(wanted)
    return right


def slow_average_precision(
    detections: Sequence[Detection], truth: Truth, label: str, alpha: float, matcher: Matcher
) -> float:
    """What the module's docstring says, one detection at a time."""
    pool: list[tuple[float, bool]] = []
    positives = 0
    for video in sorted({*truth, *(detection.video for detection in detections)}):
        found = [detection for detection in detections if (detection.video, detection.label) == (video, label)]
        found.sort(key=lambda detection: -detection.score)
        own = [segment for segment in truth.get(video, []) if segment.label == label]
        disputed = [segment for segment in truth.get(video, []) if segment.label is None]
        positives += len(own)
        right = (right_th14 if matcher == "th14" else right_pascal)(found, own, alpha)
        for k, detection in enumerate(found):
            if k in right or not any(iou(segment, detection) > 0 for segment in disputed):
                pool.append((detection.score, k in right))
    pool.sort(key=lambda entry: -entry[0])
    hits, total = 0, 0.0
    for rank, (_, right_) in enumerate(pool, 1):
        if right_:
            hits += 1
            total += hits / rank
    return total / positives


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Detection], Truth]:
    """Small whole numbers, so that scores tie and overlaps tie and equal thresholds."""

    def interval() -> tuple[float, float]:
        start = draw(st.integers(0, 8))
        return float(start), float(start + draw(st.integers(1, 4)))

    videos = [*"cab"]
    labels = ["run", "jump"]
    truth: Truth = {"a": [Segment("run", 1.0, 3.0), Segment("jump", 2.0, 4.0)]}
    for _ in range(draw(st.integers(0, 8))):
        label = draw(st.sampled_from([*labels, *labels, None]))
        truth.setdefault(draw(st.sampled_from(videos)), []).append(Segment(label, *interval()))
    detections = [
        Detection(
            draw(st.sampled_from([*videos, "unknown"])),
            *interval(),
            draw(st.sampled_from([*labels, "other"])),
            draw(st.integers(0, 3)) / 4,
        )
        for _ in range(draw(st.integers(0, 14)))
    ]
    return detections, truth


@settings(deadline=None)
@given(cases(), st.sampled_from(["th14", "pascal"]))
def test_average_precision_is_what_the_loops_say(case: tuple[list[Detection], Truth], matcher: Matcher) -> None:
    detections, truth = case
    values = temporal_average_precisions(detections, truth, thresholds=ALPHAS, matcher=matcher)
    assert list(values) == ["jump", "run"]
    for label, found in values.items():
        expected = [slow_average_precision(detections, truth, label, alpha, matcher) for alpha in ALPHAS]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(mean_over_classes(values), (values["run"] + values["jump"]) / 2)


def ap(
    found: list[tuple[str, float, float, float]], truth: Truth, *, alpha: float = 0.5, matcher: Matcher = "th14"
) -> float:
    """Average precision of ``run`` for (video, start, end, score)."""
    detections = [Detection(video, start, end, "run", score) for video, start, end, score in found]
    return float(temporal_average_precisions(detections, truth, thresholds=[alpha], matcher=matcher)["run"][0])


BOTH = pytest.mark.parametrize("matcher", ["th14", "pascal"])
TWO: Truth = {"a": [Segment("run", 0.0, 4.0), Segment("run", 10.0, 14.0)]}


@BOTH
def test_perfect_detections_have_one_and_none_has_zero(matcher: Matcher) -> None:
    assert ap([("a", 0, 4, 0.1), ("a", 10, 14, 0.2)], TWO, matcher=matcher) == 1
    assert ap([], TWO, matcher=matcher) == 0
    assert ap([("b", 0, 4, 0.1)], TWO, matcher=matcher) == 0


@BOTH
def test_a_second_detection_of_one_action_is_wrong(matcher: Matcher) -> None:
    """Right, wrong, right: (1 + 2/3) / 2."""
    found = [("a", 0.0, 4.0, 0.9), ("a", 0.0, 3.9, 0.8), ("a", 10.0, 14.0, 0.7)]
    assert ap(found, TWO, matcher=matcher) == pytest.approx((1 + 2 / 3) / 2)


def test_an_overlap_equal_to_the_threshold_matches_in_pascal_only() -> None:
    found = [("a", 0.0, 2.0, 0.9)]  # half of the first action
    assert ap(found, TWO) == 0
    assert ap(found, TWO, alpha=0.4999) == 0.5
    assert ap(found, TWO, matcher="pascal") == 0.5


def test_ground_truths_choose_in_th14_and_detections_in_pascal() -> None:
    """Both detections overlap the first action most; only in th14 does the second action get the one that is left."""
    truth: Truth = {"a": [Segment("run", 0.0, 10.0), Segment("run", 4.0, 15.0)]}
    found = [("a", 0.0, 10.0, 0.9), ("a", 2.0, 12.0, 0.8)]
    assert ap(found, truth) == 1
    assert ap(found, truth, matcher="pascal") == 0.5


def test_the_order_of_the_ground_truth_counts() -> None:
    """2-10 suits both best (8/10 and 6/8); what is left, 0-7, is enough for the wide one only (7/10, not 3/10)."""
    wide, narrow = Segment("run", 0.0, 10.0), Segment("run", 4.0, 10.0)
    found = [("a", 2.0, 10.0, 0.9), ("a", 0.0, 7.0, 0.8)]
    assert ap(found, {"a": [narrow, wide]}) == 1
    assert ap(found, {"a": [wide, narrow]}) == 0.5


@BOTH
def test_what_only_overlaps_a_disputed_interval_does_not_count(matcher: Matcher) -> None:
    truth: Truth = {"a": [*TWO["a"], Segment(None, 20.0, 30.0)]}
    perfect = [("a", 0.0, 4.0, 0.5), ("a", 10.0, 14.0, 0.4)]
    assert ap([("a", 29.9, 90.0, 0.9), *perfect], truth, matcher=matcher) == 1
    assert ap([("a", 30.0, 90.0, 0.9), *perfect], truth, matcher=matcher) < 1  # touches it only
    assert ap([("b", 29.9, 90.0, 0.9), *perfect], truth, matcher=matcher) < 1  # of another video


@BOTH
def test_what_matches_counts_though_it_overlaps_a_disputed_interval(matcher: Matcher) -> None:
    truth: Truth = {"a": [Segment("run", 0.0, 4.0), Segment(None, 0.0, 9.0)]}
    assert ap([("a", 0.0, 4.0, 0.5)], truth, matcher=matcher) == 1


@BOTH
def test_equal_scores_keep_the_order_given_in_a_video_and_that_of_names_between(matcher: Matcher) -> None:
    truth: Truth = {"b": [Segment("run", 0.0, 4.0)]}
    right, wrong = ("b", 0.0, 4.0, 0.5), ("b", 50.0, 54.0, 0.5)
    assert ap([right, wrong], truth, matcher=matcher) == 1
    assert ap([wrong, right], truth, matcher=matcher) == 0.5
    for found in ([right, ("c", 0.0, 4.0, 0.5)], [("c", 0.0, 4.0, 0.5), right]):
        assert ap(found, truth, matcher=matcher) == 1
    for found in ([right, ("a", 0.0, 4.0, 0.5)], [("a", 0.0, 4.0, 0.5), right]):
        assert ap(found, truth, matcher=matcher) == 0.5


def test_of_equal_overlaps_th14_takes_the_higher_score() -> None:
    """The ground truth overlaps both halves by 1/2; wrong before right would be worth 0.5."""
    assert ap([("a", 2, 4, 0.5), ("a", 0, 2, 0.6)], {"a": [Segment("run", 0.0, 4.0)]}, alpha=0.4) == 1


def test_a_class_without_detections_counts_as_zero_and_one_without_ground_truth_not() -> None:
    truth: Truth = {"a": [Segment("run", 0.0, 4.0), Segment("jump", 0.0, 4.0)]}
    found = [Detection("a", 0.0, 4.0, label, 0.5) for label in ("run", "sit")]
    values = temporal_average_precisions(found, truth)
    assert {label: value.tolist() for label, value in values.items()} == {"jump": [0] * 5, "run": [1] * 5}
    assert mean_over_classes(values).tolist() == [0.5] * 5


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_thresholds_that_mean_nothing_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        ap([], TWO, alpha=alpha)


def test_no_ground_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="no video has an annotated interval"):
        temporal_average_precisions([], {"a": [Segment(None, 0.0, 1.0)], "b": []})


@settings(deadline=None)
@given(cases())
def test_iou_of_intervals_counts_seconds(case: tuple[list[Detection], Truth]) -> None:
    """Intervals as sets of whole seconds."""
    detections, truth = case
    segments = [segment for own in truth.values() for segment in own]
    one = np.array([(s.start, s.end) for s in segments])
    other = np.array([(d.start, d.end) for d in detections]).reshape(-1, 2)
    seconds = [[set(range(int(a), int(b))) for a, b in side] for side in (one, other)]
    expected = [[len(a & b) / len(a | b) for b in seconds[1]] for a in seconds[0]]
    np.testing.assert_allclose(temporal_iou(one, other), np.reshape(expected, (len(one), len(other))))


@settings(deadline=None)
@given(cases(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_suppression_leaves_what_no_better_one_covers(case: tuple[list[Detection], Truth], most: float) -> None:
    detections, _ = case
    stays: list[int] = []
    for k in sorted(range(len(detections)), key=lambda k: (-detections[k].score, k)):
        one = detections[k]
        rivals = [detections[j] for j in stays]
        if all((r.video, r.label) != (one.video, one.label) or iou(r, one) <= most for r in rivals):
            stays.append(k)
    found = suppress(detections, iou=most)
    assert found == [detections[k] for k in sorted(stays)]
    assert suppress(found, iou=most) == found


def test_suppression_refuses_an_overlap_that_means_nothing() -> None:
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        suppress([], iou=-0.1)


@pytest.mark.parametrize(("start", "end", "score"), [(2.0, 2.0, 1.0), (3.0, 2.0, 1.0), (0.0, 1.0, float("nan"))])
def test_detections_that_mean_nothing_are_refused(start: float, end: float, score: float) -> None:
    with pytest.raises(ValueError, match="run in a"):
        Detection("a", start, end, "run", score)


NUMBERS = {"run": 1, "jump": 7}
names = st.text(string.ascii_letters + "_. é", min_size=1).filter(lambda name: name == name.strip())


@settings(deadline=None)
@given(
    st.lists(st.tuples(names, st.floats(0, 1e6), st.floats(1e-3, 1e3), st.sampled_from([*NUMBERS]), st.floats(0, 1)))
)
def test_files_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float, float, str, float]]
) -> None:
    path = tmp_path_factory.mktemp("detections") / "all.txt"
    detections = [Detection(video, start, start + length, label, score) for video, start, length, label, score in rows]
    write_detections(path, detections, numbers=NUMBERS)
    assert read_detections(path, numbers=NUMBERS) == detections
    assert [entry.name for entry in path.parent.iterdir()] == ["all.txt"]


def test_the_official_form_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "found.txt"
    write_detections(path, [Detection("video_test_0000004", 0.2, 1.5, "jump", np.float32(0.5))], numbers=NUMBERS)
    assert path.read_text() == "video_test_0000004 0.2 1.5 7 0.5\n"
    path.write_text("video_test_0000004  0.2 1.5 7 5e-1 \r\n\n")
    assert read_detections(path, numbers=NUMBERS) == [Detection("video_test_0000004", 0.2, 1.5, "jump", 0.5)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 0 1 1", "line 1 .* is not a detection"),
        ("a 0 x 1 0.5", "line 1 .* is not a detection"),
        ("a 0 1 2 0.5", "line 1 .* has the class 2"),
        ("a 3 1 1 0.5", "line 1 .* reversed"),
        ("a 0 1 1 nan", "line 1 .* must be finite"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "found.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_detections(tmp_path / "found.txt", numbers=NUMBERS)


def test_files_that_cannot_be_written_or_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.txt"
    with pytest.raises(ValueError, match="'sit' .* has no number"):
        write_detections(path, [Detection("a", 0, 1, "sit", 0.5)], numbers=NUMBERS)
    with pytest.raises(ValueError, match="white space"):
        write_detections(path, [Detection("a ", 0, 1, "run", 0.5)], numbers=NUMBERS)
    with pytest.raises(ValueError, match="no file of detections"):
        read_detections(path, numbers=NUMBERS)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a text file"):
        read_detections(path, numbers=NUMBERS)


@pytest.fixture(scope="module")
def thumos14(shared_data: Path) -> Truth:
    """The official intervals for validation, in the order of the class list and of the files."""
    folder = shared_data / "annotations" / "thumos14" / "annotation_val"
    truth: Truth = {}
    for label in [*(folder / "detclasslist.txt").read_text().split()[1::2], "Ambiguous"]:
        for line in (folder / f"{label}_val.txt").read_text().splitlines():
            video, start, end = line.split()
            segment = Segment(None if label == "Ambiguous" else label, float(start), float(end))
            truth.setdefault(video, []).append(segment)
    return truth


def as_detections(truth: Truth, rng: np.random.Generator) -> list[Detection]:
    """The labelled intervals, with scores in tenths, which tie."""
    return [
        Detection(video, segment.start, segment.end, segment.label, rng.integers(10) / 10)
        for video, segments in truth.items()
        for segment in segments
        if segment.label is not None
    ]


def test_thumos14_found_as_annotated_has_one(thumos14: Truth, rng: np.random.Generator) -> None:
    """Every class, at every threshold, and no less with all that is disputed found too, surer than the rest."""
    detections = as_detections(thumos14, rng)
    assert len(detections) == 3007
    disputed = [
        Detection(video, segment.start, segment.end, "Diving", 2.0)
        for video, segments in thumos14.items()
        for segment in segments
        if segment.label is None
    ]
    values = temporal_average_precisions([*disputed, *detections], thumos14)
    assert len(values) == 20
    assert len(disputed) > 80
    np.testing.assert_array_equal(list(values.values()), np.ones((20, 5)))


@BOTH
def test_thumos14_found_roughly_is_what_the_loops_say(
    thumos14: Truth, rng: np.random.Generator, matcher: Matcher
) -> None:
    """Moved and stretched intervals, each twice, of three classes and in every third video."""
    labels = ("CliffDiving", "Diving", "Shotput")
    truth = {video: segments for number, (video, segments) in enumerate(thumos14.items()) if number % 3 == 0}
    detections = [
        Detection(one.video, one.start + moved, one.end + moved + longer, one.label, one.score)
        for one in as_detections(truth, rng) * 2
        for moved, longer in [rng.exponential((1.0, 2.0)).tolist()]
        if one.label in labels
    ]
    values = temporal_average_precisions(detections, truth, matcher=matcher)
    for label in labels:
        expected = [slow_average_precision(detections, truth, label, a / 10, matcher) for a in range(1, 6)]
        np.testing.assert_allclose(values[label], expected, rtol=1e-12)
        assert 0 < values[label][-1] < values[label][0] < 1
