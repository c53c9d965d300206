"""The fine-tuning recipe that segment-based models share: partial BN and optimiser groups.

Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016, section 3.3,
with the multipliers of the authors' public code (the paper gives no numbers for them).
"""

from typing import TypedDict

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ParameterGroup(TypedDict):
    """Parameters that share multipliers of the base learning rate and weight decay."""

    name: str
    params: list[nn.Parameter]
    lr_mult: float
    decay_mult: float


def freeze_batch_norms(model: nn.Module) -> None:
    """Partial BN: put every BatchNorm2d but the first into eval mode and freeze its weight and bias.

    The first one keeps adapting because the input distribution (flow for an image network) is what changed.
    `train()` undoes the mode, so call this again after it.
    """
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][1:]:
        norm.eval()
        norm.requires_grad_(False)


def parameter_groups(model: nn.Module, *, modality: str) -> list[ParameterGroup]:
    """Split the trainable parameters of `model` into the optimiser groups of TSN; empty groups are left out.

    Flow learns the first convolution five times faster, because cross-modality initialisation averaged its colours
    away; biases learn twice as fast without decay; batch normalisation has no decay. A model trained from scratch has
    no averaged convolution: pass modality "rgb" for it whatever its input is.
    """
    boost = 1.0 if modality == "rgb" else 5.0
    first = next((module for module in model.modules() if isinstance(module, CONVOLUTIONS)), None)
    groups = {
        "first_conv_weight": ParameterGroup(name="first_conv_weight", params=[], lr_mult=boost, decay_mult=1.0),
        "first_conv_bias": ParameterGroup(name="first_conv_bias", params=[], lr_mult=2.0 * boost, decay_mult=0.0),
        "weight": ParameterGroup(name="weight", params=[], lr_mult=1.0, decay_mult=1.0),
        "bias": ParameterGroup(name="bias", params=[], lr_mult=2.0, decay_mult=0.0),
        "batch_norm": ParameterGroup(name="batch_norm", params=[], lr_mult=1.0, decay_mult=0.0),
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            kind = "bias" if "bias" in name else "weight"  # an LSTM's is bias_ih_l0
            if isinstance(module, _BatchNorm):
                kind = "batch_norm"
            elif module is first:
                kind = f"first_conv_{kind}"
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
