"""The section flow.imported: what is stated, what is refused and in which words, and that it disturbs nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipeline.config import Config, FlowConfig, _documented, canonical, load
from pipeline.stores.layouts import FolderLayout

MINIMAL: dict[str, Any] = {"name": "x", "dataset": "demo"}


def loaded(**sections: Any) -> Config:
    return load(MINIMAL | sections)


def test_the_tool_decides_what_is_not_stated() -> None:
    stated = {
        tool: loaded(flow={"bound": 15, "imported": {"tool": tool}}).flow.imported
        for tool in ("denseflow", "dense_flow", "mmaction2")
    }
    found = {tool: (one.first_number, one.quantiser, one.solver) for tool, one in stated.items() if one}
    assert found == {
        "denseflow": (0, "round", "unknown"),
        "dense_flow": (1, "round", "unknown"),
        "mmaction2": (1, "truncate", "unknown"),
    }


def test_only_what_is_heard_is_part_of_the_address() -> None:
    config = loaded(flow={"bound": 15, "step": 2, "imported": {"tool": "dense_flow"}})
    values = yaml.safe_load(canonical(config.flow))
    assert values.keys() == {"bound", "imported", "reverse", "step"}
    assert FlowConfig.model_validate_json(canonical(config.flow)) == config.flow
    assert "imported" not in yaml.safe_load(canonical(loaded().flow))
    assert load(yaml.safe_load("\n".join(_documented(config)))) == config
    assert config.flow.layout == FolderLayout(tool="dense_flow", step=2, first_number=1)
    assert loaded().flow.layout is None


def test_warped_flow_does_not_become_imported_with_flow() -> None:
    flow = {"bound": 15, "imported": {"tool": "dense_flow"}}
    assert (loaded(flow=flow).warped_flow.imported, loaded(flow=flow).warped_flow.size) == (None, (340, 256))
    assert loaded(flow=flow, warped_flow={"short_side": 90}).warped_flow.short_side == 90
    both = loaded(flow={"size": [90, 60]}, warped_flow=flow)
    assert (both.flow.imported, both.warped_flow.size) == (None, None)
    assert canonical(both.warped_flow) == canonical(loaded(flow=flow).flow)


@pytest.mark.parametrize(
    ("flow", "sentence"),
    [
        ({}, "the key 'flow.imported.tool' is missing"),
        ({"tool": "densflow"}, "flow.imported.tool is 'densflow': input should be 'denseflow', 'dense_flow' or"),
        ({"tool": "denseflow", "solvr": 1}, "unknown key 'flow.imported.solvr'; the nearest known key is 'solver'"),
        ({"tool": "denseflow", "bound": None}, "flow: imported flow needs bound"),
        ({"tool": "denseflow", "size": [9, 9]}, "so size would not be heard; remove size"),
        ({"tool": "denseflow", "tau": 0.1}, "so tau would not be heard; remove tau"),
        ({"tool": "dense_flow", "reverse": True}, "flow: dense_flow does not compute reverse flow"),
        ({"tool": "mmaction2", "step": 2}, "flow: mmaction2 has no step 2"),
        ({"tool": "denseflow", "own_images": True}, "flow.imported: own_images is for dense_flow"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(flow: dict[str, Any], sentence: str) -> None:
    beside = {"size", "tau", "reverse", "step", "bound"}
    section = {"bound": 20, "imported": {key: value for key, value in flow.items() if key not in beside}}
    section |= {key: value for key, value in flow.items() if key in beside}
    with pytest.raises(ValueError, match=sentence):
        loaded(flow={key: value for key, value in section.items() if value is not None})
