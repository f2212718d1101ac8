import pytest
import torch

from mesaopt.tasks import squared_error


def test_the_mean_is_the_published_normalisation() -> None:
    prediction, target = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    expected = ((prediction - target) ** 2).sum() / (2 * 3 * 5)
    torch.testing.assert_close(squared_error(prediction, target).mean(), expected)


def test_nothing_is_broadcast() -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(3, 5, 1\), target \(3, 5, 2\)"):
        squared_error(torch.zeros(3, 5, 1), torch.zeros(3, 5, 2))
