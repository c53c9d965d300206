"""The one place that turns names into models.

`build` takes flat JSON-able keywords, so that the same dict stands in a configuration file, in a checkpoint and here.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from models.atw import ATW
from models.backbones.bn_inception import BNInception
from models.backbones.convention import check_channels
from models.backbones.resnet import ResNet
from models.backbones.tiny import TinyCNN
from models.flownet import load_encoder
from models.sta_cnn import STACNN
from models.weights import load_pretrained

FAMILIES = ("atw", "sta_cnn")
BACKBONES = ("tiny", "bn_inception", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

ATW_SWITCHES = ("consensus", "att_input", "activation", "init")
STA_CNN_SWITCHES = (
    "spatial",
    "groups",
    "top",
    "select_loss",
    "aux_lambda",
    "aux_pool",
    "sal_weights",
    "pool_weights",
    "pool_scale",
    "san_width",
    "san_last_pool_stride",
)

Model: TypeAlias = ATW | STACNN


def build(
    *,
    num_classes: int,
    modality: str,
    in_channels: int,
    segments: int,
    dropout: float,
    family: str = "atw",
    backbone: str = "tiny",
    partial_bn: bool = False,
    pretrained: str | None = None,
    san_pretrained: str | None = None,
    input_size: int | None = None,
    read_pretrained: bool = True,
    **switches: Any,
) -> Model:
    """A model ready to train. `modality` is rgb, flow or warped_flow; `in_channels` 3 an image, or 2 a flow field.

    `switches` are those of the family (`models.atw`, `models.sta_cnn`); leave one out for its default. `input_size` is
    the side of the input in pixels, for families with weights for each place. `pretrained` is the path of a published
    or own checkpoint, `san_pretrained` of FlowNetS weights or of a pre-trained Spatial Attention Network; what became
    of their tensors stands in the model's `load_report` and `san_load_report`. A caller that will overwrite all weights
    anyway says `read_pretrained=False`: then the files need not exist. `partial_bn` freezes BatchNorm's statistics as
    they are: load trained ones, by `pretrained` or `weights.load_initial`. Initial weights come from torch's global
    random state: seed it first. Raises ValueError for unknown names and for values out of range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is not a number of classes; it must be at least 1")
    if san_pretrained is not None and switches.get("spatial") != "san":
        raise ValueError(
            f"san_pretrained={san_pretrained!r} has no place to go; it needs family sta_cnn, spatial 'san'"
        )
    check_channels(in_channels, modality=modality)
    # beside a Spatial Attention Network the classifier reads the first frame alone
    trunk = build_backbone(backbone, in_channels=3 if switches.get("spatial") == "san" else in_channels)
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "modality": modality,
        "in_channels": in_channels,
        "segments": segments,
        "dropout": dropout,
        "partial_bn": partial_bn,
        "fc_std": _classifier_std(trunk.feature_dim, pretrained=pretrained),
    }
    model: Model
    match family:
        case "atw":
            model = ATW(trunk, **common, **_only(switches, *ATW_SWITCHES, family=family))
        case "sta_cnn":
            chosen = _only(switches, *STA_CNN_SWITCHES, family=family)
            model = STACNN(trunk, **common, input_size=input_size, **chosen)
        case _:
            raise ValueError(f"model family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    if pretrained is not None and read_pretrained:
        model.load_report = load_pretrained(model, pretrained)
    if san_pretrained is not None and read_pretrained:
        assert isinstance(model, STACNN)
        assert model.san is not None
        model.san_load_report = load_encoder(model.san, san_pretrained)
    return model


def build_backbone(name: str, *, in_channels: int, num_classes: int | None = None) -> BNInception | ResNet | TinyCNN:
    """A backbone by name: headless for the families, or with a classifier. Raises ValueError for an unknown name."""
    match name:
        case "tiny":
            return TinyCNN(in_channels=in_channels, num_classes=num_classes)
        case "bn_inception":
            return BNInception(in_channels=in_channels, num_classes=num_classes)
        case "resnet18" | "resnet34" | "resnet50" | "resnet101" | "resnet152":
            return ResNet(int(name.removeprefix("resnet")), in_channels=in_channels, num_classes=num_classes)
        case _:
            raise ValueError(f"backbone {name!r} is unknown; choose one of {', '.join(BACKBONES)}")


def _classifier_std(feature_dim: int, *, pretrained: str | None) -> float:
    """Spread of a new classifier's weights.

    Over pretrained features .001 (TSN) keeps early gradients from disturbing them. From scratch there is nothing to
    protect and .001 only starves the network of gradient, so logits start at the scale of the features.
    """
    return feature_dim**-0.5 if pretrained is None else 0.001


def _only(switches: Mapping[str, Any], *names: str, family: str) -> dict[str, Any]:
    """`switches` again, or ValueError when one is not among `names`."""
    unknown = sorted(switches.keys() - set(names))
    if unknown:
        raise ValueError(f"model family {family!r} has no switch {', '.join(unknown)}; it has {', '.join(names)}")
    return dict(switches)
