"""What a stage does with the team's shared store: it looks there before it computes, and publishes what it computed.

The order is local store, shared store, computing. What is damaged in the shared store is named and computed, and in
read-write mode replaced.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.config import StoreConfig
from pipeline.stores.damage import DamagedArtifact, Notes, damaged
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import Sample, ShardWriter, samples
from pipeline.stores.provenance import check_address
from pipeline.stores.shared import Kind, SharedStore


@dataclass(frozen=True)
class Sharing:
    """The shared store as one job uses it; without one, a teammate who has nothing to give and takes nothing."""

    store: SharedStore | None = None
    in_place: bool = False
    """Whether flow is left where it is found."""
    notes: Path | None = None
    """Folder of the notes about damage; what they name is not taken."""
    _broken: set[str] = field(default_factory=set)
    """Keys of damaged objects."""

    @classmethod
    def of(cls, config: StoreConfig, *, notes: Path | None = None) -> Sharing:
        """As the configuration has it.

        Raises:
            ValueError: the address is none, or a library is missing.
        """
        if config.shared is None:
            return cls(notes=notes)
        store = SharedStore(config.shared, writable=config.mode == "read-write")
        return cls(store, config.access == "in-place", notes, Notes(notes).keys() if notes else set())

    def arrays(self, root: Path) -> FlowStore:
        """A local store, through which what is not in it is read in the shared one if that is how that is used."""
        return FlowStore(root, shared=self.store if self.in_place else None)

    def take_flow(self, arrays: FlowStore, key: str) -> bool:
        """Make the shared array of a key readable through ``arrays``; False if there is none that is whole."""
        if self.store is None or key in self._broken or not self.store.has("flow", key):
            return False
        try:
            if self.in_place:
                arrays.attributes(key)
            else:
                with self.store.local("flow", key, folder=arrays.root) as archive:
                    arrays.adopt(key, archive)
        except FileNotFoundError:  # somebody has removed it since it was asked for
            return False
        except DamagedArtifact as error:
            if self.store.has("flow", key):
                self._refuse("flow", key, error)
            return False
        return True

    def give_flow(self, arrays: FlowStore, key: str) -> int:
        """Publish a local array, if this job may and nobody has.

        Returns:
            Bytes that were published; 0 if nothing was to be done.

        Raises:
            DamagedArtifact: the local array is damaged; nothing is published.
        """
        store = self._wanting("flow", key)
        if store is None:
            return 0
        with store.incoming("flow", key, folder=arrays.root) as archive:
            size = arrays.pack(key, archive)
            self._make_way("flow", key)
        return size

    def take_frames(self, writer: ShardWriter, key: str, *, video_id: str, folder: Path) -> Sample | None:
        """Write the shared frames of a key into a shard; None if there are none that are whole.

        Args:
            writer: of the shard.
            key: artifact key.
            video_id: whose frames they are here.
            folder: where a copy may lie meanwhile.
        """
        if self.store is None or key in self._broken or not self.store.has("frames", key):
            return None
        try:
            with self.store.local("frames", key, folder=folder) as tar, tar.open("rb") as file:
                (sample,) = samples(tar)
                check_address(key, sample.metadata)
                return writer.repack(file.fileno(), sample, video_id=video_id)
        except FileNotFoundError:  # somebody has removed it since it was asked for
            return None
        except ValueError as error:
            self._refuse("frames", key, error)
            return None

    def give_frames(self, source: BinaryIO, sample: Sample, *, folder: Path) -> None:
        """Publish a sample of a shard, if this job may and nobody has.

        Args:
            source: the shard, which may be the one that is being written.
            sample: of it.
            folder: where the object may lie until it is whole.

        Raises:
            DamagedArtifact: the sample is damaged; nothing is published.
        """
        key = sample.artifact_key
        if store := self._wanting("frames", key):
            source.flush()
            with store.incoming("frames", key, folder=folder) as path, path.open("w+b") as file:
                writer = ShardWriter(file, folder=folder)
                try:
                    writer.repack(source.fileno(), sample, video_id=key)
                except ValueError as error:
                    raise damaged("frames", key=key, file=folder, reason=error) from None
                writer.finish()
                self._make_way("frames", key)

    def _wanting(self, kind: Kind, key: str) -> SharedStore | None:
        """The store if the object should be written."""
        if self.store is None or not self.store.writable:
            return None
        return None if key not in self._broken and self.store.has(kind, key) else self.store

    def _make_way(self, kind: Kind, key: str) -> None:
        """Take a damaged object away, now that there is a whole one."""
        assert self.store is not None
        if key in self._broken:
            self.store.remove(kind, key)
            self._broken.discard(key)

    def _refuse(self, kind: Kind, key: str, error: Exception) -> None:
        assert self.store is not None
        self._broken.add(key)
        told = f"{self.store.where(kind, key)} is not used: {error}"
        print(told, file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a job is told of stores beside its own."""
    section = StoreConfig.model_validate_json
    parser.add_argument("--sharing", type=section, default=StoreConfig(), help="the section store as JSON")
    parser.add_argument("--damaged", type=Path, help="folder of notes about damage")
