import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.atw import ATW
from models.backbones.convention import InputSpec
from models.build import build

PLAIN = InputSpec(channel_order="RGB", max_value=255.0, mean=(0.0,) * 3, std=(1.0,) * 3, flow_mean=0.0, flow_std=1.0)
ACTIVATIONS = {
    "relu": lambda e: max(e, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda e: 1 / (1 + math.exp(-e)),
    "identity": lambda e: e,
}


class ChannelMeans(nn.Module):
    """A backbone without weights: its features are the channel means, so a test chooses a_i by choosing pixels."""

    feature_dim = 6
    input_spec: ClassVar[InputSpec] = PLAIN

    def feature_map(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(-2, -1))


def atw(*, num_classes: int = 5, segments: int = 4, fc_std: float = 1.0, seed: int = 0, **switches) -> ATW:
    """An ATW over `ChannelMeans` with random attention weights and bias of order one."""
    torch.manual_seed(seed)
    model = ATW(
        ChannelMeans(),
        num_classes=num_classes,
        modality="flow",
        in_channels=6,
        segments=segments,
        dropout=0.0,
        fc_std=fc_std,
        **switches,
    )
    if model.attention is not None:
        nn.init.normal_(model.attention.weight)
        nn.init.normal_(model.attention.bias)
    return model.eval()


def clips(videos: int = 3, segments: int = 4, *, seed: int = 1) -> Tensor:
    """B N 6 2 2 pixel values of order one, so that energies do not saturate."""
    return torch.randn(videos, segments, 6, 2, 2, generator=torch.Generator().manual_seed(seed))


def arrays(model: ATW, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """features B N D, logits B N K, attention weights and bias, in numpy float64."""
    features = x.double().numpy().mean(axis=(-2, -1))
    logits = features @ model.fc.weight.detach().double().numpy().T + model.fc.bias.detach().double().numpy()
    weight = model.attention.weight.detach().double().numpy()[0]
    return features, logits, weight, float(model.attention.bias.detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("att_input", ["logits", "features"])
def test_equations_1_to_4_against_loops(activation, att_input) -> None:
    model, x = atw(activation=activation, att_input=att_input), clips()
    features, logits, w_att, b = arrays(model, x)
    out = model(x)
    for video in range(3):
        a = logits[video] if att_input == "logits" else features[video]
        e = [ACTIVATIONS[activation](sum(w_att[k] * a[i, k] for k in range(len(w_att))) + b) for i in range(4)]
        w = [math.exp(e[i]) / sum(math.exp(e_j) for e_j in e) for i in range(4)]
        scores = [sum(w[i] * logits[video, i, k] for i in range(4)) for k in range(5)]
        np.testing.assert_allclose(out.weights[video].detach().numpy(), w, rtol=1e-4)
        np.testing.assert_allclose(out.logits[video].detach().numpy(), scores, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(out.segment_logits.detach().numpy(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_segment_linear_against_loops(activation) -> None:
    model, x = atw(consensus="segment_linear", activation=activation), clips()
    _, logits, v, b = arrays(model, x)
    out = model(x)
    for video in range(3):
        for k in range(5):
            expected = ACTIVATIONS[activation](sum(v[i] * logits[video, i, k] for i in range(4)) + b)
            assert out.logits[video, k].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
        np.testing.assert_allclose(out.weights[video].detach().numpy(), v, rtol=1e-6)


def test_average_and_max_against_numpy() -> None:
    x = clips()
    average, largest = atw(consensus="avg")(x), atw(consensus="max")(x)
    segment_logits = average.segment_logits.detach().numpy()
    np.testing.assert_allclose(average.logits.detach().numpy(), segment_logits.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(average.weights.numpy(), np.full((3, 4), 0.25))
    np.testing.assert_array_equal(largest.logits.detach().numpy(), segment_logits.max(axis=1))
    shares = [[(segment_logits[b].argmax(axis=0) == i).mean() for i in range(4)] for b in range(3)]
    np.testing.assert_allclose(largest.weights.numpy(), shares, atol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_of_equation_4(label_smoothing) -> None:
    model, labels = atw(), [4, 0, 2]
    out = model(clips())
    expected = 0.0
    for scores, label in zip(out.logits.tolist(), labels, strict=True):
        p = [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores]
        y = [(1 - label_smoothing) * (k == label) + label_smoothing / 5 for k in range(5)]
        expected -= sum(y[k] * math.log(p[k]) for k in range(5)) / 3
    assert model.loss(out, torch.tensor(labels), label_smoothing=label_smoothing).item() == pytest.approx(expected)


@pytest.mark.parametrize("consensus", ["softmax_att", "avg", "max"])
@pytest.mark.parametrize("segments", [1, 2, 4, 80])
def test_weights_are_a_distribution_over_any_number_of_segments(consensus, segments) -> None:
    out = atw(consensus=consensus)(clips(segments=segments))
    assert out.weights.shape == (3, segments)
    torch.testing.assert_close(out.weights.sum(dim=1), torch.ones(3))
    assert (out.weights > 0).all() if consensus != "max" else (out.weights >= 0).all()


@pytest.mark.parametrize("att_input", ["logits", "features"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_attention_without_weights_is_average_consensus(att_input, activation) -> None:
    model = atw(att_input=att_input, activation=activation)
    nn.init.zeros_(model.attention.weight)
    out = model(clips())
    assert torch.equal(out.weights, torch.full((3, 4), 0.25))
    torch.testing.assert_close(out.logits, out.segment_logits.mean(dim=1))


@pytest.mark.parametrize("consensus", ["softmax_att", "avg", "max"])
def test_one_segment_is_the_identity(consensus) -> None:
    out = atw(consensus=consensus, segments=1)(clips(segments=1))
    assert torch.equal(out.logits, out.segment_logits[:, 0])
    assert torch.equal(out.weights, torch.ones(3, 1))


@pytest.mark.parametrize("att_input", ["logits", "features"])
def test_the_order_of_segments_permutes_weights_and_leaves_the_video_alone(att_input) -> None:
    model, x = atw(att_input=att_input), clips(segments=7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    straight, shuffled = model(x), model(x[:, order])
    torch.testing.assert_close(shuffled.weights, straight.weights[:, order])
    torch.testing.assert_close(shuffled.logits, straight.logits)


def test_identical_snippets_share_the_weight() -> None:
    out = atw()(clips(segments=1).expand(3, 5, 6, 2, 2))
    torch.testing.assert_close(out.weights, torch.full((3, 5), 0.2))
    torch.testing.assert_close(out.logits, out.segment_logits[:, 0])


def test_large_attention_weights_pick_the_snippet_of_highest_energy() -> None:
    model, x = atw(activation="identity"), clips()
    energy = (model(x).segment_logits @ model.attention.weight[0]).detach()
    with torch.no_grad():
        model.attention.weight *= 1e4
    out = model(x)
    best = energy.argmax(dim=1)
    torch.testing.assert_close(out.weights, nn.functional.one_hot(best, 4).float())
    torch.testing.assert_close(out.logits, out.segment_logits[torch.arange(3), best])


def test_the_bias_cancels_under_identity_and_not_under_tanh() -> None:
    for activation, cancels in (("identity", True), ("tanh", False)):
        model, x = atw(activation=activation), clips()
        before = model(x).weights
        with torch.no_grad():
            model.attention.bias += 1.0
        assert torch.allclose(before, model(x).weights, atol=1e-5) is cancels


def test_attending_over_features_equals_classifying_the_attended_feature() -> None:
    model, x = atw(att_input="features"), clips()
    out = model(x)
    attended = torch.einsum("bn,bnd->bd", out.weights, x.mean(dim=(-2, -1)))
    torch.testing.assert_close(out.logits, model.fc(attended))


@pytest.mark.parametrize("segments", [4, 80])
def test_segment_linear_of_1_over_n_is_the_mean(segments) -> None:
    model = ATW(
        ChannelMeans(),
        num_classes=5,
        modality="flow",
        in_channels=6,
        segments=4,
        dropout=0.0,
        fc_std=1.0,
        consensus="segment_linear",
        activation="identity",
        init="inv_n",
    )
    out = model(clips(segments=segments))
    torch.testing.assert_close(out.logits, out.segment_logits.mean(dim=1))
    torch.testing.assert_close(out.weights, torch.full((3, segments), 1 / segments))


def test_static_weights_stretch_in_order() -> None:
    model = atw(consensus="segment_linear", segments=2)
    with torch.no_grad():
        model.attention.weight.copy_(torch.tensor([[1.0, 3.0]]))
    # centres of eight half-open eighths among the centres of two halves, then scaled by 2/8 to keep the sum
    expected = torch.tensor([1.0, 1.0, 1.25, 1.75, 2.25, 2.75, 3.0, 3.0]) / 4
    torch.testing.assert_close(model(clips(segments=8)).weights[0], expected)


def test_relu_energies_at_or_below_zero_stop_the_attention_and_identity_does_not() -> None:
    for activation, dead in (("relu", True), ("identity", False)):
        model = atw(activation=activation)
        with torch.no_grad():
            model.attention.bias.fill_(-1e3)
        out = model(clips())
        out.logits.sum().backward()
        assert (model.attention.weight.grad.abs().max().item() == 0) is dead
        assert torch.equal(out.weights, torch.full((3, 4), 0.25)) is dead


def test_relu_on_static_weights_stops_a_class_whose_scores_are_negative() -> None:
    model = atw(consensus="segment_linear", activation="relu")
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.5, -1.0]))
        model.attention.weight.fill_(0.25)
        model.attention.bias.zero_()
    nn.functional.cross_entropy(model(clips()).logits, torch.tensor([4, 4, 4])).backward()
    assert model.fc.bias.grad[4].item() == 0
    assert (model.fc.bias.grad[:4] != 0).all()


@pytest.mark.parametrize(("init", "value"), [("one", 1.0), ("inv_n", 0.125)])
@pytest.mark.parametrize(("consensus", "inputs"), [("softmax_att", 101), ("segment_linear", 8)])
def test_constant_initialisations_of_table_2(init, value, consensus, inputs) -> None:
    model = ATW(
        ChannelMeans(),
        num_classes=101,
        modality="flow",
        in_channels=6,
        segments=8,
        dropout=0.0,
        consensus=consensus,
        init=init,
    )
    assert torch.equal(model.attention.weight, torch.full((1, inputs), value))
    assert model.attention.bias.item() == 0


def test_gaussian_initialisation_and_classifier_have_the_stated_spread() -> None:
    torch.manual_seed(0)
    options = {"modality": "flow", "in_channels": 6, "segments": 100, "dropout": 0.0}
    model = ATW(ChannelMeans(), num_classes=4000, **options)
    assert model.attention.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.fc.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.fc.bias.abs().max().item() == 0
    static = ATW(ChannelMeans(), num_classes=5, consensus="segment_linear", **options)
    assert static.attention.weight.std().item() == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("consensus", ["softmax_att", "segment_linear", "avg", "max"])
def test_chunks_of_snippets_give_what_forward_gives(consensus) -> None:
    model, x = atw(consensus=consensus), clips(videos=2, segments=10)
    chunks = [model.score_snippets(chunk) for chunk in x.flatten(0, 1).split(3)]
    logits = torch.cat([chunk.logits for chunk in chunks]).view(2, 10, 5)
    energy = torch.cat([chunk.energy for chunk in chunks]).view(2, 10)
    whole = model(x)
    for part, expected in zip(model.consensus(logits, energy), whole, strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("consensus", ["softmax_att", "segment_linear", "avg", "max"])
def test_attention_stays_in_float32_under_autocast(dtype, consensus) -> None:
    model, x = atw(consensus=consensus, activation="identity"), clips()
    with torch.autocast("cpu", dtype=dtype):
        out = model(x)
        scores = model.score_snippets(x.flatten(0, 1))
    assert {part.dtype for part in (*out, scores.logits, scores.energy)} == {torch.float32}
    exact = model.consensus(out.segment_logits, scores.energy.view(3, 4))
    assert torch.equal(out.logits, exact.logits)
    assert torch.equal(out.weights, exact.weights)
    if consensus == "softmax_att":
        assert torch.equal(scores.energy, model.attention(scores.logits)[:, 0])


@pytest.mark.parametrize("consensus", ["softmax_att", "segment_linear", "avg", "max"])
def test_bfloat16_agrees_with_float32(consensus) -> None:
    model, (x, labels) = small(consensus=consensus, activation="identity").eval(), moving_clips()
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
    spread = exact.segment_logits.std().item()
    torch.testing.assert_close(half.logits, exact.logits, rtol=0, atol=0.05 * spread)
    torch.testing.assert_close(half.weights, exact.weights, rtol=0.02, atol=0.25 if consensus == "max" else 0)
    torch.testing.assert_close(model.loss(half, labels), model.loss(exact, labels), rtol=0.02, atol=0)


def test_energies_too_close_for_half_precision_still_differ() -> None:
    energy = torch.tensor([[2048.0, 2048.5]])
    assert energy.bfloat16()[0, 0] == energy.bfloat16()[0, 1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = atw().consensus(torch.zeros(1, 2, 5), energy).weights
    assert weights[0, 1].item() == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_attention_finds_the_segment_that_tells_the_class() -> None:
    """One segment of four shows the class, the others show a random one less loudly: averaging has to guess."""
    generator = torch.Generator().manual_seed(0)

    def batch(videos: int) -> tuple[Tensor, Tensor, Tensor]:
        shown = torch.randint(5, (videos, 4), generator=generator)
        where = torch.randint(4, (videos,), generator=generator)
        labels = shown[torch.arange(videos), where]
        x = nn.functional.one_hot(shown, 6).float()
        x[torch.arange(videos), where, 5] = 1.0  # channel 5 marks the telling segment
        x += 0.05 * torch.randn(x.shape, generator=generator)
        return x[..., None, None], labels, where

    accuracies = {}
    for consensus in ("softmax_att", "avg"):
        torch.manual_seed(0)
        model = ATW(
            ChannelMeans(),
            num_classes=5,
            modality="flow",
            in_channels=6,
            segments=4,
            dropout=0.0,
            fc_std=0.4,
            consensus=consensus,
            att_input="features",
            activation="identity",
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(200):
            x, labels, _ = batch(64)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x).logits, labels).backward()
            optimiser.step()
        x, labels, where = batch(500)
        out = model(x)
        accuracies[consensus] = (out.logits.argmax(dim=1) == labels).float().mean().item()
        if consensus == "softmax_att":
            assert (out.weights.argmax(dim=1) == where).float().mean() > 0.95
    assert accuracies["softmax_att"] > 0.95
    assert accuracies["avg"] < 0.8


def moving_clips() -> tuple[Tensor, Tensor]:
    """Eight clips of three 32x32 images as bytes, four classes: a bright block in one of the corners, over noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 60, (8, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(8) % 4
    for video, label in enumerate(labels.tolist()):
        row, col = 16 * (label // 2), 16 * (label % 2)
        x[video, :, label % 3, row : row + 16, col : col + 16] = 250
    return x, labels


@pytest.mark.parametrize(
    ("backbone", "switches", "steps", "lr"),
    [
        ("tiny", {}, 40, 0.01),
        ("tiny", {"att_input": "features"}, 40, 0.01),
        ("tiny", {"consensus": "segment_linear", "activation": "identity"}, 40, 0.01),
        ("tiny", {"consensus": "segment_linear", "activation": "identity", "init": "inv_n"}, 40, 0.01),
        ("tiny", {"consensus": "avg"}, 40, 0.01),
        ("tiny", {"consensus": "max"}, 40, 0.01),
        ("resnet18", {}, 12, 0.001),
        ("bn_inception", {}, 12, 0.001),
    ],
)
def test_every_model_overfits_eight_clips(backbone, switches, steps, lr) -> None:
    torch.manual_seed(0)
    x, labels = moving_clips()
    model = build(backbone=backbone, num_classes=4, modality="rgb", in_channels=3, segments=3, dropout=0.0, **switches)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    first = None
    for _ in range(steps):
        optimiser.zero_grad()
        out = model(x)
        loss = nn.functional.cross_entropy(out.logits, labels)
        first = loss.item() if first is None else first
        loss.backward()
        optimiser.step()
    assert out.logits.argmax(dim=1).tolist() == labels.tolist()
    assert loss.item() < 0.3 * first


def small(seed: int = 0, **changes) -> ATW:
    torch.manual_seed(seed)
    options = {"num_classes": 4, "modality": "rgb", "in_channels": 3, "segments": 3, "dropout": 0.5}
    return build(**{**options, **changes})


def test_dropout_works_in_training_and_rests_in_evaluation() -> None:
    model, (x, _) = small(), moving_clips()
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


def test_the_seed_reproduces_the_loss() -> None:
    def losses(seed: int) -> list[float]:
        model, (x, labels) = small(seed), moving_clips()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        history = []
        for _ in range(4):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x).logits, labels)
            loss.backward()
            optimiser.step()
            history.append(loss.item())
        return history

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.parametrize("training", [True, False])
def test_a_single_video_of_a_single_segment_works(training) -> None:
    x, _ = moving_clips()
    out = small().train(training)(x[:1, :1])
    assert [tuple(part.shape) for part in out] == [(1, 4), (1, 1), (1, 1, 4)]
    assert out.logits.isfinite().all()


def test_every_trainable_parameter_gets_a_gradient_in_every_consensus() -> None:
    x, labels = moving_clips()
    for consensus in ("softmax_att", "segment_linear", "avg", "max"):
        model = small(consensus=consensus, activation="identity", dropout=0.0)
        nn.functional.cross_entropy(model(x).logits, labels).backward()
        flat = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        # a bias that shifts all energies alike cancels in the softmax; one that shifts all logits alike, in the loss
        assert [name for name in flat if name != "attention.bias"] == []


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 0, 3, 32, 32), (3, 32, 32)])
def test_inputs_that_are_not_batches_of_segments_are_refused(shape) -> None:
    with pytest.raises(ValueError, match="segments, channels, height, width"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("switch", "choices"),
    [
        ({"consensus": "mean"}, "softmax_att, segment_linear, avg, max"),
        ({"att_input": "probabilities"}, "logits, features"),
        ({"activation": "gelu"}, "relu, tanh, sigmoid, identity"),
        ({"init": "zero"}, "gauss, one, inv_n"),
        ({"segments": 0}, "at least 1"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
    ],
)
def test_values_out_of_range_name_the_choices(switch, choices) -> None:
    with pytest.raises(ValueError, match=choices):
        small(**switch)
