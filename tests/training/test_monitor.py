import pytest
import torch
from torch import nn

from sslzoo_training.monitor import collapse_signs, effective_rank, feature_std, leave_one_out_knn


@pytest.mark.parametrize("dim", [16, 256])
def test_isotropic_features_have_std_and_rank_at_their_maximum(dim: int) -> None:
    features = torch.randn(4096, dim, generator=torch.Generator().manual_seed(0))
    assert feature_std(features) == pytest.approx(1, abs=0.02)
    assert effective_rank(features) == pytest.approx(dim, rel=0.05)


def test_the_std_is_lightlys_times_the_root_of_the_dimension() -> None:
    debug = pytest.importorskip("lightly.utils.debug")
    features = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 25) + 3
    theirs = debug.std_of_l2_normalized(features).item() * 24**0.5  # of a sample: over N - 1
    assert feature_std(features) == pytest.approx(theirs * (299 / 300) ** 0.5, rel=1e-5)


def test_constant_and_one_dimensional_features_are_seen() -> None:
    constant = torch.ones(64, 32)
    assert feature_std(constant) == pytest.approx(0, abs=1e-5)
    assert effective_rank(constant) == pytest.approx(1)
    line = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, 32)
    assert effective_rank(line) == pytest.approx(1, abs=0.01)
    assert feature_std(line) > 0.5  # the std alone does not see it


def test_rank_of_few_samples_in_many_dimensions_equals_the_svd_definition() -> None:
    features = torch.randn(20, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = nn.functional.normalize(features, dim=1)
    p = torch.linalg.svdvals(unit - unit.mean(0)).square()
    p = (p / p.sum())[:-1]
    assert effective_rank(features) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_collapse_signs_name_what_they_saw() -> None:
    assert collapse_signs(0.9, 20) == []
    assert "feature std 0.010" in collapse_signs(0.01, 20)[0]
    assert "effective rank 1.8" in collapse_signs(0.5, 1.8)[0]
    assert len(collapse_signs(0.0, 1.0)) == 2


def test_leave_one_out_knn_never_counts_the_image_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    apart = torch.randn(40, 8, generator=generator) * 0.1 + labels[:, None] * 4 - 2
    assert leave_one_out_knn(apart, labels, k=5) == 1.0
    # every image has one twin with the other label: voting for itself would give 1
    twins = torch.randn(20, 8, generator=generator).repeat_interleave(2, 0)
    assert leave_one_out_knn(twins, labels, k=1) == 0.0
