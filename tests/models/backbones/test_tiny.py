import pytest
import torch

from models.backbones.tiny import TinyCNN


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (96, 96), (96, 128)])
def test_any_size_from_32_gives_128_features(height, width) -> None:
    model = TinyCNN(in_channels=10).eval()
    x = torch.randn(2, 10, height, width)
    assert model.feature_map(x).shape == (2, 128, -(-height // 16), -(-width // 16))
    assert model(x).shape == (2, model.feature_dim)


def test_parameter_counts() -> None:
    # convolutions 25*16*C + 9*(16*32 + 32*64 + 64*128), BN 2*(16+32+64+128), classifier 129*6
    assert sum(p.numel() for p in TinyCNN(in_channels=10).parameters()) == 4000 + 96768 + 480
    assert sum(p.numel() for p in TinyCNN(in_channels=3, num_classes=6).parameters()) == 1200 + 96768 + 480 + 774


def test_features_are_the_mean_of_the_map() -> None:
    model = TinyCNN().eval()
    x = torch.randn(1, 3, 40, 64)
    grid = model.feature_map(x)
    expected = sum(grid[..., i, j] for i in range(3) for j in range(4)) / 12
    torch.testing.assert_close(model(x), expected)
