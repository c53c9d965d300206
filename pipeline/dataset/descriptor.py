"""What is known of a published dataset before anyone has it: data_manifests/<dataset>.yaml, and a check against it.

A descriptor is for people and for one check: that the annotation files a user points to are the official ones. Builders
read no descriptor; another set of annotations in the same format is read like the official one, and a note says so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.dataset.builders.found import named

FOLDER = Path(__file__).parents[2] / "data_manifests"

Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Annotations(_Part):
    """The annotation files of a dataset."""

    from_: Text = Field(alias="from", description="where to get them")
    checksums_from: Text | None = Field(None, description="the repository whose files were summed")
    sha256: dict[Text, Sha256 | None] = Field(
        default_factory=dict, description="by path below the folder; null where no official file was at hand"
    )


class Descriptor(_Part):
    """A published dataset."""

    title: Text
    about: Text = Field(description="what it is, in a few sentences")
    home: Text = Field(description="its page")
    licence: Text = Field(description="as the page states it, or that it states none")
    citation: Text
    layout: Text = Field(description="tree of the folders, with the keys of the configuration that lead there")
    videos: Count | None = Field(description="number of videos; null where releases differ")
    splits: dict[Text, dict[Text, Count]] = Field(
        default_factory=dict, description="videos by split and part: train, val, test, unused"
    )
    classes: tuple[Text, ...] = Field((), description="in the dataset's own order; none for pairs of images")
    annotations: Annotations


def describe(dataset: str) -> Descriptor | None:
    """The descriptor of a dataset, or None if it has none, as own videos and the demo.

    Args:
        dataset: a value of the key ``dataset``.

    Raises:
        ValueError: the file is no descriptor.
    """
    path = FOLDER / f"{dataset}.yaml"
    if not path.is_file():
        return None
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Descriptor.model_validate(values)
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path} is not a descriptor: {' '.join(str(error).split())}") from None


def absent(descriptor: Descriptor, annotations: Path) -> list[str]:
    """The official annotation files that are not in a folder, by their paths below it."""
    return [name for name in descriptor.annotations.sha256 if not (annotations / name).is_file()]


def unofficial(descriptor: Descriptor, annotations: Path) -> tuple[str, ...]:
    """Sentences on annotation files that are absent or not the official ones.

    It may be meant: another dataset in the same format has other files. So they are notes, and only a builder that
    needs an absent file fails.

    Args:
        descriptor: of the dataset.
        annotations: folder of its annotation files. A file is looked for below it by the path in the descriptor.
    """
    expected = descriptor.annotations.sha256
    away = absent(descriptor, annotations)
    other = [
        name
        for name, sha256 in expected.items()
        if sha256 and name not in away and hashlib.sha256((annotations / name).read_bytes()).hexdigest() != sha256
    ]
    notes = []
    if away:
        notes.append(
            f"{len(away)} of {len(expected)} official annotation files of {descriptor.title} are not in {annotations}: "
            f"{named(away)}; they come from {descriptor.annotations.from_}"
        )
    if other:
        verb = "has" if len(other) == 1 else "have"
        notes.append(f"of the annotation files in {annotations}, {named(other)} {verb} not the official content")
    return tuple(notes)
