"""Published checkpoints: read them, find their names in a model of ours, copy, and report every tensor's fate.

Layouts understood: a bare state_dict, or one under "state_dict" (with "arch", "epoch", "optimizer", ... beside it);
names prefixed by DataParallel ("module."), by the TSN port ("base_model.") or by a family of ours ("backbone."); a
classifier called fc, last_linear, new_fc or fc_custom; a first convolution called conv1_custom; BatchNorm tensors of
shape (1, C) (converted from Caffe); files without num_batches_tracked. The 3D networks' modules know the other names
that their files have (`published_names`). An image network's first convolution becomes one for flow by cross-modality
initialisation (Wang et al., "Temporal Segment Networks", ECCV 2016, section 3.3).

`load_pretrained` is for published files, `load_initial` for a training of our own that another one starts from; a
FlowNetS encoder is read by `models.flownet`. Files are opened with `weights_only=True`: a checkpoint is data and cannot
run code.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import c3d, p3d, res3d18, resnet3d
from models.tsn import CONVOLUTIONS

WRAPPERS = ("module.", "_forward_module.", "_orig_mod.")
PREFIXES = (*WRAPPERS, "base_model.", "backbone.")
CLASSIFIERS = ("fc", "last_linear", "new_fc", "fc_custom", "fc8")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor of the model and of the file."""

    path: str
    loaded: tuple[str, ...]
    """Names in the model that now hold the file's values."""
    missing: tuple[str, ...]
    """Names in the model, outside its backbone, that the file lacks: they keep their initialisation."""
    unexpected: tuple[str, ...]
    """Names in the file that the model has no place for."""
    reshaped: tuple[str, ...]
    """Loaded names whose values were adapted: squeezed from (1, C), or averaged over colours (cross-modality)."""
    dropped: tuple[str, ...]
    """Names in the file left aside because their part of the model, such as the classifier, has another shape."""

    def __str__(self) -> str:
        """For the log: every name that was not used, or not filled, and some of those that were adapted."""
        fates = [("missing", self.missing), ("unexpected", self.unexpected), ("dropped", self.dropped)]
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded"]
        lines += [f"{len(names)} {fate} ({', '.join(names)})" for fate, names in fates if names]
        if self.reshaped:
            lines.append(f"{len(self.reshaped)} reshaped ({_some(self.reshaped)})")
        return "; ".join(lines)


def load_pretrained(model: nn.Module, path: str | Path) -> LoadReport:
    """Copy the published weights at `path` into `model`: a bare backbone, or a family that holds one as `backbone`.

    Raises ValueError, leaving the model as it was, when the file is not a checkpoint or is one of another model: a
    backbone tensor missing, of another shape, or left over.
    """
    target = {_strip(name): tensor for name, tensor in model.state_dict().items()}
    source = _source(path, model=model, known=target)
    backbone = _backbone_names(model)
    first_conv = _first_conv_name(model)

    fitted: dict[str, Tensor] = {}
    reshaped, dropped, wrong_shape = [], [], []
    for name in target.keys() & source.keys():
        value, want = source[name], target[name]
        fit = _fit(value, want.shape, is_first_conv=name == first_conv)
        if fit is not None:
            fitted[name] = fit
            if fit.shape != value.shape:
                reshaped.append(name)
        elif name in backbone:
            wrong_shape.append(f"{name} {tuple(value.shape)} for {tuple(want.shape)}")
        else:
            dropped.append(name)
    missing = [name for name in target if name not in source and not name.endswith("num_batches_tracked")]
    extra = [name for name in source if name not in target]
    dropped += [name for name in extra if _of_classifier(name)]
    unexpected = [name for name in extra if not _of_classifier(name)]

    parts = {name.split(".")[0] for name in backbone}
    faults = {
        "missing": [name for name in missing if name in backbone],
        "of another shape": sorted(wrong_shape),
        "left over": [name for name in unexpected if name.split(".")[0] in parts],
    }
    _refuse_another_model(path, source, target, faults)
    with torch.no_grad():
        for name, value in fitted.items():
            target[name].copy_(value)
    return LoadReport(
        path=str(path),
        loaded=tuple(name for name in target if name in fitted),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        reshaped=tuple(sorted(reshaped)),
        dropped=tuple(sorted(dropped)),
    )


def load_initial(model: nn.Module, path: str | Path) -> LoadReport:
    """Warm start: copy every tensor of one of our own checkpoints whose name and shape `model` has too.

    What only one of the two has stays as it is and is reported (`dropped`: the name is in both, the shape differs).
    Raises ValueError, leaving the model as it was, when no tensor of its backbone is among them.
    """
    source = {strip(name): tensor for name, tensor in read_state_dict(path).items()}
    target = {strip(name): tensor for name, tensor in model.state_dict().items()}
    loaded = [name for name, tensor in target.items() if name in source and source[name].shape == tensor.shape]
    if not any(name.startswith("backbone.") for name in loaded):
        raise ValueError(
            f"{path} cannot start this model: no backbone tensor has the same name and shape (first keys "
            f"{_some(source)}, the model's {_some(target)}); start from a model of the same backbone and input"
        )
    with torch.no_grad():
        for name in loaded:
            target[name].copy_(source[name])
    return LoadReport(
        path=str(path),
        loaded=tuple(loaded),
        missing=tuple(name for name in target if name not in source),
        unexpected=tuple(name for name in source if name not in target),
        reshaped=(),
        dropped=tuple(name for name in target if name in source and name not in loaded),
    )


def cross_modality_conv1(weight: Tensor, channels: int) -> Tensor:
    """(out, 3, k, k) colour filters -> (out, `channels`, k, k): their mean over the colours, repeated."""
    return weight.mean(dim=1, keepdim=True).repeat_interleave(channels, dim=1)


def read_torch_file(path: str | Path) -> Any:
    """The plain data (tensors, numbers, strings, containers) in a file of torch.save, on the CPU; else ValueError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files end in errors of a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint of plain tensors ({reason}); "
            "if it is trusted, load it once with torch.load(weights_only=False) and save its state_dict alone"
        ) from error


def write_torch_file(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write plain data to `path` in one atomic step; the same content gives the same bytes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:  # an open file, not a name: torch.save would write the name into the bytes
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, whether they lie bare in it or under "state_dict"; else ValueError."""
    content = read_torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds neither a state_dict nor a dict with one under 'state_dict'")
    return dict(content)


def _source(path: str | Path, *, model: nn.Module, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under the names of our models."""
    state = _renamed(read_state_dict(path), _strip, path=path)
    try:
        state = _published(state, backbone=getattr(model, "backbone", model))
    except ValueError as error:
        raise ValueError(
            f"{path} is a checkpoint of another model: it looks like {_architecture(state)}, "
            f"the model is {_architecture(known)}; {error}"
        ) from error
    return _renamed(state, lambda name: _rename(name, known=known), path=path)


def _published(state: dict[str, Tensor], *, backbone: nn.Module) -> dict[str, Tensor]:
    """`state` under the names of `backbone`, as its module understands the files that were published of it."""
    match backbone:
        case c3d.C3D():
            return c3d.published_names(state)
        case p3d.P3D():
            return p3d.published_names(state)
        case res3d18.Res3D18():
            return res3d18.published_names(state)
        case resnet3d.ResNet3D():
            return resnet3d.published_names(state)
        case _:
            return state


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str], *, path: str | Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = rename(name)
        if new in renamed:
            raise ValueError(f"{path} has two tensors for {new} (one is {name}); remove one of them")
        renamed[new] = tensor
    return renamed


def strip(name: str, *, prefixes: tuple[str, ...] = WRAPPERS) -> str:
    """The name without `prefixes`, however many of them lead it."""
    while name.startswith(prefixes):
        name = name.split(".", 1)[1]
    return name


def _strip(name: str) -> str:
    """The name without the wrappers around the network, and without the network's own name in its family."""
    return strip(name, prefixes=PREFIXES)


def _rename(name: str, *, known: Mapping[str, Tensor]) -> str:
    """A stripped name in the terms of our models; names the model knows already stay."""
    if name in known:
        return name
    part, _, rest = name.partition(".")
    if part in CLASSIFIERS:
        return f"fc.{rest}"
    return f"conv1.{rest}" if part == "conv1_custom" else name


def _backbone_names(model: nn.Module) -> set[str]:
    """Stripped names that a checkpoint must supply: those under `backbone`, or all but the classifier."""
    names = list(model.state_dict())
    inside = [name for name in names if name.startswith("backbone.")]
    required = inside or [name for name in names if not _of_classifier(name)]
    return {_strip(name) for name in required}


def _of_classifier(name: str) -> bool:
    return name.split(".")[0] in CLASSIFIERS


def _first_conv_name(model: nn.Module) -> str | None:
    convs = (name for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS))
    first = next(convs, None)
    return None if first is None else _strip(f"{first}.weight")


def _fit(value: Tensor, shape: torch.Size, *, is_first_conv: bool) -> Tensor | None:
    """`value` in `shape`, by one of the two known adaptations; None when it is another tensor altogether."""
    if value.shape == shape:
        return value
    if len(shape) == 1 and value.shape == (1, *shape):
        return value.squeeze(0)
    colours = is_first_conv and value.ndim == len(shape) and value.shape[1] == 3
    if colours and (value.shape[0], *value.shape[2:]) == (shape[0], *shape[2:]):
        return cross_modality_conv1(value, shape[1])
    return None


def _refuse_another_model(
    path: str | Path, source: Mapping[str, Tensor], target: Mapping[str, Tensor], faults: Mapping[str, list[str]]
) -> None:
    found = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if found:
        raise ValueError(
            f"{path} is a checkpoint of another model: it looks like {_architecture(source)} (first keys "
            f"{_some(source)}), the model is {_architecture(target)} (first keys {_some(target)}); "
            f"backbone tensors {', '.join(found)}"
        )


def _architecture(names: Mapping[str, Tensor]) -> str:
    """The architecture that a state_dict's names give away, for error messages."""
    if "inception_3a_1x1.weight" in names:
        return "BN-Inception"
    if "stage1.0.weight" in names:
        return "TinyCNN"
    if any(name.startswith(("res2a.", "res2a_")) for name in names):
        return "Res3D-18"
    if "conv3a.weight" in names or ("features.0.weight" in names and names["features.0.weight"].ndim == 5):
        return "C3D"
    return _residual(names) if "layer1.0.conv1.weight" in names else "an unknown architecture"


def _residual(names: Mapping[str, Tensor]) -> str:
    """As `_architecture`, of networks with the names of torchvision's ResNets."""
    blocks = len({name.split(".")[1] for name in names if name.startswith("layer3.")})
    if "layer4.0.conv_normal.weight" in names:
        depth = {6: 63, 23: 131, 36: 199}.get(blocks)
        return f"P3D-{depth}" if depth else "an unknown P3D"
    kind = "bottleneck" if "layer1.0.conv3.weight" in names else "basic"
    depths = {
        ("basic", 2): 18,
        ("basic", 6): 34,
        ("bottleneck", 6): 50,
        ("bottleneck", 23): 101,
        ("bottleneck", 36): 152,
    }
    if (kind, blocks) not in depths:
        return "an unknown residual network"
    first, second = names["layer1.0.conv1.weight"], names.get("layer1.0.conv2.weight")
    grouped = kind == "bottleneck" and second is not None and second.shape[1] < first.shape[0]
    name = f"{'ResNeXt' if grouped else 'ResNet'}{'3D' if first.ndim == 5 else ''}-{depths[kind, blocks]}"
    if first.ndim == 5 and "layer2.0.downsample.0.weight" not in names:
        return f"{name} with shortcut A"
    return name


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
