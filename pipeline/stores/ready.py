"""What a run does about its stores before it plans: their folders, a word about a new shared store, and damage."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import Config, StoreConfig
from pipeline.dataset.plan import stage_recipes
from pipeline.stores.heal import heal
from pipeline.stores.publish import make_folder
from pipeline.stores.shared import MARKER, SharedStore


def make_ready(config: Config, *, dry_run: bool) -> Iterator[str]:
    """Prepare the stores for a run; yields sentences for whoever started it.

    Args:
        config: of the run, whose work folder the caller has locked.
        dry_run: whether to change nothing.

    Raises:
        OSError: the shared store is needed and cannot be reached, or a folder cannot be made.
    """
    yield from _about_a_new_store(config.store)
    if not dry_run:
        make_local(config)
    yield from heal(config, dry_run=dry_run)


def _about_a_new_store(store: StoreConfig) -> Iterator[str]:
    """A place that is not mounted is told from a new store by whoever knows which of them it should be."""
    if store.shared is None or store.mode != "read-write":
        return
    folder = SharedStore(store.shared).folder
    if folder is not None and not (folder / MARKER).exists():
        yield f"there is no shared store at {store.shared} yet; one is made, but if the team has one it is not mounted"


def make_local(config: Config) -> None:
    """Make the folders in a local store that several use, with its mode: who may write in it may write in them."""
    root = config.store.local
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        for stage, recipe in {**stage_recipes(config), "features": ""}.items():
            make_folder(config.store_folder(stage, recipe), root=root)
