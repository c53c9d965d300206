"""Importing folders of flow: codes and provenance kept, what is odd refused in a sentence, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr

from pipeline.config import FlowConfig
from pipeline.dataset.keys import artifact_key
from pipeline.media.errors import UnusableVideo
from pipeline.optical_flow.quantise import quantise
from pipeline.stores.flow import FlowStore
from pipeline.stores.folders import match_folders
from pipeline.stores.imports import import_flow, import_folder, imported_facts

DIGEST = "d" * 32
HEIGHT, WIDTH = 12, 20


def section(tool: str, *, bound: float = 20.0, step: int = 1, reverse: bool = False, **stated: Any) -> FlowConfig:
    values = {"bound": bound, "step": step, "reverse": reverse, "imported": {"tool": tool, **stated}}
    return FlowConfig.model_validate(values)


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """(count, 2, H, W) uint8, kind to JPEG."""
    coarse = np.random.default_rng(seed).integers(60, 200, (count, 2, 3, 5), np.uint8)
    return np.stack([[cv2.resize(p, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for p in f] for f in coarse])


def write_folder(folder: Path, fields: np.ndarray, config: FlowConfig) -> Path:
    folder.mkdir(parents=True)
    layout = config.layout
    assert layout is not None
    for index, field in enumerate(fields):
        for component, plane in zip("xy", field, strict=True):
            cv2.imwrite(str(folder / layout.flow_name(component, index)), plane)  # type: ignore[arg-type]
    return folder


def key_of(config: FlowConfig, stage: str = "imported_flow", digest: str = DIGEST) -> str:
    return artifact_key(stage, config, digest)


def read_all(store: Path, config: FlowConfig, digest: str = DIGEST) -> np.ndarray:
    return np.asarray(zarr.open_array(FlowStore(store).path(key_of(config, digest=digest)), mode="r")[:])


TOOLS = [
    section("denseflow", bound=32.0),
    section("denseflow", step=2),
    section("denseflow", reverse=True),
    section("dense_flow", bound=15.0),
    section("dense_flow", step=3, images="png"),
    section("mmaction2"),
    section("mmaction2", first_number=0),
]


@pytest.mark.parametrize("config", TOOLS)
def test_the_codes_are_those_of_the_images(config: FlowConfig, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", smooth(5), config)
    (folder / "img_00001.jpg").write_bytes(b"not looked at")
    told = import_folder(folder, arrays=FlowStore(tmp_path / "store"), digest=DIGEST, config=config)
    found, layout = read_all(tmp_path / "store", config), config.layout
    assert layout is not None
    for index, field in enumerate(found):
        for component, plane in zip("xy", field, strict=True):
            image = cv2.imread(str(folder / layout.flow_name(component, index)), cv2.IMREAD_UNCHANGED)  # type: ignore[arg-type]
            assert (plane == image).all()
    assert (found == smooth(5)).all() == (layout.suffix == "png")
    assert told["lossy"] == {"png": None, "jpg": "JPEG"}[layout.suffix]
    assert np.abs(found.astype(int) - smooth(5)).max() <= 12
    assert (told["frames"], told["height"], told["width"], told["bound"]) == (5, HEIGHT, WIDTH, config.bound)
    assert (told["stage"], told["source_digest"]) == ("imported_flow", DIGEST)
    assert FlowStore(tmp_path / "store").verify(key_of(config)) > 0


@pytest.mark.parametrize(
    ("config", "alignment"),
    [
        (section("denseflow", step=2), "flow[t]: frame t -> t+2"),
        (section("denseflow", step=2, reverse=True), "flow[t]: frame t+2 -> t"),
        (section("dense_flow"), "flow[t]: frame t -> t+1"),
        (section("dense_flow", step=3), "flow[t]: frame 3*t -> 3*t+3"),
        (
            section("dense_flow", step=3, own_images=True),
            "flow[t]: frame t -> t+1, frames being dense_flow's own images",
        ),
    ],
)
def test_the_alignment_is_told(config: FlowConfig, alignment: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", smooth(4), config)
    told = import_folder(folder, arrays=FlowStore(tmp_path), digest=DIGEST, config=config)
    assert told["alignment"] == alignment


def test_flow_between_dense_flows_own_images_lacks_the_first_pair(tmp_path: Path) -> None:
    """Its image k is the later frame of pair k, so that pair k + 1 leads from image k to image k + 1."""
    config = section("dense_flow", images="png", own_images=True)
    fields = smooth(6)
    import_folder(
        write_folder(tmp_path / "in", fields, config), arrays=FlowStore(tmp_path), digest=DIGEST, config=config
    )
    assert (read_all(tmp_path, config) == fields[1:]).all()
    probed = {"path": str(tmp_path / "in"), "frames": 6, "fps": 25.0}
    assert imported_facts(probed, {"frames": 5}, config) == {"fps": 25.0}


def test_what_the_codes_mean() -> None:
    """The stated inverse undoes each tool's quantiser to within half a code; zero is 128 or 127."""
    flow = np.linspace(-19.9, 19.9, 1001, dtype=np.float32)
    truncated = ((np.clip(flow, -20, 20) + 20) * (255 / 40.0)).astype(np.uint8)
    from pipeline.stores.imports import attributes

    for tool, codes, zero in (("dense_flow", quantise(flow), 128), ("mmaction2", truncated, 127)):
        told = attributes(section(tool), stage="flow")
        assert told["inverse"] == "v = 2 * bound * (q + code_shift) / 255 - bound"
        back = 2 * 20 * (codes + told["code_shift"]) / 255 - 20
        assert np.abs(back - flow).max() <= 20 / 255 + 1e-5
        assert codes[500] == zero


def test_keys_tell_apart_whose_flow_it_is() -> None:
    own = FlowConfig(size=(20, 12))
    configs = [*TOOLS, section("denseflow", bound=20.0), section("dense_flow", bound=15.0, solver="opencv-cuda")]
    keys = [key_of(config) for config in configs]
    keys += [key_of(config, stage="imported_warped_flow") for config in configs]
    assert len({*keys, key_of(own, stage="flow")}) == len(keys) + 1


def test_the_clipped_vectors_are_counted(tmp_path: Path) -> None:
    config = section("dense_flow", images="png")
    fields = np.full((2, 2, HEIGHT, WIDTH), 128, np.uint8)
    fields[0, 0, :3], fields[0, 1, :6], fields[1, 1, :, :5] = 255, 0, 254
    told = import_folder(
        write_folder(tmp_path / "in", fields, config), arrays=FlowStore(tmp_path), digest=DIGEST, config=config
    )
    assert told["clipped_fraction"] == pytest.approx(0.25)


def test_mmaction2s_own_example(shared_data: Path, tmp_path: Path) -> None:
    config = section("mmaction2")
    folder = shared_data / "clips/mmaction2_imgs_flow"
    told = import_folder(folder, arrays=FlowStore(tmp_path), digest=DIGEST, config=config)
    assert (told["frames"], told["height"], told["width"]) == (5, 240, 320)
    found = read_all(tmp_path, config)
    for t in range(5):
        for c, name in enumerate("xy"):
            assert (found[t, c] == cv2.imread(f"{folder}/{name}_{t + 1:05d}.jpg", cv2.IMREAD_GRAYSCALE)).all()


Damage = Callable[[Path], Any]


def rewrite(name: str, image: np.ndarray) -> Damage:
    return lambda folder: cv2.imwrite(str(folder / name), image)


def cut(name: str, part: float) -> Damage:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(part * len(data))])

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "flow_x_00003.jpg").unlink(), "it holds 4 images of x and 5 of y"),
        (lambda folder: [(folder / f"flow_{c}_00003.jpg").unlink() for c in "xy"], "gap: 'flow_x_00003.jpg' is not"),
        (
            lambda folder: [(folder / f"flow_{c}_0000{n}.jpg").unlink() for c, n in ("x3", "y4")],
            "gap: 'flow_x_00003.jpg' is not there",
        ),
        (
            lambda folder: [(folder / f"flow_{c}_00001.jpg").unlink() for c in "xy"],
            "begin with 2 where first_number is 1",
        ),
        (
            lambda folder: [f.rename(f.with_name(f"flow_{f.name}")) for f in [*folder.iterdir()]],
            "no 'flow_x_00001.jpg'",
        ),
        (lambda folder: [f.unlink() for f in [*folder.iterdir()]], "no 'flow_x_00001.jpg'; it is empty"),
        (rewrite("flow_y_00004.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "'flow_y_00004.jpg' has 3 channels"),
        (rewrite("flow_y_00004.jpg", np.zeros((HEIGHT, 8), np.uint8)), "'flow_y_00004.jpg' is 8x12 where .* 20x12"),
        (cut("flow_x_00005.jpg", 0.7), "'flow_x_00005.jpg' is cut short"),
        (cut("flow_x_00005.jpg", 0.0), "'flow_x_00005.jpg' is cut short"),
        (lambda folder: (folder / "flow_x_00002.jpg").write_bytes(b"\xff\xd9" * 40), "is no image that can be read"),
        (
            lambda folder: [(folder / "flow_x_00002.jpg").unlink(), (folder / "flow_x_00002.jpg").mkdir()],
            "'flow_x_00002.jpg' cannot be read: Is a directory",
        ),
    ],
)
def test_a_folder_that_is_not_as_stated_leaves_nothing(change: Damage, sentence: str, tmp_path: Path) -> None:
    config = section("dense_flow")
    folder = write_folder(tmp_path / "in", smooth(5), config)
    change(folder)
    with pytest.raises(UnusableVideo, match=sentence):
        import_folder(folder, arrays=FlowStore(tmp_path / "store"), digest=DIGEST, config=config)
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_16_bits_are_refused(tmp_path: Path) -> None:
    config = section("dense_flow", images="png")
    folder = write_folder(tmp_path / "in", smooth(2), config)
    cv2.imwrite(str(folder / "flow_x_00002.png"), np.zeros((HEIGHT, WIDTH), np.uint16))
    with pytest.raises(UnusableVideo, match="16 bits a pixel"):
        import_folder(folder, arrays=FlowStore(tmp_path), digest=DIGEST, config=config)


def row(name: str, path: str) -> dict[str, Any]:
    return {"id": name, "path": path, "digest": name * 8}


def test_folders_are_found_by_class_and_by_name(tmp_path: Path) -> None:
    for folder in ("flat", "run/a.b", "jump/a.b", "run/only", "run/extra", "alone", "run/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/zipped.h5").touch()
    (tmp_path / "list.txt").touch()
    videos = [
        ("1", "v/x/flat.avi"),
        ("2", "v/run/a.b.avi"),
        ("3", "v/jump/a.b.mp4"),
        ("4", "w/only.mkv"),
        ("5", "w/no.avi"),
    ]
    found = match_folders([(name, Path(path)) for name, path in videos], root=tmp_path)
    places = {name: str(folder.relative_to(tmp_path)) for name, folder in found.folders.items()}
    assert places == {"1": "flat", "2": "run/a.b", "3": "jump/a.b", "4": "run/only"}
    assert (found.missing, found.extra) == (("5",), ("alone", "run/extra"))
    assert found.files == ("list.txt", "run/zipped.h5")


@pytest.mark.parametrize(
    ("folders", "videos", "sentence"),
    [
        (["a"], ["x/a.avi", "y/a.avi"], "fits the videos '0' and '1'"),
        (["c/a", "d/a"], ["x/a.avi"], "'0' could have any of the folders .*c/a, .*d/a"),
        ([], [], "cannot be listed: No such file"),
    ],
)
def test_folders_that_cannot_be_told_apart_are_refused(
    folders: list[str], videos: list[str], sentence: str, tmp_path: Path
) -> None:
    for folder in folders:
        (tmp_path / "root" / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=sentence):
        match_folders([(str(i), Path(path)) for i, path in enumerate(videos)], root=tmp_path / "root")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_root_is_imported_once(processes: int, tmp_path: Path) -> None:
    config = section("dense_flow", images="png")
    for number, name in enumerate(("one", "two", "bad", "spare")):
        write_folder(tmp_path / "flow" / name, smooth(3, seed=number), config)
    (tmp_path / "flow/bad/flow_x_00002.png").unlink()
    videos = [row(name, f"v/{name}.avi") for name in ("one", "two", "bad", "gone")]
    options: dict[str, Any] = {"store": tmp_path / "store", "config": config, "processes": processes}
    first = import_flow(videos, tmp_path / "flow", **options)
    assert (first.done, first.already) == (("one", "two"), ())
    assert (first.matched.missing, first.matched.extra) == (("gone",), ("spare",))
    assert first.refused == {"bad": f"{tmp_path}/flow/bad: it holds 2 images of x and 3 of y; compute its flow again"}
    assert (read_all(tmp_path / "store", config, digest="two" * 8) == smooth(3, seed=1)).all()
    again = import_flow(videos, tmp_path / "flow", **options)
    assert (again.done, again.already, again.refused) == ((), ("one", "two"), first.refused)


def test_two_imports_give_the_same_bytes(tmp_path: Path) -> None:
    config = section("denseflow")
    folder = write_folder(tmp_path / "in", smooth(4), config)
    stores = [tmp_path / "a", tmp_path / "b"]
    for store in stores:
        import_folder(folder, arrays=FlowStore(store), digest=DIGEST, config=config)
    one, other = ({str(p.relative_to(s)): p.read_bytes() for p in s.rglob("*") if p.is_file()} for s in stores)
    assert one == other


@pytest.mark.parametrize(
    ("config", "frames", "fields", "fps"),
    [
        (section("denseflow"), 10, 9, 25.0),
        (section("denseflow", step=3), 10, 7, 25.0),
        (section("dense_flow", step=3), 10, 3, 25 / 3),
        (section("mmaction2"), 10, 7, 25.0),
        (section("mmaction2"), 10, 11, 25.0),
        (section("mmaction2"), 10, 6, None),
        (section("mmaction2"), 10, 12, None),
    ],
)
def test_the_number_of_fields_is_that_of_the_frames(
    config: FlowConfig, frames: int, fields: int, fps: float | None, tmp_path: Path
) -> None:
    probed = {"path": str(tmp_path / "clip.avi"), "frames": frames, "fps": 25.0}
    found = {"frames": fields}
    if fps is None:
        with pytest.raises(UnusableVideo, match=f"{fields} fields were imported for it where its 10 frames make 9"):
            imported_facts(probed, found, config)
        return
    assert imported_facts(probed, found, config) == {"fps": pytest.approx(fps)}


def test_images_are_counted_exactly(tmp_path: Path) -> None:
    """Of a folder of images the number of frames is sure; dense_flow's own lack the first."""
    probed = {"path": str(tmp_path), "frames": 10, "fps": 25.0}
    with pytest.raises(UnusableVideo, match="10 fields were imported for it where its 10 frames make 9"):
        imported_facts(probed, {"frames": 10}, section("dense_flow"))


def test_a_section_that_imports_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="flow.imported is not set"):
        import_flow([], tmp_path, store=tmp_path, config=FlowConfig(size=(9, 9)))


def test_an_array_that_has_lost_its_metadata_is_imported_again(tmp_path: Path) -> None:
    config = section("dense_flow", images="png")
    write_folder(tmp_path / "flow/one", smooth(3), config)
    options: dict[str, Any] = {"store": tmp_path / "store", "config": config}
    for _ in range(2):
        assert import_flow([row("one", "v/one.avi")], tmp_path / "flow", **options).done == ("one",)
        assert (read_all(tmp_path / "store", config, digest="one" * 8) == smooth(3)).all()
        next((tmp_path / "store").rglob("zarr.json")).unlink()
