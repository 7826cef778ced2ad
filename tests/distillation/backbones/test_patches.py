import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax.distillation.backbones.patches import adaptive_pool_matrix, patch_features

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install torch")


def _reference(maps, channels, patch_channels):
    """PatchCore's steps one by one: unfold, resize the patches, pool, stack, pool."""
    functional = torch.nn.functional
    height, width = maps[0].shape[1:3]
    layers = []
    for array in maps:
        x = torch.from_numpy(array).permute(0, 3, 1, 2)
        patches = functional.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])
        patches = functional.interpolate(
            patches, size=(height, width), mode="bilinear", align_corners=False
        )
        rows = patches.permute(0, 2, 3, 1).flatten(0, 2)
        layers.append(functional.adaptive_avg_pool1d(rows[:, None], patch_channels)[:, 0])
    stacked = torch.stack(layers, dim=1).flatten(1)
    pooled = functional.adaptive_avg_pool1d(stacked[:, None], channels)[:, 0]
    return pooled.reshape(maps[0].shape[0], height, width, channels).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(2, 8, 8, 40), (2, 4, 4, 112)], id="lite0"),
        pytest.param([(1, 9, 7, 48), (1, 5, 4, 120)], id="lite2, odd sizes"),
        pytest.param([(1, 6, 5, 200), (1, 6, 5, 130)], id="one size, more entries than 1024"),
        pytest.param([(1, 5, 6, 3)], id="one map"),
        pytest.param([(1, 8, 8, 4), (1, 4, 4, 5), (1, 2, 2, 6)], id="three maps"),
    ],
)
def test_the_one_kernel_per_map_equals_patchcore_step_by_step(shapes):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    result = patch_features([jnp.asarray(m) for m in maps])
    expected = _reference(maps, 384, 1024)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_other_numbers_of_channels():
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(1, n, n, c)).astype(np.float32) for n, c in ((6, 7), (3, 9))]
    expected = _reference(maps, 10, 50)
    result = patch_features([jnp.asarray(m) for m in maps], channels=10, patch_channels=50)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("source", "target"), [(9, 4), (8, 4), (4, 9), (360, 1024), (5, 5)])
def test_the_pooling_matrix_is_torchs_adaptive_pooling(source, target):
    x = np.random.default_rng(0).normal(size=(3, source))
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(x), target).numpy()
    np.testing.assert_allclose(x @ adaptive_pool_matrix(source, target).T, expected, atol=1e-12)
