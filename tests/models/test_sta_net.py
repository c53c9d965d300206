"""STA networks as a whole, and MARS: what a student takes from its teacher, and what stays the teacher's own."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.build import build
from models.checkpoint import load_checkpoint, save_checkpoint
from models.sta_module import STA
from models.sta_net import STANet, STANetOutput
from models.tsn import parameter_groups

FRAMES, SIDE = 8, 32
RGB, FLOW = 3 * FRAMES, 2 * FRAMES


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def net(modality: str = "rgb", **switches) -> STANet:
    keywords = {"backbone": "resnet3d18", "width": 4, "dropout": 0.0, "snippet": FRAMES, "input_size": SIDE}
    channels = RGB if modality == "rgb" else FLOW
    made = build(
        family="sta_net", num_classes=4, modality=modality, **{"in_channels": channels, **keywords, **switches}
    )
    assert isinstance(made, STANet)
    return made


def clips(channels: int = RGB, *, videos: int = 2, count: int = 3, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (videos, count, channels, side, side), dtype=torch.uint8)


def taught(*, alpha: float = 50.0, **switches) -> tuple[STANet, STANet]:
    student, teacher = net(**switches), net("flow")
    for norm in [module for module in teacher.modules() if isinstance(module, nn.BatchNorm3d)]:
        norm.momentum = 1.0
    teacher.train()(clips(FLOW, videos=4))  # statistics of such input, as of a trained one
    student.teach(teacher, alpha=alpha)
    return student, teacher


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_backbone_sees_frames_one_after_the_other() -> None:
    model, x = net(variant="none").eval(), clips()
    frames = x.float().view(2, 3, FRAMES, 3, SIDE, SIDE) - torch.tensor([114.7748, 107.7354, 99.4750]).view(3, 1, 1)
    for video in range(2):
        for clip in range(3):
            want = model.backbone(frames[video, clip].transpose(0, 1)[None])
            torch.testing.assert_close(model.clip_features(x[video, clip][None]), want)
    flow = net("flow", variant="none").eval()
    y = clips(FLOW)
    want = flow.backbone(y[0, :1].float().view(1, FRAMES, 2, SIDE, SIDE).transpose(1, 2) - 127.5)
    torch.testing.assert_close(flow.clip_features(y[0, :1]), want)


def test_the_clips_of_a_video_count_alike() -> None:
    model, x = net().eval(), clips()
    out = model(x)
    alone = [model.score_snippets(x[:, clip]) for clip in range(3)]
    torch.testing.assert_close(out.logits, sum(scores.logits for scores in alone) / 3)
    torch.testing.assert_close(out.features, sum(model.clip_features(x[:, clip]) for clip in range(3)) / 3)
    assert torch.equal(out.weights, torch.full((2, 3), 1 / 3))
    assert out.teacher is None
    assert alone[0].maps is None
    again = model.consensus(out.segment_logits, alone[0].energy[:, None].expand(2, 3))
    assert isinstance(again, STANetOutput)
    assert torch.equal(again.logits, out.logits)
    labels = torch.tensor([1, 3])
    assert torch.equal(model.loss(out, labels), F.cross_entropy(out.logits, labels))
    smooth = F.cross_entropy(out.logits, labels, label_smoothing=0.2)
    assert torch.equal(model.loss(out, labels, label_smoothing=0.2), smooth)


def test_identity_init_scales_what_every_block_adds_by_982() -> None:
    model, plain = net(identity_init=True).eval(), net(variant="none").eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "before_add" not in name})
    x = plain.normalise(clips()[0]).unflatten(1, (-1, 3)).transpose(1, 2)
    factor = 1 / (1 + math.exp(-4.0))
    for block in plain.backbone.layer4:
        assert isinstance(block.before_add, nn.Identity)
        block.before_add = nn.Module()
        block.before_add.forward = lambda residual: factor * residual
    torch.testing.assert_close(model.backbone(x), plain.backbone(x))


def test_attention_is_in_the_network_and_learns() -> None:
    model = net()
    modules = {name: module for name, module in model.named_modules() if isinstance(module, STA)}
    assert list(modules) == ["backbone.layer4.0.before_add", "backbone.layer4.1.before_add"]
    out = model(clips())
    model.loss(out, torch.tensor([0, 1])).backward()
    for module in modules.values():
        assert all(parameter.grad is not None for parameter in module.parameters())
        assert module.conv2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", ["sta", "none"])
def test_eight_clips_are_learnt_by_heart(variant) -> None:
    model, x, labels = net(variant=variant), clips(videos=8, count=1), torch.arange(8) % 4
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimiser.zero_grad()
        model.loss(model(x), labels).backward()
        optimiser.step()
    out = model(x)
    assert out.logits.argmax(dim=1).tolist() == labels.tolist()
    assert model.loss(out, labels).item() < 0.3


# ---- MARS


def test_the_student_sees_the_colours_and_the_teacher_the_flow() -> None:
    student, teacher = taught()
    rgb, flow = clips(), clips(FLOW)
    out = student.train()(torch.cat([rgb, flow], dim=2))
    want = sum(teacher.clip_features(flow[:, clip]) for clip in range(3)) / 3
    torch.testing.assert_close(out.teacher, want)
    own = copy.deepcopy(student).train()  # batch statistics: the whole batch at once
    torch.testing.assert_close(out.features, own.clip_features(rgb.flatten(0, 1)).view(2, 3, -1).mean(dim=1))
    labels = torch.tensor([1, 2])
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(out.logits, labels, label_smoothing=smoothing)
        expected = expected + 50 * ((out.features - want) ** 2).mean()
        torch.testing.assert_close(student.loss(out, labels, label_smoothing=smoothing), expected)


def test_in_evaluation_and_untaught_it_takes_colours_alone() -> None:
    student, teacher = taught()
    x = clips()
    out = student.eval()(x)
    assert out.teacher is None
    assert torch.equal(student.loss(out, torch.tensor([0, 1])), F.cross_entropy(out.logits, torch.tensor([0, 1])))
    assert teacher.eval()(clips(FLOW)).teacher is None
    both = torch.cat([x, clips(FLOW)], dim=2)
    for model in (student, net().train()):
        with pytest.raises(ValueError, match="takes 24 channels"):
            model(both)
    with pytest.raises(ValueError, match="trains on 24 channels of RGB and then 16 of flow"):
        student.train()(x)


def test_the_teacher_is_frozen_and_stays_out_of_everything() -> None:
    alone = net()
    student, teacher = taught()
    assert student.state_dict().keys() == alone.state_dict().keys()
    assert len(list(student.parameters())) == len(list(alone.parameters()))
    assert len(list(student.modules())) == len(list(alone.modules()))
    grouped = [parameter for group in parameter_groups(student, modality="rgb") for parameter in group["params"]]
    assert not {id(p) for p in grouped} & {id(p) for p in teacher.parameters()}
    assert not any(module.training for module in teacher.modules())
    student.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_training_moves_the_student_and_not_a_bit_of_the_teacher() -> None:
    student, teacher = taught(alpha=5.0)
    before, own = weights_of(teacher), weights_of(student)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.01)
    out = student.train()(torch.cat([clips(), clips(FLOW)], dim=2))
    assert not out.teacher.requires_grad
    student.loss(out, torch.tensor([0, 1])).backward()
    optimiser.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not torch.equal(student.backbone.conv1.weight, own["backbone.conv1.weight"])


def test_a_student_learns_to_have_its_teachers_features() -> None:
    student, _ = taught(alpha=5.0)
    x, labels = torch.cat([clips(videos=8, count=1), clips(FLOW, videos=8, count=1)], dim=2), torch.arange(8) % 4
    optimiser = torch.optim.Adam(student.parameters(), lr=0.01)
    errors = []
    for _ in range(40):
        optimiser.zero_grad()
        out = student.train()(x)
        errors.append(F.mse_loss(out.features, out.teacher).item())
        student.loss(out, labels).backward()
        optimiser.step()
    assert errors[-1] < 0.2 * errors[0]
    assert out.logits.argmax(dim=1).tolist() == labels.tolist()


def test_with_the_teachers_features_the_loss_is_cross_entropy() -> None:
    student, _ = taught()
    out = student.train()(torch.cat([clips(), clips(FLOW)], dim=2))
    same, labels = out._replace(teacher=out.features.detach()), torch.tensor([2, 1])
    assert torch.equal(student.loss(same, labels), F.cross_entropy(out.logits, labels))


def test_the_teacher_follows_to_a_device_and_a_type() -> None:
    student, teacher = taught()
    student.to("meta")
    assert all(tensor.device.type == "meta" for tensor in [*teacher.state_dict().values(), teacher.normalise.mean])
    student, teacher = taught()
    student.to(torch.float64)
    assert teacher.fc.weight.dtype == torch.float64
    late, teacher = net().double(), net("flow")
    late.teach(teacher)
    assert teacher.fc.weight.dtype == torch.float64
    out = late.train()(torch.cat([clips(), clips(FLOW)], dim=2))
    late.loss(out, torch.tensor([0, 1])).backward()


def test_a_taught_student_is_written_and_read_without_its_teacher(tmp_path) -> None:
    keywords = {
        "family": "sta_net",
        "backbone": "resnet3d18",
        "width": 4,
        "num_classes": 4,
        "modality": "rgb",
        "in_channels": RGB,
        "snippet": FRAMES,
        "input_size": SIDE,
        "dropout": 0.0,
    }
    student = build(**keywords)
    student.teach(net("flow"))
    student.train()(torch.cat([clips(), clips(FLOW)], dim=2))  # moves BatchNorm's statistics
    save_checkpoint(tmp_path / "a.pt", model=student, build=keywords, classes=list("abcd"))
    read = load_checkpoint(tmp_path / "a.pt", expect_build=keywords).model
    x = clips()
    assert torch.equal(read.eval()(x).logits, student.eval()(x).logits)


def test_bfloat16_scores_and_learns_as_float32() -> None:
    student, _ = taught()
    x, labels = torch.cat([clips(), clips(FLOW)], dim=2), torch.tensor([0, 1])
    exact = student.train()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = student(x)
    torch.testing.assert_close(out.logits, exact.logits, rtol=0.05, atol=0.05 * exact.logits.abs().max().item())
    torch.testing.assert_close(student.loss(out, labels), student.loss(exact, labels), rtol=0.05, atol=0.05)


def test_one_clip_of_one_video_trains() -> None:
    size = {"videos": 1, "count": 1, "side": 64}  # BatchNorm needs more than one cell
    student, teacher = net(input_size=64), net("flow", input_size=64)
    student.teach(teacher)
    out = student.train()(torch.cat([clips(**size), clips(FLOW, **size)], dim=2))
    student.loss(out, torch.tensor([2])).backward()
    assert torch.isfinite(student.fc.weight.grad).all()


def test_impossible_teachers() -> None:
    with pytest.raises(ValueError, match="on flow cannot learn from one on flow"):
        net("flow").teach(net("flow"))
    with pytest.raises(ValueError, match="on rgb cannot learn from one on rgb"):
        net().teach(net())
    with pytest.raises(ValueError, match="has 64 features and the student 32"):
        net().teach(net("flow", width=8))
    with pytest.raises(ValueError, match="has 16 frames a clip and the student 8"):
        net().teach(net("flow", snippet=16, in_channels=32))
    with pytest.raises(ValueError, match="alpha=0"):
        net().teach(net("flow"), alpha=0)


def test_inputs_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"videos, clips, channels, height, width"):
        net()(clips()[0])
    with pytest.raises(ValueError, match=r"maps of size \(1, 1\), got \(2, 2\)"):
        net()(clips(side=64))
