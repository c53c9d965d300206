"""Provenance: what an artifact says of itself, and a reader's comparison of it with what it asked for.

Every artifact carries ``artifact_key``, ``stage``, ``stage_version``, ``probe_version`` (if the stage goes by what
probing found), ``parameters``, ``source_digest`` (BLAKE2b of the video's bytes; of features the artifact key of the
frames or flow that were looked at), ``code`` (the version of this package) and ``software`` (those of the libraries
that its bytes may depend on). The key is a hash of all but the last two, so an artifact that lies under another address
than its own is found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import __version__
from pipeline.dataset.keys import PROBED, VERSIONS, artifact_key
from pipeline.stores.damage import DamagedArtifact


def provenance(stage: str, *, parameters: dict[str, Any], digest: str, software: dict[str, str]) -> dict[str, Any]:
    """What an artifact that is made now says of itself, but for its key.

    Args:
        stage: that makes it.
        parameters: the stage's settings, JSON values.
        digest: of the source's bytes.
        software: versions of libraries by name.
    """
    return {
        **written_by(stage),
        "parameters": parameters,
        "source_digest": digest,
        "software": software,
    }


def made_by(stage: str) -> dict[str, Any]:
    """What a reader asks of the artifacts of a stage."""
    probed = {"probe_version": VERSIONS["probe"]} if stage in PROBED else {}
    return {"stage": stage, "stage_version": VERSIONS[stage], **probed}


def written_by(stage: str) -> dict[str, Any]:
    """What a file says of the program that wrote it."""
    return {**made_by(stage), "code": f"wherewhen {__version__}"}


def check_address(key: str, attributes: Mapping[str, Any]) -> None:
    """Check that an artifact lies under the address of what it says of itself.

    Raises:
        ValueError: it does not, or does not say enough.
    """
    try:
        stage, parameters, digest = (attributes[name] for name in ("stage", "parameters", "source_digest"))
        versions = [attributes[name] for name in ("stage_version", "probe_version") if name in attributes]
        own = artifact_key(stage, parameters, digest, versions=versions)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it does not say of itself what it is: {error}") from None
    if own != key:
        raise ValueError(f"what it says of itself has the address {own}")


def refuse_other(
    what: str, key: str, *, found: Mapping[str, Any], wanted: Mapping[str, Any], all_of: bool = False
) -> None:
    """Refuse an artifact that was made otherwise than a reader wants.

    Args:
        what: "flow", "frames" or "features", for the message.
        key: artifact key.
        found: what the artifact says of itself.
        wanted: what is asked for.
        all_of: whether it must say nothing else.

    Raises:
        DamagedArtifact: it was; the message names the fields and both values.
    """
    names = sorted({*found, *wanted} if all_of else wanted)
    if other := [name for name in names if found.get(name) != wanted.get(name)]:
        told = ", ".join(f"{name} {found.get(name)!r} where {wanted.get(name)!r} is wanted" for name in other)
        raise DamagedArtifact(f"{what} {key} was made with {told}; use the index of this experiment's own {what}")
