"""Receipts of the features stage: which array holds the features of each video of a shard, and of which frames.

They say nothing of how the job went, so that one that finds everything in the store writes the same bytes, and no
training runs again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.stores.publish import write_text


@dataclass(frozen=True, kw_only=True)
class FeatureReceipt:
    """What one job on one shard vouches for."""

    store: str
    """Folder of the arrays."""
    parameters: dict[str, Any]
    """Of the arrays' keys: how the videos are sampled, and ``network``, a digest of what looks at them."""
    videos: dict[str, dict[str, Any]]
    """Facts by video id: ``key``; ``frames``, the number n of clips or frames in the array; ``shape`` of each;
    ``positions``, (n,), their first frames; ``source_frames``, length of the stored video; and what the index of the
    store that was read knows of ``width``, ``height`` and ``fps``."""

    def write(self, path: Path) -> None:
        """Write as JSON, atomically; equal receipts give equal bytes."""
        write_text(path, json.dumps({"stage": "features", **asdict(self)}, sort_keys=True, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> FeatureReceipt:
        """Read what ``write`` wrote.

        Raises:
            ValueError: the file is missing or not such a receipt.
        """
        try:
            values = json.loads(path.read_text())
            if values.pop("stage") != "features":
                raise KeyError("stage")
            return cls(**values)
        except FileNotFoundError:
            raise ValueError(f"there is no receipt of features {path}; run the features stage first") from None
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(f"{path} is not a receipt of features; delete it and run again") from None
