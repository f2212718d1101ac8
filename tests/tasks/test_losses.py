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


def test_complex_errors_count_both_parts() -> None:
    prediction, target = (torch.randn(3, 5, 2, dtype=torch.complex128) for _ in range(2))
    prediction.requires_grad_()
    loss = squared_error(prediction, target)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, (prediction - target).abs().square().sum(-1) / 2)
    # d/dRe + i d/dIm of |p - t|^2 / 2 is p - t, at zero as well.
    loss.sum().backward()
    torch.testing.assert_close(prediction.grad, (prediction - target).detach())
    same = target.clone().requires_grad_()
    squared_error(same, target).sum().backward()
    assert (same.grad == 0).all()
