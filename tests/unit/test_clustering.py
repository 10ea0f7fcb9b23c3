"""K-means and Gaussian mixtures are scikit-learn's, textures are those of their definitions, and clusters get their class as stated."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from seawall.errors import DataError, ModelError, UsageError
from seawall.models.clustering import GaussianMixtureClustering, KMeansClustering
from seawall.models.clusters import SAMPLE_ROWS, ClusterSample
from seawall.models.pixel_features import PixelFeatures, gabor_filters, glcm_contrast, local_deviation
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water", "snow"), "reflectance", 10.0)
BINARY = ModelSpec(SPEC.bands, ("land", "water"), "reflectance", 10.0)
RADAR = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
SPECTRA = torch.tensor([[0.1, 0.3, 0.2], [0.06, 0.02, 0.01], [0.7, 0.6, 0.1], [0.15, 0.25, 0.3]])
KLASS = torch.tensor([0, 1, 2, 0])


def chips(count: int = 3, side: int = 20, seed: int = 0, noise: float = 0.02) -> Batch:
    """Patches of four materials in three classes, with some unseen and some unlabelled pixels."""
    draw = torch.Generator().manual_seed(seed)
    material = torch.randint(0, 4, (count, side // 4, side // 4), generator=draw)
    material = material.repeat_interleave(4, 1).repeat_interleave(4, 2)
    image = SPECTRA[material].movedim(-1, 1) + noise * torch.randn(count, 3, side, side, generator=draw)
    seen = torch.rand(material.shape, generator=draw) > 0.05
    valid = seen & (torch.rand(material.shape, generator=draw) > 0.1)
    label = torch.where(valid, KLASS[material], 255)
    return Batch(image * seen[:, None], label, seen, valid, tuple(f"c{seed}{i}" for i in range(count)))


def rows(model, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the standardized pixels of a fit, and the classes of those that are valid, else -1."""
    pixels = batch.image.movedim(1, -1)[batch.seen].double().numpy()
    label = torch.where(batch.valid, batch.label, -1)[batch.seen].numpy()
    return (pixels - pixels.mean(0)) / pixels.std(0), label


def test_k_means_is_scikit_learns_from_the_same_start() -> None:
    batch = chips()
    model = KMeansClustering(clusters=6)(SPEC)
    model.fit([batch], seed=4)
    pixels, _ = rows(model, batch)
    centers = model.clusters.centers.double().numpy()
    again = KMeans(6, init=centers, n_init=1).fit(pixels)
    np.testing.assert_allclose(again.cluster_centers_, centers, atol=1e-5)  # a fixed point of the iteration
    own = model.clusters.assign(batch.image.movedim(1, -1)[batch.seen])
    assert (own.numpy() == again.labels_).mean() > 0.999
    inertia = ((pixels - centers[own.numpy()]) ** 2).sum()
    assert inertia <= 1.001 * KMeans(6, n_init=10, random_state=9).fit(pixels).inertia_


def test_a_cluster_has_the_class_of_most_of_its_valid_pixels_and_their_shares() -> None:
    batch = chips(noise=0.06)
    model = KMeansClustering(clusters=5)(SPEC)
    model.fit([batch])
    _, label = rows(model, batch)
    cluster = model.clusters.assign(batch.image.movedim(1, -1)[batch.seen]).numpy()
    for k in range(5):
        counts = np.bincount(label[(cluster == k) & (label >= 0)], minlength=3)
        shares = model.log_shares[k].exp().numpy()
        np.testing.assert_allclose(shares, counts / counts.sum(), atol=2 / counts.sum())
        assert shares.argmax() == counts.argmax() and (shares > 0).all()
    logits = model(batch.image)
    assert torch.equal(logits.movedim(1, -1)[batch.seen], model.log_shares[cluster])


@pytest.mark.parametrize("covariance", ["tied", "full", "diag", "spherical"])
def test_the_posterior_of_a_mixture_is_scikit_learns(covariance) -> None:
    batch = chips()
    model = GaussianMixtureClustering(clusters=4, covariance=covariance)(SPEC)
    model.fit([batch], seed=1)
    clusters, (pixels, _) = model.clusters, rows(None, batch)
    oracle = GaussianMixture(4, covariance_type="full")
    oracle.weights_ = clusters.log_weights.double().exp().numpy()
    oracle.means_, oracle.precisions_cholesky_ = clusters.centers.double().numpy(), clusters.precisions.double().numpy()
    oracle.covariances_ = np.linalg.inv(oracle.precisions_cholesky_ @ oracle.precisions_cholesky_.transpose(0, 2, 1))
    posterior = clusters.log_posterior(batch.image.movedim(1, -1)[batch.seen]).exp().numpy()
    np.testing.assert_allclose(posterior, oracle.predict_proba(pixels), atol=1e-3)
    # it is a maximum of the likelihood: scikit-learn's own fit of this covariance is not clearly better
    best = max(
        GaussianMixture(4, covariance_type=covariance, random_state=s).fit(pixels).score(pixels) for s in range(4)
    )
    assert oracle.score(pixels) > best - 0.1
    shares = model.log_shares.exp().numpy()
    np.testing.assert_allclose(
        model(batch.image).softmax(1).movedim(1, -1)[batch.seen].numpy(), posterior @ shares, atol=1e-4
    )


def test_a_mixture_has_the_gradient_of_finite_differences() -> None:
    model = GaussianMixtureClustering(clusters=4, space="both", window=3)(SPEC)
    model.fit([chips()])
    image = chips(1, 4, seed=5).image.double() + 0.05
    assert torch.autograd.gradcheck(model.double(), (image.requires_grad_(),), atol=1e-4)


@pytest.mark.parametrize("make", [KMeansClustering, GaussianMixtureClustering])
def test_a_water_index_gives_each_cluster_the_class_of_its_mean(make) -> None:
    batch = chips()
    unlabelled = Batch(batch.image, batch.label, batch.seen, torch.zeros_like(batch.valid), batch.chips)
    model = make(clusters=4, classes="ndwi > 0.1")(BINARY)
    model.fit([unlabelled])  # a rule needs no labels
    green, nir, _ = SPECTRA.T
    ndwi = (green - nir) / (green + nir)
    image = SPECTRA.T[None, :, None].contiguous()
    assert torch.equal(model(image).argmax(1)[0, 0], (ndwi > 0.1).long())
    with pytest.raises(DataError, match="expected labelled training pixels"):
        make(clusters=4)(BINARY).fit([unlabelled])


def test_the_sample_is_even_and_the_same_for_any_order_of_the_chips() -> None:
    def part(seed: int, count: int) -> ClusterSample:
        draw = np.random.default_rng(seed).random(count)
        column = np.full(count, float(seed))
        return ClusterSample(column[:, None], column, column[:, None], column, draw)

    parts = [part(0, 3000), part(1, 1000), part(2, 2000)]
    sample = ClusterSample.merged("x", parts, most=1200)
    again = ClusterSample.merged("x", parts[::-1], most=1200)
    assert (
        len(sample) == 1200 and np.array_equal(sample.draw, again.draw) and np.array_equal(sample.weight, again.weight)
    )
    counts = np.bincount(sample.weight.astype(int))
    assert np.allclose(counts, [600, 200, 400], atol=3 * np.sqrt([300, 167, 267]))
    assert len(ClusterSample.merged("x", parts)) == 6000 < SAMPLE_ROWS


def test_glcm_contrast_is_that_of_the_counted_matrix() -> None:
    rng = np.random.default_rng(0)
    gray, seen = rng.integers(1, 6, (7, 8)), rng.random((7, 8)) > 0.2
    got = glcm_contrast(torch.tensor(gray)[None, None].float(), torch.tensor(seen)[None, None], 3)[0, 0]
    for row, col in np.ndindex(gray.shape):
        contrasts = []
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            matrix = np.zeros((6, 6))
            for r in range(max(0, row - 1), min(7, row + 2)):
                for c in range(max(0, col - 1), min(8, col + 2)):
                    r2, c2 = r + down, c + right
                    inside = abs(r2 - row) <= 1 and abs(c2 - col) <= 1 and r2 < 7 and 0 <= c2 < 8
                    if inside and seen[r, c] and seen[r2, c2]:
                        matrix[gray[r, c], gray[r2, c2]] += 1
            if matrix.sum():
                levels = np.arange(6)
                contrasts.append(((levels[:, None] - levels) ** 2 * matrix / matrix.sum()).sum())
        assert got[row, col].item() == pytest.approx(np.mean(contrasts) if contrasts else 0.0, abs=1e-4)


def test_local_deviation_is_that_of_the_seen_pixels_in_the_window() -> None:
    rng = np.random.default_rng(1)
    image, seen = 0.1 * rng.random((6, 9)) + 0.2, rng.random((6, 9)) > 0.3
    got = local_deviation(torch.tensor(image)[None, None].float(), torch.tensor(seen)[None, None], 5)[0, 0]
    for row, col in np.ndindex(image.shape):
        window = (slice(max(0, row - 2), row + 3), slice(max(0, col - 2), col + 3))
        found = image[window].astype(np.float32)[seen[window]]
        assert got[row, col].item() == pytest.approx(found.std() if len(found) else 0.0, abs=1e-4)


def test_gabor_filters_answer_to_waves_of_their_direction_alone() -> None:
    window = 13
    features = PixelFeatures(1, "reflectance", "texture", "gabor", window)
    x = torch.arange(40.0)
    wave = 0.3 + 0.1 * torch.cos(2 * np.pi * x / (window / 2))
    across = features(wave.expand(1, 1, 40, 40))[0, :, 20, 20]
    along = features(wave[:, None].expand(40, 40)[None, None])[0, :, 20, 20]
    assert across.argmax() == 0 and along.argmax() == 2 and across[0] > 5 * across[2] and along[2] > 5 * along[0]
    assert features(torch.full((1, 1, 20, 20), 0.3)).max() < 1e-4  # borders and constants have no texture
    filters = gabor_filters(window)
    assert filters.sum((1, 2, 3)).abs().max() < 1e-6 and torch.allclose(filters.square().sum((1, 2, 3)), torch.ones(8))


@pytest.mark.parametrize("texture", ["statistics", "glcm", "gabor"])
def test_unseen_pixels_around_an_image_change_no_texture(texture) -> None:
    model = KMeansClustering(clusters=4, space="texture", texture=texture, window=5)(SPEC)
    model.fit([chips()])
    image = chips(1, 16, seed=8).image
    around = torch.nn.functional.pad(image, (7, 3, 5, 9))
    alone, padded = model.features(image), model.features(around)[..., 5:-9, 7:-3]
    assert (alone - padded).abs().max() < 1e-6 and torch.equal(model(image), model(around)[..., 5:-9, 7:-3])


@pytest.mark.parametrize("settings", [{}, {"space": "texture"}, {"space": "both", "texture": "glcm", "window": 5}])
@pytest.mark.parametrize("make", [KMeansClustering, GaussianMixtureClustering])
def test_hostile_training_chips_have_a_defined_result(make, settings) -> None:
    constant = torch.full((1, 3, 8, 8), 0.2)
    model = make(clusters=8, **settings)(SPEC)  # more clusters than distinct pixels
    one_class = Batch.of(constant, torch.full((1, 8, 8), 2))
    model.fit([one_class])
    assert (model(constant).argmax(1) == 2).all() and (model(constant + 1).argmax(1) == 2).all()
    few = make(clusters=64)(SPEC)
    few.fit([Batch.of(SPECTRA.T[None, :, None].contiguous(), KLASS[None, None])])
    assert torch.equal(few(SPECTRA.T[None, :, None].contiguous()).argmax(1)[0, 0], KLASS)
    blind = Batch.of(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8).long(), seen=torch.zeros(1, 8, 8).bool())
    for nothing in ([], [blind]):
        with pytest.raises(DataError, match="seen pixels, got none"):
            make()(SPEC).fit(nothing)
    with pytest.raises(ModelError, match="expected a fitted model"):
        make()(SPEC)(constant)
    with pytest.raises(ModelError, match="expected 3 bands"):
        model(constant[:, :2])


def test_backscatter_clusters() -> None:
    draw = torch.Generator().manual_seed(0)
    water = torch.rand(2, 16, 16, generator=draw) > 0.5
    image = torch.where(water[:, None], -22.0, -9.0) + torch.randn(2, 2, 16, 16, generator=draw)
    for make in (KMeansClustering, GaussianMixtureClustering):
        for classes in ("majority", "water-index", "vh < -15"):
            model = make(clusters=3, classes=classes)(RADAR)
            model.fit([Batch.of(image, water.long())])
            assert (model(image).argmax(1) == water).float().mean() > 0.99


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, word in (
        ({"clusters": 0}, "1..1024"),
        ({"space": "both", "window": 4}, "odd"),
        ({"window": 9}, "only colors are compared"),
        ({"texture": "gabor"}, "only colors are compared"),
        ({"classes": "majorty"}, "did you mean 'majority'"),
        ({"classes": "mndwi < 0"}, "turn it around"),
        ({"classes": "mndwi >= 0"}, "use < or >"),
    ):
        for make in (KMeansClustering, GaussianMixtureClustering):
            with pytest.raises(UsageError, match=word):
                make(**settings)
    with pytest.raises(ModelError, match="two classes"):
        KMeansClustering(classes="ndwi > 0")(SPEC)
    with pytest.raises(ModelError, match="B02"):
        KMeansClustering(classes="awei_sh > 0")(BINARY)
