import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.preprocessing import StandardScaler

from sslzoo_evaluations.linear import Linear, LogisticRegression, fit, held_out
from sslzoo_evaluations.protocol import Split


@pytest.fixture
def split():
    """300 images with 3 views in 20 correlated dimensions, one of them dead; 4 classes that overlap."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=g)
    centres = torch.randn(4, 20, generator=g)
    mix = torch.randn(20, 20, generator=g)
    x = (centres[labels][:, None] + 1.5 * torch.randn(300, 3, 20, generator=g)) @ mix + 5
    x[..., 7] = 0
    return Split(x, labels, 4)


@pytest.mark.parametrize("weight_decay", [1.0, 1e-2, 1e-4])
def test_the_minimum_is_scikit_learns(split, weight_decay):
    x, y = split.features.flatten(0, 1).double().numpy(), split.labels.repeat_interleave(3).numpy()
    standard = StandardScaler().fit_transform(x)
    reference = Reference(C=1 / (weight_decay * len(y)), tol=1e-8, max_iter=5000).fit(standard, y)
    mine = LogisticRegression(split).fit(weight_decay)
    probabilities = (((split.features.flatten(0, 1) - mine.mean) / mine.std) @ mine.weight + mine.bias).softmax(1)
    expected = torch.as_tensor(reference.predict_proba(standard)).float()
    assert (probabilities - expected).abs().max() < 0.02
    assert (probabilities - expected).abs().mean() < 0.002


def test_where_it_starts_does_not_matter(split):
    problem = LogisticRegression(split)
    cold, warm = problem.fit(1e-2), problem.fit(1e-2, start=problem.fit(1.0))
    assert torch.allclose(cold.weight, warm.weight, atol=0.02)
    assert cold.weight.abs().max() > 0.2


def test_held_out_is_a_part_of_each_class_and_decided_by_the_seed():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 2 + [3])
    mask = held_out(labels, 0.1, seed=0)
    assert labels[mask].bincount(minlength=4).tolist() == [5, 2, 1, 0]
    assert torch.equal(mask, held_out(labels, 0.1, seed=0))
    assert not torch.equal(mask, held_out(labels, 0.1, seed=1))


def test_one_image_a_class_is_refused():
    with pytest.raises(ValueError, match="at least two training images"):
        held_out(torch.tensor([0, 1]), 0.1, seed=0)


def test_the_weight_decay_chosen_is_the_best_on_the_held_out_part(split, monkeypatch):
    accuracies = {1.0: 0.2, 1e-1: 0.9, 1e-2: 0.3, 1e-3: 0.4, 1e-4: 1.0}
    fits = []

    class Fake:
        def __init__(self, train):
            self.images = len(train.labels)

        def fit(self, weight_decay, *, start):
            fits.append((self.images, weight_decay))
            return weight_decay_as_model(weight_decay)

    def weight_decay_as_model(weight_decay):
        model = Linear(*(torch.zeros(1) for _ in range(4)))
        right = int(accuracies[weight_decay] * len(held))
        object.__setattr__(model, "predict", lambda x: torch.where(torch.arange(len(x)) < right, held, held + 1))
        return model

    held = split.labels[held_out(split.labels, 0.1, 0)]
    monkeypatch.setattr("sslzoo_evaluations.linear.LogisticRegression", Fake)
    _, settings = fit(split, 0)
    assert settings["weight_decay"] == 0.1
    kept = 300 - len(held)
    assert fits == [(kept, 1.0), (kept, 1e-1), (kept, 1e-2), (kept, 1e-3), (300, 1e-1)]  # two worse: no weaker one


def test_a_probe_beats_chance_by_far_on_unseen_views(split):
    predict, settings = fit(split, 0)
    fresh = split.features[:, 0] + 0.1
    assert (predict(fresh) == split.labels).float().mean() > 0.6
    assert float(settings["held_out_top1"]) > 0.5
