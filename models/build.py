"""The one place that turns names into models.

`build` takes flat JSON-able keywords, so that the same dict stands in a configuration file, in a checkpoint and here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from models.atw import ATW
from models.backbones.bn_inception import BNInception
from models.backbones.c3d import C3D
from models.backbones.convention import check_channels
from models.backbones.p3d import P3D
from models.backbones.res3d18 import Res3D18
from models.backbones.resnet import ResNet
from models.backbones.resnet3d import ResNet3D
from models.backbones.tiny import TinyCNN
from models.flownet import load_encoder
from models.jsta import JSTASpatial
from models.jsta_temporal import JSTATemporal
from models.sta_cnn import STACNN
from models.sta_module import VideoBackbone, insert
from models.sta_net import STANet
from models.weights import load_pretrained
from models.where_when import WhereWhen

FAMILIES = ("atw", "sta_cnn", "jsta", "jsta_temporal", "sta_net", "where_when")
BACKBONES = ("tiny", "bn_inception", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
VIDEO_BACKBONES = (
    "c3d",
    "p3d199",
    "res3d18",
    "resnet3d18",
    "resnet3d34",
    "resnet3d50",
    "resnet3d101",
    "resnet3d152",
    "resnext3d101",
)

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
JSTA_SWITCHES = ("sa_position", "softmax_axis", "sa_bias", "sa_output")
STA_NET_SWITCHES = ("variant", "stages", "blocks", "position", "deconv_stride", "identity_init")
RESNET3D_SWITCHES = ("shortcut", "release")
JSTA_TEMPORAL_SWITCHES = ("temporal", "merge", "clip_pool", "classifier", "hidden", "clips")
WHERE_WHEN_SWITCHES = (
    "hidden",
    "spatial",
    "temporal",
    "energy",
    "y_scale",
    "lambda_tv",
    "lambda_contrast",
    "lambda_unimodal",
    "tv_reduce",
    "unimodal",
)

SnippetModel: TypeAlias = ATW | STACNN | JSTASpatial | STANet
"""Families that look at pixels: with `score_snippets`, `consensus` and a backbone."""
Head: TypeAlias = JSTATemporal | WhereWhen
"""Families that read the features which another model made."""
Model: TypeAlias = SnippetModel | Head


def build(*, num_classes: int, family: str = "atw", read_pretrained: bool = True, **keywords: Any) -> Model:
    """A model ready to train. `keywords` are flat and JSON-able; those of

    - images ("atw", "sta_cnn"): `modality` is rgb, flow or warped_flow; `in_channels` of a snippet, 3 an image or 2 a
      flow field; `segments`; `dropout`; `backbone` "tiny"; `partial_bn` False; `pretrained` None; `san_pretrained`
      None; `input_size` None, the side of the input in pixels, for families with weights for each place.
    - clips ("jsta", "sta_net"): `modality`, `in_channels`, `dropout` and `pretrained` likewise; `backbone`; `snippet`,
      the frames of a clip; `input_size`; `width` None (as published, 64), less makes a slim backbone; `shortcut` and
      `release`, a ResNet3D's.
    - features ("jsta_temporal", "where_when"): `feature_shape`, [D] of a clip or [C, h, w] of a frame; `dropout`.

    and the family's own switches (see its module); leave one out for its default. `pretrained` is the path of a
    published or own checkpoint, `san_pretrained` of FlowNetS weights or of a pre-trained Spatial Attention Network;
    what became of their tensors stands in the model's `load_report` and `san_load_report`. A caller that will overwrite
    all weights anyway says `read_pretrained=False`: then the files need not exist. `partial_bn` freezes BatchNorm's
    statistics as they are: load trained ones, by `pretrained` or `weights.load_initial`. Initial weights come from
    torch's global random state: seed it first. Raises ValueError for unknown names and for values out of range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is not a number of classes; it must be at least 1")
    match family:
        case "atw" | "sta_cnn":
            return _over_images(family, num_classes=num_classes, read_pretrained=read_pretrained, **keywords)
        case "jsta" | "sta_net":
            return _over_clips(family, num_classes=num_classes, read_pretrained=read_pretrained, **keywords)
        case "jsta_temporal" | "where_when":
            return _over_features(family, num_classes=num_classes, **keywords)
        case _:
            raise ValueError(f"model family {family!r} is unknown; choose one of {', '.join(FAMILIES)}")


def _over_images(
    family: str,
    *,
    num_classes: int,
    modality: str,
    in_channels: int,
    segments: int,
    dropout: float,
    read_pretrained: bool,
    backbone: str = "tiny",
    partial_bn: bool = False,
    pretrained: str | None = None,
    san_pretrained: str | None = None,
    input_size: int | None = None,
    **switches: Any,
) -> ATW | STACNN:
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
    model: ATW | STACNN
    if family == "atw":
        model = ATW(trunk, **common, **_only(switches, *ATW_SWITCHES, family=family))
    else:
        chosen = _only(switches, *STA_CNN_SWITCHES, family=family)
        model = STACNN(trunk, **common, input_size=input_size, **chosen)
    if pretrained is not None and read_pretrained:
        model.load_report = load_pretrained(model, pretrained)
    if san_pretrained is not None and read_pretrained:
        assert isinstance(model, STACNN)
        assert model.san is not None
        model.san_load_report = load_encoder(model.san, san_pretrained)
    return model


def _over_clips(
    family: str,
    *,
    num_classes: int,
    modality: str,
    in_channels: int,
    snippet: int,
    input_size: int,
    dropout: float,
    backbone: str,
    read_pretrained: bool,
    width: int | None = None,
    pretrained: str | None = None,
    **switches: Any,
) -> JSTASpatial | STANet:
    check_channels(in_channels, modality=modality)
    frame_channels = 3 if modality == "rgb" else 2
    if in_channels != frame_channels * snippet:
        raise ValueError(f"in_channels={in_channels} are not those of snippet={snippet} frames of {modality}")
    own = {name: switches.pop(name) for name in RESNET3D_SWITCHES if name in switches}
    trunk = build_video_backbone(
        backbone, in_channels=frame_channels, frames=snippet, size=input_size, width=width, dropout=dropout, **own
    )
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "modality": modality,
        "in_channels": in_channels,
        "dropout": dropout,
        "fc_std": _classifier_std(trunk.feature_dim, pretrained=pretrained),
    }
    read = pretrained if read_pretrained else None
    # published weights go in before attention does, which has no place in their files
    if family == "jsta":
        chosen = _only(switches, *JSTA_SWITCHES, family=family)
        report = None if read is None else load_pretrained(trunk, read)
        model = JSTASpatial(trunk, **common, **chosen)
        model.load_report = report
        return model
    net = STANet(trunk, **common)
    chosen = _only(switches, *STA_NET_SWITCHES, family=family)
    if read is not None:
        net.load_report = load_pretrained(net, read)
    if chosen.get("variant") != "none":
        insert(trunk, clip=(snippet, input_size, input_size), **{"stages": ("layer4",), **chosen})
    return net


def _over_features(
    family: str, *, num_classes: int, feature_shape: Sequence[int], dropout: float, **switches: Any
) -> Head:
    axes, meaning = (1, "[D] of a clip") if family == "jsta_temporal" else (3, "[C, h, w] of a frame")
    if len(feature_shape) != axes or min(feature_shape) < 1:
        raise ValueError(f"feature_shape={list(feature_shape)} does not suit {family}, which reads {meaning}")
    if family == "jsta_temporal":
        chosen = _only(switches, *JSTA_TEMPORAL_SWITCHES, family=family)
        return JSTATemporal(num_classes=num_classes, feature_dim=feature_shape[0], dropout=dropout, **chosen)
    chosen = _only(switches, *WHERE_WHEN_SWITCHES, family=family)
    return WhereWhen(num_classes=num_classes, channels=feature_shape[0], dropout=dropout, **chosen)


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


def build_video_backbone(
    name: str,
    *,
    in_channels: int,
    frames: int,
    size: int,
    width: int | None = None,
    dropout: float = 0.5,
    num_classes: int | None = None,
    **switches: Any,
) -> VideoBackbone:
    """A 3D CNN by name, for clips of `frames` frames of `in_channels` channels and `size` pixels.

    Headless for the families, or with a classifier. `dropout` is that inside it (C3D, between its layers). `switches`
    are a ResNet3D's `shortcut` and `release`. Raises ValueError for an unknown name, and a switch that it has not.
    """
    common: dict[str, Any] = {
        "in_channels": in_channels,
        "width": 64 if width is None else width,
        "num_classes": num_classes,
    }
    if name.startswith(("resnet3d", "resnext3d")) and name in VIDEO_BACKBONES:
        cardinality = 32 if name.startswith("resnext3d") else 1
        depth = int(name.partition("3d")[2])
        chosen = _only(switches, *RESNET3D_SWITCHES, family=name)
        return ResNet3D(depth, cardinality=cardinality, **common, **chosen)
    if switches:
        raise ValueError(f"{', '.join(sorted(switches))} is a switch of a ResNet3D, not of {name}; leave it out")
    match name:
        case "c3d":
            return C3D(frames=frames, size=size, dropout=dropout, **common)
        case "p3d199":
            return P3D(199, dropout=dropout, **common)
        case "res3d18":
            return Res3D18(frames=frames, **common)
        case _:
            raise ValueError(f"backbone {name!r} is unknown for clips; choose one of {', '.join(VIDEO_BACKBONES)}")


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
