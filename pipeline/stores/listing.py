"""What the commands on stores print: tables of artifacts by how they were made, and statistics of flow."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pipeline.config import FlowConfig, FramesConfig, GeometryConfig, WarpedFlowConfig, canonical
from pipeline.stores.inventory import Entry, Need
from pipeline.stores.statistics import EDGES_PX, FlowStatistics

_BAR = 40  # characters


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as lines; columns of numbers to the right, others to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [all(row[i][:1].isdigit() for row in rows[1:]) for i in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        for row in rows
    ]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def size_text(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def text(entries: Iterable[Entry], referred: Mapping[str, Sequence[Need]]) -> str:
    """A table of artifacts by how they were made.

    Args:
        entries: of one store.
        referred: what each dataset refers to.
    """
    groups: dict[tuple[str, int, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.stage, entry.version, entry.parameters].append(entry)
    if not groups:
        return "  nothing"
    rows = [("stage", "videos", "bytes", "datasets", "parameters that are no defaults")]
    for (stage, version, parameters), group in sorted(groups.items()):
        keys, size = {entry.key for entry in group}, size_text(sum(entry.bytes for entry in group))
        owners = ", ".join(_owner(name, found, keys) for name, found in referred.items() if _count(found, keys))
        made = (f"{stage} {version}", parameters_text(stage, parameters)) if stage else ("damaged", "see `verify`")
        rows.append((made[0], str(len(group)), size, owners or "-", made[1]))
    return table(rows)


def _count(found: Sequence[Need], keys: set[str]) -> int:
    return sum(need.key in keys for need in found)


def _owner(name: str, found: Sequence[Need], keys: set[str]) -> str:
    stages = Counter(need.stage for need in found)
    stage = next(need.stage for need in found if need.key in keys)
    return f"{name} ({_count(found, keys)} of {stages[stage]})"


def parameters_text(stage: str, parameters: str) -> str:
    """What of the settings of an artifact is not as it would be by default."""
    values = json.loads(parameters)
    defaults = _defaults(stage, values)
    own = {name: value for name, value in values.items() if value is not None and defaults.get(name) != value}
    return " ".join(f"{name}={_value(name, value)}" for name, value in sorted(own.items()))


def _defaults(stage: str, values: Mapping[str, object]) -> dict[str, object]:
    section: type[GeometryConfig]
    match stage:
        case "frames":
            section = FramesConfig
        case "flow":
            section = FlowConfig
        case "warped_flow":
            section = WarpedFlowConfig
        case _:
            return {}
    # the defaults of the variant, which is named itself if it is not the default
    given = {"variant": values["variant"]} if "variant" in values else {}
    try:
        found: dict[str, object] = json.loads(canonical(section.model_validate({"size": (3, 3), **given})))
    except ValueError:  # of another version
        return {}
    return found | {"size": None} | ({"variant": FlowConfig.model_fields["variant"].default} if given else {})


def _value(name: str, value: object) -> str:
    if name == "size" and isinstance(value, list):
        return "x".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def statistics_text(found: FlowStatistics, videos: Mapping[str, Sequence[str]]) -> str:
    """Statistics of flow in words, and its magnitudes as a histogram.

    Args:
        found: of one stage and quantisation.
        videos: ids by artifact key, as far as they are known.
    """
    most, key = found.most_clipped
    whose = ", ".join(map(repr, videos.get(key, ()))) or key
    quantiles = ", ".join(f"{part:g}% {found.quantile_px(part / 100):.2f}" for part in (50, 90, 99, 99.9))
    shares = found.histogram()
    return "\n".join(
        [
            f"{found.stage}, bound {found.bound_px:g} px: {found.arrays} videos, {found.fields} fields",
            f"  {size_text(found.bytes)}, {size_text(found.bytes / max(1, found.fields))} a field, "
            f"{found.values / max(1, found.bytes):.2f}x smaller than uncompressed",
            f"  clipped: {found.clipped / max(1, found.fields):.3%} of the values; most {most:.3%}, {whose}",
            f"  magnitude, pixels: {quantiles}",
            *(
                f"  {_interval(i):>12}  {share:7.2%}  {'#' * round(_BAR * share / max(shares.max(), 1e-9))}".rstrip()
                for i, share in enumerate(shares)
                if i == 0 or shares[i:].any()
            ),
        ]
    )


def _interval(index: int) -> str:
    if index + 1 == len(EDGES_PX):
        return f"{EDGES_PX[index]:g} -"
    return f"{EDGES_PX[index]:g} - {EDGES_PX[index + 1]:g}"
