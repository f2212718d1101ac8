"""Positions are counted from 1 wherever they are public; places of a slice, as in Python, from 0."""

import torch
from torch import Tensor, nn

from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    ablate,
    capture,
    current_token,
    early_ascent,
    in_context_loss,
    past_token,
    patch,
    probe_layers,
    sensitivity,
)
from mesaopt.papers.uncovering2023.published import NOTEBOOK_POSITIONS
from mesaopt.tasks import Batch, FewShot, LinearSystem

TASK = LinearSystem(dim=2, length=4, token_slots=("current",))
FEW = Evaluation(num_sequences=256)


class Third(nn.Module):
    """Passes on the third token, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        third = torch.arange(tokens.shape[1])[:, None] == 2
        return self.part(tokens * third)


def test_the_third_token_is_at_position_3() -> None:
    model, batch = Third(), TASK.sample(8, seed=0)
    assert sensitivity(model, batch, name="part", position=3).position == 3
    strengths = sensitivity(model, batch, name="part", position=3).curve
    assert strengths.nonzero().flatten().tolist() == [2]  # an index of a tensor
    zeroed = patch(model, batch.tokens, {"part": 0.0}, positions=[3])
    assert not zeroed.any()
    kept = patch(model, batch.tokens, {"part": 0.0}, positions=[1, 2, 4])
    assert torch.equal(kept, capture(model, batch, ["part"])["part"])
    by_group = ablate(
        model,
        TASK,
        ["part"],
        by="zero",
        positions={"third": [3], "rest": [1, 2, 4]},
        evaluation=FEW,
    )
    assert by_group.at("part", "third").change.value != 0
    assert by_group.at("part", "rest").change.value == 0
    table = probe_layers(model, TASK, {"now": current_token}, names=["part"], positions=[2, 3])
    assert table.by_position("now", "part")[3].r2 > 0.999
    assert table.at("now", "part", 2).r2 < 0.1
    assert torch.equal(past_token(2)(batch, [3])[:, 0], batch.states[:, 0])


def test_losses_name_the_scored_positions() -> None:
    batch = Batch(torch.zeros(2, 6, 1), torch.zeros(2, 6, 1), scored=slice(1, None, 2))
    assert list(batch.positions) == [2, 4, 6]
    few_shot = FewShot(dim=2, length=6, prefix_length=1)
    loss = in_context_loss(lambda batch: torch.zeros_like(batch.targets), few_shot, FEW)
    assert list(loss.positions) == [2, 4, 6]  # x_1 is behind one vector
    rising = InContextLoss(torch.tensor([[1.0, 1.0, 2.0, 0.0]]).repeat(4, 1))
    assert early_ascent(rising).position == 3


def test_published_positions_are_counted_from_one() -> None:
    assert list(NOTEBOOK_POSITIONS) == [6, 11, 21, 31]  # 5, 10, 20 and 30 in the authors' notebook
