"""Which features configurations refer to: those that the receipts of their heads name.

Their keys hang on trained weights, so unlike those of frames and flow they cannot be told from the plan.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.config import Config
from pipeline.dataset.feature_receipts import FeatureReceipt
from pipeline.dataset.plan import features_recipe, read_shards, stage_recipes, train_recipes
from pipeline.stores.inventory import Need


def feature_recipes(config: Config) -> set[str]:
    """Recipes of the features that the heads of a configuration read.

    Raises:
        ValueError: a checkpoint that an experiment begins with cannot be read.
    """
    heads = {name: one for name, one in config.experiments.items() if one.features is not None}
    if not heads:
        return set()
    trained = train_recipes(config, stage_recipes(config))
    return {features_recipe(one, train=trained[one.features]) for one in heads.values() if one.features is not None}


def feature_needs(config: Config) -> list[Need]:
    """Features that receipts of the configuration's heads name, of all their splits and seeds and of today's shards.

    Raises:
        ValueError: a checkpoint that an experiment begins with cannot be read, or a receipt is none.
    """
    recipes = sorted(feature_recipes(config))
    shards = set(read_shards(config.work_dir / "plan")) if recipes else set()
    return [
        Need("features", video, facts["key"], path.stem)
        for recipe in recipes
        for path in sorted(config.work_dir.glob(f"receipts/features-{recipe}/*/[!.]*.json"))
        if path.stem in shards
        for video, facts in FeatureReceipt.read(path).videos.items()
    ]


def feature_receipts(config: Config, keys: Collection[str]) -> list[Path]:
    """Receipts of features, of today's settings and of others, that vouch for one of some arrays."""
    found = sorted(config.work_dir.glob("receipts/features-*/*/[!.]*.json")) if keys else []
    return [path for path in found if any(facts["key"] in keys for facts in FeatureReceipt.read(path).videos.values())]
