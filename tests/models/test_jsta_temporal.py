import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.backbones.res3d18 import Res3D18
from models.jsta import JSTASpatial
from models.jsta_temporal import ClipAttention, JSTATemporal, KerasGate, MixtureOfExperts, spread

LENGTHS = (5, 2, 1)
POOLS_AND_CLASSIFIERS = [
    (pool, classifier)
    for pool in ("avg", "max", "concat")
    for classifier in ("fc", "moe", "lstm")
    if (classifier, pool) not in (("lstm", "max"), ("lstm", "concat"))
]


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def model(*, std: float = 0.5, **switches) -> JSTATemporal:
    """Small, with random weights of order one, so that the attention is far from uniform."""
    made = JSTATemporal(**{"num_classes": 4, "feature_dim": 6, "hidden": 5, "clips": 3, **switches})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std)
    return made.eval()


def videos(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Features, with garbage for padding, and their mask."""
    features = torch.rand(len(lengths), max(lengths), 6) * 2
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    features[~mask] = torch.nan
    return features, mask


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def lstm(x: np.ndarray, module: nn.LSTM, suffix: str, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Equation (2) of the paper over x (N, D) -> states (N, hidden)."""
    w, u, b, d = (
        array(getattr(module, f"{name}_l0{suffix}")) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    states = []
    for frame in x:
        i, f, g, o = np.split(w @ frame + u @ h + b + d, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def perceptron(x: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    for linear in (layers[0], layers[2]):
        x = np.tanh(array(linear.weight) @ x + array(linear.bias))
    return x


MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], axis=1),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "avg": lambda f, b: (f + b) / 2,
}


def beta(x: np.ndarray, attention: ClipAttention, merge: str) -> np.ndarray:
    """Equations (18) to (20) and (22) for the clips (N, D) of one video."""
    mean = x.mean(axis=0)
    (h_forward, h_backward), (c_forward, c_backward) = (
        [perceptron(mean, layers) for layers in inits] for inits in (attention.initial_h, attention.initial_c)
    )
    forward = lstm(x, attention.lstm, "", h_forward, c_forward)
    backward = lstm(x[::-1], attention.lstm, "_reverse", h_backward, c_backward)[::-1]
    energy = MERGES[merge](forward, backward) @ array(attention.energy.weight)[0] + array(attention.energy.bias)
    return softmax(float(attention.scale.detach()) * sigmoid(energy))


@pytest.mark.parametrize("merge", MERGES)
def test_equations_18_to_22_against_numpy(merge) -> None:
    made = model(merge=merge)
    nn.init.constant_(made.attention.scale, 9.0)
    features, mask = videos()
    got = made(features, mask).weights
    for video, length in enumerate(LENGTHS):
        want = beta(array(features[video, :length]), made.attention, merge)
        np.testing.assert_allclose(array(got[video, :length]), want, rtol=1e-4)
        assert not got[video, length:].any()
    assert got[0].max() > 1.2 * got[0].min()


def test_equal_weights_are_bounded_at_first_by_e() -> None:
    made = JSTATemporal(num_classes=2, feature_dim=6, hidden=5)
    assert made.attention.scale.item() == 1
    nn.init.normal_(made.attention.energy.weight, std=1000.0)  # the sigmoid saturates at 0 and at 1
    weights = made(torch.randn(20, 8, 6)).weights
    ratio = (weights.amax(dim=1) / weights.amin(dim=1)).max().item()
    assert ratio == pytest.approx(math.e, rel=1e-3)


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(0.2 * x + 0.5, 0, 1)


def keras_lstm(x: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All of Keras's LSTM of one unit with activation softmax: gates i, f, c, o in the columns of w (D, 4)."""
    h, c, states = np.zeros(1), np.zeros(1), []
    for frame in x:
        i, f, g, o = (frame @ w + h @ u + b)[:, None]
        c = hard_sigmoid(f) * c + hard_sigmoid(i) * softmax(g)
        h = hard_sigmoid(o) * softmax(c)
        states.append(h[0])
    return np.array(states)


def test_keras_gate_is_all_that_is_left_of_the_released_lstm(rng) -> None:
    gate = KerasGate(6)
    features, mask = videos()
    released = [[rng.normal(size=shape) * 2 for shape in ((6, 4), (1, 4), (4,))] for _ in range(2)]
    with torch.no_grad():
        for direction, (w, u, b) in enumerate(released):
            gate.input.weight[direction] = torch.from_numpy(w[:, 3])
            gate.recurrent[direction] = float(u[0, 3])
            gate.input.bias[direction] = float(b[3])
    made = model(temporal="keras_gate")
    made.attention = gate
    got = made(features, mask).weights
    for video, length in enumerate(LENGTHS):
        x = array(features[video, :length])
        want = (keras_lstm(x, *released[0]) + keras_lstm(x[::-1], *released[1])[::-1]) / 2
        np.testing.assert_allclose(array(got[video, :length]), want, rtol=1e-4, atol=1e-6)
        assert not got[video, length:].any()
    assert 0.05 < got[mask].std() < 0.5


@pytest.mark.parametrize("temporal", ["paper", "none"])
@pytest.mark.parametrize("pool", ["avg", "concat"])
def test_weights_sum_to_one_over_the_clips(temporal, pool) -> None:
    made = model(temporal=temporal, clip_pool=pool)
    features, mask = videos((7, 3, 1))
    weights = made(features, mask).weights
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert not weights[~mask].any()
    if pool == "avg" and temporal == "none":
        torch.testing.assert_close(weights, mask / mask.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("temporal", ["paper", "keras_gate", "none"])
@pytest.mark.parametrize(("pool", "classifier"), POOLS_AND_CLASSIFIERS)
def test_padding_changes_nothing(temporal, pool, classifier) -> None:
    made = model(temporal=temporal, clip_pool=pool, classifier=classifier)
    features, mask = videos()
    padded = made(features, mask)
    for video, length in enumerate(LENGTHS):
        alone = made(features[video : video + 1, :length])
        torch.testing.assert_close(padded.logits[video], alone.logits[0])
        torch.testing.assert_close(padded.weights[video, :length], alone.weights[0])
        torch.testing.assert_close(padded.segment_logits[video, :length], alone.segment_logits[0])


@pytest.mark.parametrize(("pool", "classifier"), POOLS_AND_CLASSIFIERS)
def test_equal_weights_are_no_attention(pool, classifier) -> None:
    made = model(clip_pool=pool, classifier=classifier)
    plain = model(clip_pool=pool, classifier=classifier, temporal="none")
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("attention.")})
    nn.init.zeros_(made.attention.scale)
    features, mask = videos()
    torch.testing.assert_close(made(features, mask).logits, plain(features, mask).logits)
    torch.testing.assert_close(made(features, mask).weights, plain(features, mask).weights)


@pytest.mark.parametrize("temporal", ["paper", "keras_gate"])
@pytest.mark.parametrize("pool", ["avg", "max", "concat"])
def test_merging_of_weighted_clips_by_hand(temporal, pool) -> None:
    made = model(temporal=temporal, clip_pool=pool)
    features = torch.rand(1, 3, 6)
    out = made(features)
    factors = out.weights[0] * (3 if temporal == "paper" else 1)
    weighted = array(features[0]) * array(factors)[:, None]
    want = {"avg": weighted.mean(axis=0), "max": weighted.max(axis=0), "concat": weighted.reshape(-1)}[pool]
    logits = array(made.classify.weight) @ want + array(made.classify.bias)
    np.testing.assert_allclose(array(out.logits[0]), logits, rtol=1e-4, atol=1e-5)


def test_average_of_equal_weights_is_average_pooling() -> None:
    made = model(temporal="none")
    features = torch.rand(2, 4, 6)
    torch.testing.assert_close(made(features).logits, made.classify(features.mean(dim=1)))


def test_concat_spreads_over_the_clips() -> None:
    chosen = spread(torch.tensor([3, 4, 9, 2, 1]), clips=3)
    assert chosen.tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 7], [0, 1, 1], [0, 0, 0]]
    made = model(clip_pool="concat", temporal="none")
    weights = made(*videos((9, 2, 1))).weights
    assert weights[0].nonzero().flatten().tolist() == [1, 4, 7]
    torch.testing.assert_close(weights[1, :2], torch.tensor([1 / 3, 2 / 3]))
    assert weights[2, 0] == 1


def test_mixture_of_experts_against_numpy() -> None:
    made = MixtureOfExperts(6, 5)
    x = torch.randn(3, 6)
    gate = softmax(array(x) @ array(made.gate.weight).T + array(made.gate.bias))
    experts = (array(x) @ array(made.experts.weight).T + array(made.experts.bias)).reshape(3, 4, 5)
    want = np.einsum("be,bek->bk", gate, softmax(experts))
    np.testing.assert_allclose(array(made(x).exp()), want, rtol=1e-4)
    np.testing.assert_allclose(want.sum(axis=1), 1)


def test_loss_of_experts_is_the_likelihood_of_the_mixture() -> None:
    made = model(classifier="moe")
    out = made(torch.rand(2, 3, 6))
    want = -(out.logits[0, 1] + out.logits[1, 2]) / 2
    torch.testing.assert_close(made.loss(out, torch.tensor([1, 2])), want)


def test_lstm_classifier_against_numpy() -> None:
    made = model(classifier="lstm")
    features, mask = videos()
    out = made(features, mask)
    for video, length in enumerate(LENGTHS):
        weighted = array(features[video, :length]) * array(out.weights[video, :length])[:, None] * length
        last = lstm(weighted, made.lstm, "", np.zeros(5), np.zeros(5))[-1]
        want = array(made.classify.weight) @ last + array(made.classify.bias)
        np.testing.assert_allclose(array(out.logits[video]), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pool", "classifier"), POOLS_AND_CLASSIFIERS)
def test_segment_logits_are_those_of_one_unweighted_clip(pool, classifier) -> None:
    made = model(clip_pool=pool, classifier=classifier)
    plain = model(clip_pool=pool, classifier=classifier, temporal="none")
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("attention.")})
    features = torch.rand(2, 3, 6)
    out = made(features)
    for clip in range(3):
        torch.testing.assert_close(out.segment_logits[:, clip], plain(features[:, clip : clip + 1]).logits)
    if classifier == "fc" and pool == "avg":  # affine, so that the video is the weighted sum of its clips
        torch.testing.assert_close(out.logits, torch.einsum("bn,bnk->bk", out.weights, out.segment_logits))


def test_published_counts() -> None:
    with torch.device("meta"):
        made = JSTATemporal(num_classes=51)
        attention = made.attention
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in attention.named_children()}
        assert sizes["lstm"] == 4_202_496
        assert sizes["initial_h"] == sizes["initial_c"] == 2 * 2 * (512 * 512 + 512)
        assert sizes["energy"] == 1025
        assert sum(parameter.numel() for parameter in made.classify.parameters()) == 513 * 51
        assert sum(p.numel() for p in JSTATemporal(num_classes=51, temporal="none").parameters()) == 513 * 51
        assert sum(p.numel() for p in JSTATemporal(num_classes=51, clip_pool="concat").classify.parameters()) == (
            (4 * 512 + 1) * 51
        )


@pytest.mark.parametrize("temporal", ["paper", "keras_gate"])
@pytest.mark.parametrize(("pool", "classifier"), POOLS_AND_CLASSIFIERS)
def test_gradients_reach_every_part_of_the_attention(temporal, pool, classifier) -> None:
    made = model(temporal=temporal, clip_pool=pool, classifier=classifier, std=0.3).train()
    out = made(torch.rand(4, 5, 6))
    made.loss(out, torch.arange(4)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in made.parameters())


@pytest.mark.parametrize(
    ("temporal", "classifier"),
    [("paper", "fc"), ("paper", "moe"), ("paper", "lstm"), ("keras_gate", "fc"), ("none", "moe")],
)
def test_eight_videos_are_learnt_by_heart(temporal, classifier) -> None:
    made = JSTATemporal(num_classes=4, feature_dim=16, hidden=16, temporal=temporal, classifier=classifier, dropout=0.2)
    features, labels = torch.randn(8, 5, 16), torch.arange(8) % 4
    mask = torch.arange(5) < torch.tensor([5, 1, 2, 5, 3, 4, 5, 2])[:, None]
    optimizer = torch.optim.RMSprop(made.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        made.loss(made(features, mask), labels, label_smoothing=0.0).backward()
        optimizer.step()
    out = made.eval()(features, mask)
    assert (out.logits.argmax(dim=1) == labels).all()
    assert made.loss(out, labels).item() < 0.2


def test_attention_finds_the_clip_that_tells() -> None:
    """One clip of six carries the class; the others are noise alike in all classes."""
    made = JSTATemporal(num_classes=2, feature_dim=8, hidden=8)
    labels, place = torch.arange(32) % 2, torch.randint(0, 6, (32,))
    features = torch.rand(32, 6, 8) * 0.5
    features[torch.arange(32), place] = torch.eye(8)[labels] * 2
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        made.loss(made(features), labels).backward()
        optimizer.step()
    weights = made(features).weights
    assert (weights.argmax(dim=1) == place).float().mean() > 0.9
    assert weights[torch.arange(32), place].mean() > 1.5 / 6


def test_autocast_and_half_precision_features_change_nothing() -> None:
    made = model()
    features, mask = videos()
    features = features.half()
    exact = made(features.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(features, mask)
    assert all(torch.equal(mine, other) for mine, other in zip(out, exact, strict=True))
    assert all(part.dtype == torch.float32 for part in out)


def test_each_step_leaves_the_weights_of_the_other_alone() -> None:
    spatial = JSTASpatial(Res3D18(width=2), num_classes=3, modality="rgb", in_channels=24)
    temporal = JSTATemporal(num_classes=3, feature_dim=16, hidden=8)
    x, labels = torch.randint(0, 256, (2, 3, 24, 16, 16), dtype=torch.uint8), torch.tensor([0, 2])

    def step(model: nn.Module, inputs: Tensor) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.loss(model(inputs), labels).backward()
        optimizer.step()

    def copy(model: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
        return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    s_before, t_before = copy(spatial), copy(temporal)
    step(spatial, x)
    assert same(temporal, t_before)
    assert not same(spatial, s_before)
    s_before = copy(spatial)
    spatial.eval()
    step(temporal, spatial.clip_features(x.flatten(0, 1)).unflatten(0, (2, 3)).detach())
    assert same(spatial, s_before)  # the statistics of BN too
    assert not same(temporal, t_before)


def test_dropout_rests_in_evaluation() -> None:
    made = model(dropout=0.5)
    features, mask = videos()
    assert torch.equal(made(features, mask).logits, made(features, mask).logits)
    made.train()
    assert not torch.equal(made(features, mask).logits, made(features, mask).logits)


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("temporal", "keras"),
        ("merge", "max"),
        ("clip_pool", "sum"),
        ("classifier", "svm"),
        ("dropout", -0.1),
        ("clips", 0),
    ],
)
def test_impossible_switches(switch, value) -> None:
    with pytest.raises(ValueError, match=f"{switch}={value!r}"):
        model(**{switch: value})


def test_pooling_before_an_lstm_is_refused() -> None:
    with pytest.raises(ValueError, match="clip_pool='max' would do nothing"):
        model(classifier="lstm", clip_pool="max")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 7), (2, 0, 6)])
def test_features_of_another_shape(shape) -> None:
    with pytest.raises(ValueError, match=r"takes features \(videos, clips, 6\)"):
        model()(torch.zeros(shape))


@pytest.mark.parametrize("mask", [[[False, True]], [[False, False]], [[1, 1]]])
def test_masks_that_are_none(mask) -> None:
    with pytest.raises(ValueError, match="a mask must be bool and true for one clip or more"):
        model()(torch.zeros(1, 2, 6), torch.tensor(mask))
