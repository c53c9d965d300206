import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.backbones.convention import InputSpec
from models.build import build
from models.sta_cnn import (
    STACNN,
    SpatialAttentionLayer,
    attention_map,
    confidence,
    dcw,
    most_confident,
    select_segments,
    weighted_pooling,
)

PLAIN = InputSpec(channel_order="RGB", max_value=255.0, mean=(0.0,) * 3, std=(1.0,) * 3, flow_mean=0.0, flow_std=1.0)
KEYWORDS = {"num_classes": 4, "modality": "rgb", "in_channels": 3, "segments": 3, "dropout": 0.0, "input_size": 32}


class Pixels(nn.Module):
    """A backbone without weights: its feature map is the input, so a test chooses features by choosing pixels."""

    feature_dim = 6
    input_spec: ClassVar[InputSpec] = PLAIN

    def feature_map(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(-2, -1))


def flow_stream(*, seed: int = 0, segments: int = 4, **switches) -> STACNN:
    """An STA-CNN over the pixels of 3x3 maps of 6 channels, with random weights of order one."""
    torch.manual_seed(seed)
    options = {"spatial": "shared", "num_classes": 5, "dropout": 0.0, "fc_std": 1.0, "input_size": 3} | switches
    model = STACNN(Pixels(), modality="flow", in_channels=6, segments=segments, **options)
    if model.sal is not None:
        nn.init.normal_(model.sal.weight)
    return model.eval()


def clips(videos: int = 3, segments: int = 4, *, seed: int = 1) -> Tensor:
    """B N 6 3 3 of order one."""
    return torch.randn(videos, segments, 6, 3, 3, generator=torch.Generator().manual_seed(seed))


def random_logits(*shape: int, seed: int = 2) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(scores) -> list[float]:
    return [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores]


def entropy(p) -> float:
    return -sum(q * math.log(q) for q in p if q > 0)


# (1), (2): confidence


def test_confidence_is_the_reciprocal_of_the_entropy() -> None:
    p = random_logits(7, 5).double().softmax(dim=-1)
    expected = [1 / entropy(row) for row in p.tolist()]
    assert confidence(p).tolist() == pytest.approx(expected, rel=1e-5)
    assert confidence(torch.full((4,), 0.25)).item() == pytest.approx(1 / math.log(4))


def test_confidence_falls_with_entropy_and_is_largest_and_finite_on_one_class() -> None:
    sharpness = torch.tensor([0.0, 0.5, 1.0, 2.0, 5.0, 20.0])
    alpha = confidence((sharpness[:, None] * torch.tensor([3.0, 1.0, 0.0])).softmax(dim=-1))
    assert (alpha.diff() > 0).all()
    certain = confidence(torch.tensor([0.0, 1.0, 0.0]))
    assert certain == torch.tensor(1e8)
    assert (confidence(random_logits(100, 3).softmax(dim=-1)) < certain).all()
    assert confidence(torch.tensor([1e4, 0.0, 0.0]).softmax(dim=-1)) == certain


# TS(N, top_n) and TS(N x M, N x top_m)


@pytest.mark.parametrize(
    ("groups", "top"), [(1, 1), (1, 3), (1, 9), (1, None), (3, 1), (3, 2), (3, 3), (9, 1), (9, None)]
)
def test_selection_against_sorting_each_group(groups, top) -> None:
    alpha = torch.rand(20, 9, generator=torch.Generator().manual_seed(0))
    weights = select_segments(alpha, groups=groups, top=top)
    size = 9 // groups
    for row, got in zip(alpha.tolist(), weights.tolist(), strict=True):
        kept = []
        for start in range(0, 9, size):
            kept += sorted(range(start, start + size), key=lambda n: -row[n])[: top or size]
        assert got == pytest.approx([1 / len(kept) if n in kept else 0 for n in range(9)])


def test_three_groups_and_top_one_keep_exactly_one_segment_of_each() -> None:
    alpha = torch.rand(50, 9, generator=torch.Generator().manual_seed(0))
    kept = select_segments(alpha, groups=3, top=1) > 0
    assert torch.equal(kept.view(50, 3, 3).sum(dim=-1), torch.ones(50, 3, dtype=torch.long))
    assert torch.equal(kept.view(50, 3, 3).int().argmax(dim=-1), alpha.view(50, 3, 3).argmax(dim=-1))


def test_of_equals_the_first_is_kept() -> None:
    assert most_confident(torch.full((2, 40), 1e8), top=2).nonzero()[:, 1].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("groups", "top", "message"),
    [
        (2, 1, "9 segments cannot be divided into groups=2"),
        (0, 1, "groups=0"),
        (3, 4, "top=4 of the 3"),
        (1, 0, "top=0"),
    ],
)
def test_selections_that_cannot_be_are_refused(groups, top, message) -> None:
    with pytest.raises(ValueError, match=message):
        select_segments(torch.ones(1, 9), groups=groups, top=top)
    with pytest.raises(ValueError, match=message):
        flow_stream(segments=9, groups=groups, top=top)


@pytest.mark.parametrize("select_loss", ["mean_logits", "mean_loss"])
@pytest.mark.parametrize("aux_lambda", [0.0, 0.3])
def test_segments_left_out_get_no_gradient_at_all(select_loss, aux_lambda) -> None:
    """At the logits; at the pixels too, as nothing here mixes segments."""
    model, x = flow_stream(top=2, select_loss=select_loss, aux_lambda=aux_lambda), clips().requires_grad_()
    out = model(x)
    out.segment_logits.retain_grad()
    model.loss(out, torch.tensor([0, 1, 2])).backward()
    left_out = out.weights == 0
    assert left_out.sum(dim=1).tolist() == [2, 2, 2]
    for gradient in (out.segment_logits.grad, x.grad):
        assert gradient[left_out].abs().max() == 0
        assert (gradient[~left_out].flatten(1).abs().sum(dim=1) > 0).all()


def test_batch_statistics_leak_gradient_to_segments_left_out() -> None:
    """Why the invariant is about logits: one BN in training mode, as partial BN leaves it, joins all snippets."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 4, 3, 32, 32), generator=generator).float().requires_grad_()
    for training in (False, True):
        torch.manual_seed(0)
        model = build(**KEYWORDS | {"segments": 4}, family="sta_cnn", top=1, spatial="shared").train(training)
        x.grad = None
        out = model(x)
        out.segment_logits.retain_grad()
        model.loss(out, torch.tensor([0, 1])).backward()
        left_out = out.weights == 0
        assert out.segment_logits.grad[left_out].abs().max() == 0
        assert (x.grad[left_out].abs().max() > 0) == training


@pytest.mark.parametrize("select_loss", ["mean_logits", "mean_loss"])
@pytest.mark.parametrize(("groups", "top"), [(1, 4), (1, None), (2, 2), (4, 1)])
def test_keeping_all_segments_is_the_mean_in_values_and_gradients(select_loss, groups, top) -> None:
    labels = torch.tensor([0, 1, 2])
    model, x = flow_stream(groups=groups, top=top, select_loss=select_loss, aux_lambda=0.0), clips()
    out = model(x)
    model.loss(out, labels).backward()
    got = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    segments = model(x).segment_logits
    torch.testing.assert_close(out.logits, segments.mean(dim=1))
    if select_loss == "mean_logits":  # the consensus of temporal segment networks
        expected = nn.functional.cross_entropy(segments.mean(dim=1), labels)
    else:
        expected = nn.functional.cross_entropy(segments.flatten(0, 1), labels.repeat_interleave(4))
    expected.backward()
    torch.testing.assert_close(model.loss(out, labels), expected)
    torch.testing.assert_close(got, [parameter.grad for parameter in model.parameters()])


# (5) to (9): the auxiliary head, the Spatial Attention Layer, weighted pooling


def numpy_stream(model: STACNN, snippet: np.ndarray) -> tuple[list[float], list[list[float]], list[float]]:
    """Logits, map and auxiliary scores of one snippet C h w by loops over (5), (7), (8), (9), defaults' reading."""
    channels, height, width = snippet.shape
    w = model.sal.weight.detach().double().numpy()
    importance = {
        (i, j): sum(w[m, i % w.shape[1], j % w.shape[2]] * snippet[m, i, j] for m in range(channels))
        for i in range(height)
        for j in range(width)
    }
    total = sum(math.exp(a) for a in importance.values())
    normalised = {place: math.exp(a) / total for place, a in importance.items()}
    weights = normalised if model.pool_weights == "softmax" else importance
    scale = 1 / len(importance) if model.pool_scale == "mean" else 1
    pooled = [scale * sum(weights[i, j] * snippet[m, i, j] for i, j in weights) for m in range(channels)]
    fc, bias = model.fc.weight.detach().double().numpy(), model.fc.bias.detach().double().numpy()
    logits = [sum(fc[k, m] * pooled[m] for m in range(channels)) + bias[k] for k in range(len(bias))]
    aux = model.aux.weight.detach().double().numpy()
    scores = [
        sum(aux[k, m] * snippet[m, i, j] for m in range(channels) for i, j in weights) / len(weights)
        for k in range(len(bias))
    ]
    return logits, [[normalised[i, j] for j in range(width)] for i in range(height)], scores


@pytest.mark.parametrize("sal_weights", ["per_position", "shared"])
@pytest.mark.parametrize("pool_weights", ["softmax", "raw"])
@pytest.mark.parametrize("pool_scale", ["none", "mean"])
def test_equations_5_to_9_against_loops(sal_weights, pool_weights, pool_scale) -> None:
    model = flow_stream(sal_weights=sal_weights, pool_weights=pool_weights, pool_scale=pool_scale)
    x = clips(videos=2)
    out = model(x)
    maps = model.score_snippets(x.flatten(0, 1)).maps.unflatten(0, (2, 4))
    for video in range(2):
        for n in range(4):
            logits, expected_map, aux = numpy_stream(model, x[video, n].double().numpy())
            np.testing.assert_allclose(out.segment_logits[video, n].detach().numpy(), logits, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(maps[video, n].detach().numpy(), expected_map, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(out.aux_logits[video, n].detach().numpy(), aux, rtol=1e-3, atol=1e-5)


def test_maps_sum_to_one_whatever_the_importance() -> None:
    maps = attention_map(300 * random_logits(10, 7, 7))
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), torch.ones(10))
    assert (maps >= 0).all()


def test_equation_9_to_the_letter_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # M D h w
    importance = torch.tensor([[[0.5, -1.0], [2.0, 0.0]]])
    assert weighted_pooling(features, importance, scale="mean").tolist() == [[(0.5 - 2 + 6) / 4]]
    assert weighted_pooling(features, torch.full((1, 2, 2), 0.25)).tolist() == [[2.5]]


@pytest.mark.parametrize("sal_weights", ["per_position", "shared"])
@pytest.mark.parametrize("spatial", ["shared", "san"])
def test_a_new_attention_layer_is_global_average_pooling(sal_weights, spatial) -> None:
    torch.manual_seed(0)
    channels = 6 if spatial == "san" else 3
    options = KEYWORDS | {"in_channels": channels}
    model = build(**options, family="sta_cnn", spatial=spatial, sal_weights=sal_weights, san_width=1 / 32).eval()
    x = torch.randint(0, 256, (2, channels, 32, 32), dtype=torch.uint8)
    scores = model.score_snippets(x)
    assert model.sal.weight.abs().max() == 0
    assert torch.equal(scores.maps, torch.full_like(scores.maps, 1 / scores.maps[0].numel()))
    torch.testing.assert_close(scores.logits, model.fc(model.backbone(model.normalise(x[:, :3]))))


def test_a_smaller_map_is_resized_before_the_softmax() -> None:
    torch.manual_seed(0)
    options = KEYWORDS | {"in_channels": 6, "input_size": 64}
    model = build(**options, family="sta_cnn", spatial="san", san_width=1 / 32, backbone="tiny").eval()
    nn.init.normal_(model.sal.weight, std=3.0)
    x = torch.randint(0, 256, (2, 6, 64, 64), dtype=torch.uint8)
    maps = model.score_snippets(x).maps
    assert model.sal.weight.shape == (32, 2, 2)
    assert maps.shape == (2, 4, 4)
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), torch.ones(2))
    coarse = (model.san(x) * model.sal.weight).sum(dim=1)
    places = [max(0.0, (i + 0.5) / 2 - 0.5) for i in range(4)]  # centres of four halves among two whole cells
    rows = [(int(min(p, 0.999)), p - int(min(p, 0.999))) for p in [min(p, 1.0) for p in places]]
    logits = torch.zeros(2, 4, 4)
    for i, (top, down) in enumerate(rows):
        for j, (left, right) in enumerate(rows):
            upper = (1 - right) * coarse[:, top, left] + right * coarse[:, top, left + 1]
            lower = (1 - right) * coarse[:, top + 1, left] + right * coarse[:, top + 1, left + 1]
            logits[:, i, j] = (1 - down) * upper + down * lower
    torch.testing.assert_close(maps, attention_map(logits))


def test_attention_finds_the_place_that_tells_the_class() -> None:
    """The class is shown, marked, in one of nine cells that moves; the others show unmarked classes, as loudly."""
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
        shown = torch.randint(5, (size, 9), generator=generator)
        where = torch.randint(9, (size,), generator=generator)
        x = nn.functional.one_hot(shown, 6).float()  # M 9 6
        x[torch.arange(size), where, 5] = 1.0
        labels = shown[torch.arange(size), where]
        return x.transpose(1, 2).reshape(size, 1, 6, 3, 3), labels, where

    accuracies = {}
    for spatial in ("shared", "none"):
        torch.manual_seed(0)
        model = STACNN(
            Pixels(),
            num_classes=5,
            modality="flow",
            in_channels=6,
            segments=1,
            dropout=0.0,
            fc_std=0.4,
            input_size=3,
            spatial=spatial,
        )
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(200):
            x, labels, _ = batch(64)
            optimiser.zero_grad()
            model.loss(model(x), labels).backward()
            optimiser.step()
        x, labels, where = batch(500)
        accuracies[spatial] = (model(x).logits.argmax(dim=1) == labels).float().mean().item()
        if spatial == "shared":
            maps = model.score_snippets(x[:, 0]).maps.flatten(1)
            assert (maps.argmax(dim=1) == where).float().mean() > 0.95
    assert accuracies["shared"] > 0.95
    assert accuracies["none"] < 0.8


# (6), (10): losses


@pytest.mark.parametrize("select_loss", ["mean_logits", "mean_loss"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_equations_6_and_10_against_loops(select_loss, label_smoothing) -> None:
    model = flow_stream(top=2, select_loss=select_loss, aux_lambda=0.7)
    labels = [4, 0, 2]
    out = model(clips())

    def cross_entropy(scores, label: int) -> float:
        p = softmax(scores)
        y = [(1 - label_smoothing) * (k == label) + label_smoothing / len(p) for k in range(len(p))]
        return -sum(y[k] * math.log(p[k]) for k in range(len(p)))

    def term(segment_scores, label: int, kept: list[int]) -> float:
        if select_loss == "mean_logits":
            mean = [sum(segment_scores[n][k] for n in kept) / len(kept) for k in range(5)]
            return cross_entropy(mean, label)
        return sum(cross_entropy(segment_scores[n], label) for n in kept) / len(kept)

    expected = 0.0
    for video, label in enumerate(labels):
        logits, aux = out.segment_logits[video].tolist(), out.aux_logits[video].tolist()
        kept = sorted(range(4), key=lambda n: entropy(softmax(logits[n])))[:2]
        expected += (term(logits, label, kept) + 0.7 * term(aux, label, kept)) / 3
    got = model.loss(out, torch.tensor(labels), label_smoothing=label_smoothing)
    assert got.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("aux_pool", "divisor"), [("mean", 9), ("sum", 1)])
def test_auxiliary_scores_are_those_of_equation_5(aux_pool, divisor) -> None:
    model, x = flow_stream(aux_pool=aux_pool), clips(videos=1)
    assert model.aux is not None
    got = model(x).aux_logits
    for n in range(4):
        for c in range(5):
            terms = [model.aux.weight[c, m].item() * value for m in range(6) for value in x[0, n, m].flatten().tolist()]
            assert got[0, n, c].item() == pytest.approx(sum(terms) / divisor, rel=1e-3, abs=1e-4)


def test_without_lambda_there_is_no_auxiliary_head() -> None:
    model = flow_stream(aux_lambda=0.0)
    out = model(clips())
    assert model.aux is None
    assert out.aux_logits is None
    labels = torch.tensor([0, 1, 2])
    torch.testing.assert_close(model.loss(out, labels), nn.functional.cross_entropy(out.logits, labels))


# (11): prediction


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("top", [1, 15, 25, None, 40])
def test_equation_11_against_loops(top, normalise) -> None:
    p = random_logits(25, 6).softmax(dim=-1)
    scores, weights = dcw(p, top=top, normalise=normalise)
    alpha = [1 / entropy(row) for row in p.double().tolist()]
    kept = sorted(range(25), key=lambda n: -alpha[n])[:top]
    total = sum(alpha[n] for n in kept) if normalise else 1
    expected = [sum(alpha[n] * p[n, k].item() for n in kept) / total for k in range(6)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)
    assert weights.tolist() == pytest.approx([alpha[n] / total if n in kept else 0 for n in range(25)], rel=1e-4)
    if normalise:
        assert scores.sum().item() == pytest.approx(1, rel=1e-5)


def test_equal_confidence_predicts_the_mean() -> None:
    p = torch.stack([torch.tensor([0.7, 0.2, 0.1])[list(order)] for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2))])
    torch.testing.assert_close(dcw(p, top=None)[0], p.mean(dim=0))


def test_scaling_all_confidences_leaves_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """log p to another base divides every entropy by the same number."""
    for seed in range(20):
        p = random_logits(25, 6, seed=seed).softmax(dim=-1)
        scores, weights = dcw(p)
        with monkeypatch.context() as patch:
            patch.setattr("models.sta_cnn.confidence", lambda p: 7.3 * confidence(p))
            scaled_scores, scaled_weights = dcw(p)
            raw_scores, _ = dcw(p, normalise=False)
        torch.testing.assert_close(scaled_scores, scores)
        torch.testing.assert_close(scaled_weights, weights)
        torch.testing.assert_close(raw_scores / raw_scores.sum(), scores)
        torch.testing.assert_close(raw_scores, 7.3 * dcw(p, normalise=False)[0])


def test_a_top_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="top=0"):
        dcw(torch.full((3, 2), 0.5), top=0)


# the model as a whole


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_counts_over_bn_inception() -> None:
    """Flow: the classifier of 10,395,717, 50,176 attention and 1024 x 101 auxiliary weights; RGB: the trunk besides."""
    options = {"num_classes": 101, "segments": 9, "dropout": 0.7, "family": "sta_cnn", "backbone": "bn_inception"}
    with torch.device("meta"):
        flow = {"modality": "flow", "in_channels": 10, "input_size": 224}
        sta = build(**options, **flow, spatial="shared", groups=3, top=1)
        names = {name for name, _ in sta.named_parameters()}
        plain = build(**options, **flow)
        rgb = build(**options, modality="rgb", in_channels=6, input_size=224, spatial="san")
        shared = build(**options, **flow, spatial="shared", sal_weights="shared", aux_lambda=0.0)
    assert count(plain) == 10_395_717
    assert names - {name for name, _ in plain.named_parameters()} == {"sal.weight", "aux.weight"}
    assert sta.sal.weight.numel() == 50_176
    assert count(sta) == 10_395_717 + 50_176 + 1024 * 101
    assert count(shared) == 10_395_717 + 1024
    assert count(rgb) == 10_373_765 + 24_050_752 + 50_176 + 1024 * 101


def test_finding_the_size_of_the_map_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build(**KEYWORDS, family="sta_cnn", spatial="shared")
    assert all(module.training for module in model.modules())
    fresh = {name: tensor for name, tensor in model.state_dict().items() if "running_mean" in name or "tracked" in name}
    assert len(fresh) == 8
    assert all(tensor.abs().max() == 0 for tensor in fresh.values())
    assert model.sal.weight.shape == (128, 2, 2)


def test_the_classifier_reads_the_first_frame_and_the_attention_both() -> None:
    torch.manual_seed(0)
    options = KEYWORDS | {"in_channels": 6, "input_size": 64}
    model = build(**options, family="sta_cnn", spatial="san", san_width=1 / 8).eval()
    nn.init.normal_(model.sal.weight)
    x = torch.randint(0, 256, (1, 6, 64, 64), dtype=torch.uint8)
    other = x.clone()
    other[:, 3:] = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    one, two = model.score_snippets(x), model.score_snippets(other)
    assert not torch.allclose(one.maps, two.maps)
    assert not torch.allclose(one.logits, two.logits)
    nn.init.zeros_(model.sal.weight)  # a uniform map: only what the classifier reads is left
    assert torch.equal(model.score_snippets(x).logits, model.score_snippets(other).logits)


@pytest.mark.parametrize("spatial", ["none", "shared", "san"])
def test_chunks_of_snippets_give_what_forward_gives(spatial) -> None:
    torch.manual_seed(0)
    options = KEYWORDS | {"in_channels": 6, "segments": 4}
    model = build(**options, family="sta_cnn", spatial=spatial, san_width=1 / 32, groups=2, top=1).eval()
    x = torch.randint(0, 256, (2, 4, 6, 32, 32), dtype=torch.uint8)
    chunks = [model.score_snippets(chunk) for chunk in x.flatten(0, 1).split(3)]
    logits = torch.cat([chunk.logits for chunk in chunks]).view(2, 4, 4)
    energy = torch.cat([chunk.energy for chunk in chunks]).view(2, 4)
    whole, parts = model(x), model.consensus(logits, energy)
    torch.testing.assert_close(parts.logits, whole.logits)
    torch.testing.assert_close(parts.segment_logits, whole.segment_logits)
    assert torch.equal(parts.weights, whole.weights)
    assert (chunks[0].maps is None) == (spatial == "none")


@pytest.mark.parametrize("spatial", ["none", "shared", "san"])
def test_bfloat16_agrees_with_float32_and_attends_in_float32(spatial) -> None:
    torch.manual_seed(0)
    options = KEYWORDS | {"in_channels": 6, "input_size": 64}
    model = build(**options, family="sta_cnn", spatial=spatial, san_width=1 / 16).eval()
    if model.sal is not None:
        nn.init.normal_(model.sal.weight, std=0.1)
    x, labels = torch.randint(0, 256, (2, 3, 6, 64, 64), dtype=torch.uint8), torch.tensor([0, 3])
    exact, exact_scores = model(x), model.score_snippets(x.flatten(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, scores = model(x), model.score_snippets(x.flatten(0, 1))
        loss = model.loss(half, labels)
    assert {part.dtype for part in (*half, *scores, loss) if part is not None} == {torch.float32}
    spread = exact.segment_logits.std().item()
    torch.testing.assert_close(half.logits, exact.logits, rtol=0, atol=0.05 * spread)
    torch.testing.assert_close(loss, model.loss(exact, labels), rtol=0.02, atol=0)
    assert torch.equal(scores.energy, confidence(scores.logits.softmax(dim=-1)))
    if spatial != "none":
        torch.testing.assert_close(scores.maps, exact_scores.maps, rtol=0.1, atol=2e-3)
        torch.testing.assert_close(scores.maps.sum(dim=(-2, -1)), torch.ones(6))


@pytest.mark.parametrize("spatial", ["none", "shared", "san"])
@pytest.mark.parametrize("training", [True, False])
def test_a_single_video_of_a_single_segment_works(spatial, training) -> None:
    torch.manual_seed(0)
    options = KEYWORDS | {"in_channels": 6, "segments": 1}
    model = build(**options, family="sta_cnn", spatial=spatial, san_width=1 / 32).train(training)
    out = model(torch.zeros(1, 1, 6, 32, 32, dtype=torch.uint8))
    assert (out.logits.shape, out.weights.tolist()) == ((1, 4), [[1.0]])
    assert out.logits.isfinite().all()
    model.loss(out, torch.tensor([2])).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("spatial", ["none", "shared", "san"])
def test_every_parameter_gets_a_gradient(spatial) -> None:
    torch.manual_seed(0)
    options = KEYWORDS | {"in_channels": 6, "input_size": 64}
    model = build(**options, family="sta_cnn", spatial=spatial, san_width=1 / 16)
    out = model(torch.randint(0, 256, (4, 3, 6, 64, 64), dtype=torch.uint8))
    model.loss(out, torch.arange(4)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_dropout_works_in_training_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    model = build(**KEYWORDS | {"dropout": 0.5}, family="sta_cnn", spatial="shared")
    x = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial": "both"}, "none, shared, san"),
        ({"select_loss": "max"}, "mean_logits, mean_loss"),
        ({"sal_weights": "tied"}, "per_position, shared"),
        ({"pool_weights": "sum"}, "softmax, raw"),
        ({"pool_scale": "sum"}, "none, mean"),
        ({"aux_pool": "max"}, "mean, sum"),
        ({"aux_lambda": -0.1}, "aux_lambda=-0.1"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"segments": 0}, "segments=0"),
        ({"segments": 4, "groups": 3}, "4 segments cannot be divided into groups=3"),
        ({"segments": 9, "groups": 3, "top": 4}, "top=4 of the 3 segments"),
        ({"spatial": "shared", "input_size": None}, "per_position' needs the input_size"),
        ({"spatial": "san"}, "in_channels 6.*not 3 channels of rgb"),
        ({"spatial": "san", "in_channels": 9}, "not 9 channels of rgb"),
        ({"spatial": "san", "modality": "flow", "in_channels": 6}, "not 6 channels of flow.*use spatial 'shared'"),
        ({"spatial": "san", "in_channels": 6, "san_width": 0.0}, "san_width=0.0"),
        ({"spatial": "san", "in_channels": 6, "san_last_pool_stride": 3}, "choose 1 or 2"),
        ({"san_pretrained": "x.pt"}, "no place to go"),
        ({"consensus": "avg"}, "'sta_cnn' has no switch consensus; it has spatial, groups, top"),
    ],
)
def test_misuse_is_refused_in_one_sentence(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**KEYWORDS | {"family": "sta_cnn"} | change)


def test_inputs_of_another_shape_are_refused() -> None:
    torch.manual_seed(0)
    model = build(**KEYWORDS, family="sta_cnn", spatial="shared")
    with pytest.raises(ValueError, match="segments, channels, height, width"):
        model(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="2x2 places, the map has 4x4"):
        model(torch.zeros(1, 3, 3, 64, 64))
    san = build(**KEYWORDS | {"in_channels": 6}, family="sta_cnn", spatial="san", san_width=1 / 32)
    with pytest.raises(ValueError, match="takes 6 channels"):
        san(torch.zeros(1, 3, 3, 32, 32))


def test_the_layer_takes_maps_of_any_size_with_shared_weights() -> None:
    layer = SpatialAttentionLayer(2, side=None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1))
    x = torch.arange(12.0).view(1, 2, 2, 3)
    assert layer(x).tolist() == [[[-6, -5, -4], [-3, -2, -1]]]
