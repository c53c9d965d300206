"""The project's own checkpoints: a model that says how it was built, which classes it knows, and how it was trained.

A file is one dict written by torch.save:

    format      "wherewhen"
    version     1
    build       the keywords of `models.build.build`, JSON-able
    classes     class names in the order of the logits
    state_dict  the weights, on the CPU
    extra       what the writer adds: settings, split, seed, version of the program; plain data and tensors

Writes are atomic and the same content gives the same bytes. Reading uses `weights_only=True`, so it cannot run code.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.build import Model
from models.build import build as build_model
from models.weights import read_torch_file, strip, write_torch_file

FORMAT = "wherewhen"
VERSION = 1
WHERE_WEIGHTS_CAME_FROM = {"pretrained", "san_pretrained"}
"""Keywords of `build` that do not say what a model is."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file read back: the rebuilt model with its weights, on the CPU, in training mode as after `build`."""

    model: Model
    build: dict[str, Any]
    classes: tuple[str, ...]
    extra: dict[str, Any]


def save_checkpoint(
    path: str | Path,
    *,
    model: nn.Module,
    build: Mapping[str, Any],
    classes: Sequence[str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model`, made by `models.build.build(**build)`, to `path` in one atomic step.

    Raises ValueError when `build` is not JSON-able, `classes` do not fit it, or `extra` holds what cannot be read back
    safely (numpy arrays and scalars, own classes).
    """
    if not _survives_json(dict(build)):
        raise ValueError(f"build={dict(build)} does not survive JSON; use plain strings, numbers and lists")
    if len(classes) != build["num_classes"]:
        raise ValueError(f"{len(classes)} class names do not fit a model of {build['num_classes']} classes")
    extra = dict(extra or {})
    _check_plain(extra, where="extra")
    payload = {
        "format": FORMAT,
        "version": VERSION,
        "build": dict(build),
        "classes": list(classes),
        "state_dict": {strip(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "extra": extra,
    }
    write_torch_file(path, payload)


def load_checkpoint(
    path: str | Path,
    *,
    expect_build: Mapping[str, Any] | None = None,
    expect_classes: Sequence[str] | None = None,
) -> Checkpoint:
    """Read a file of `save_checkpoint` and rebuild its model; the pretrained file it started from is not needed.

    Give `expect_*` to be sure: ValueError names every difference (where the first weights came from does not count).
    ValueError also when the file is no such checkpoint or its weights do not fit its own build.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a {FORMAT} checkpoint; published weights are loaded with build(pretrained=...)"
        )
    if content["version"] != VERSION:
        raise ValueError(f"{path} has checkpoint version {content['version']}, this program reads {VERSION}")
    build, classes = content["build"], tuple(content["classes"])
    _check_expected(path, build, classes, expect_build=expect_build, expect_classes=expect_classes)
    with torch.random.fork_rng(devices=[]):  # the weights are overwritten: do not spend the caller's random numbers
        model = build_model(**build, read_pretrained=False)
    try:
        load_state(model, content["state_dict"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Checkpoint(model=model, build=build, classes=classes, extra=content["extra"])


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state`, with or without the prefix of a wrapper such as "module.", into `model`, all of it or nothing.

    Raises ValueError naming the first names and shapes that differ.
    """
    source = {strip(name): tensor for name, tensor in state.items()}
    target = {strip(name): tensor for name, tensor in model.state_dict().items()}
    missing = [name for name in target if name not in source]
    left_over = [name for name in source if name not in target]
    shapes = [
        f"{name} {tuple(source[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    faults = [("missing", missing), ("left over", left_over), ("of another shape", shapes)]
    found = [f"{len(names)} {fault} ({', '.join(names[:3])})" for fault, names in faults if names]
    if found:
        raise ValueError(f"these weights belong to another model: {'; '.join(found)}")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def _check_expected(
    path: str | Path,
    build: Mapping[str, Any],
    classes: Sequence[str],
    *,
    expect_build: Mapping[str, Any] | None,
    expect_classes: Sequence[str] | None,
) -> None:
    differences = []
    if expect_build is not None:
        names = sorted((build.keys() | expect_build.keys()) - WHERE_WEIGHTS_CAME_FROM)
        differences += [
            f"{name} is {build.get(name)!r} instead of {expect_build.get(name)!r}"
            for name in names
            if build.get(name) != expect_build.get(name)
        ]
    if expect_classes is not None and list(classes) != list(expect_classes):
        odd = sorted(set(classes) ^ set(expect_classes))
        differences.append(f"its classes differ ({', '.join(odd[:3]) if odd else 'same names, another order'})")
    if differences:
        raise ValueError(f"{path} is a checkpoint of another model: {'; '.join(differences)}")


def _survives_json(value: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except TypeError:
        return False


def _check_plain(value: Any, *, where: str) -> None:
    """Refuse at writing time what `weights_only` reading would refuse after the training is over."""
    if value is None or type(value) in (str, bool, int, float, bytes) or isinstance(value, Tensor):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, where=f"a key of {where}")
            _check_plain(item, where=f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, where=f"{where}[{index}]")
    else:
        raise ValueError(f"{where} is a {type(value).__name__}, which cannot be read back safely; store plain data")
