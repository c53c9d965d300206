"""Recipes and artifact keys: what a result depends on, as a short hash.

A recipe names *how* something is made: stage, stage version, parameters, upstream recipes. It stands in the path of the
receipts, so a changed parameter means other files, and changing it back finds the old ones. An artifact key adds *from
what*: the digest of the source. It is the address in a store. Labels and splits are in neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.config import canonical

# Bump a stage's version when its results change for equal inputs and parameters; golden tests catch a forgotten bump.
# Not a hash of the source: a reworded comment must not throw away weeks of optical flow.
VERSIONS = {
    "probe": 1,
    "frames": 2,
    "flow": 2,
    "warped_flow": 2,
    "imported_flow": 1,
    "imported_warped_flow": 1,
    "manifest": 2,
    "index": 2,
    "san": 1,
    "features": 1,
    "train": 2,
    "predict": 2,
    "baseline": 1,
    "evaluate": 3,
    "report": 4,
}

# Stages that go by what probing found about a video, beside its bytes.
PROBED = ("frames", "flow", "warped_flow")


def maker(stage: str, parameters: BaseModel | Mapping[str, Any]) -> str:
    """The stage in whose name the results of ``stage`` have their addresses.

    Imported flow has a name of its own, so that it is never taken for what would be computed here.
    """
    values = parameters if isinstance(parameters, Mapping) else dict(parameters)
    return f"imported_{stage}" if values.get("imported") is not None else stage


def recipe(stage: str, parameters: BaseModel | dict[str, Any], *upstream: str) -> str:
    """The short name of how a stage works: 12 hexadecimal digits.

    Args:
        stage: a key of ``VERSIONS``.
        parameters: the stage's part of the configuration.
        upstream: recipes or digests that the stage's results depend on.
    """
    return _hash(stage, *_versions(stage), json.loads(canonical(parameters)), *upstream, size=6)


def artifact_key(
    stage: str, parameters: BaseModel | dict[str, Any], *digests: str, versions: list[int] | None = None
) -> str:
    """The address of one video's result: 32 hexadecimal digits.

    Args:
        stage: a key of ``VERSIONS``.
        parameters: the stage's part of the configuration.
        digests: digests of the inputs' bytes.
        versions: of the stage and of probing, for a result of another time; None takes today's.
    """
    return _hash(stage, *(versions or _versions(stage)), json.loads(canonical(parameters)), *digests, size=16)


def _versions(stage: str) -> list[int]:
    return [VERSIONS[stage], VERSIONS["probe"]] if stage in PROBED else [VERSIONS[stage]]


def _hash(*parts: Any, size: int) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
