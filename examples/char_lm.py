"""Train a small language model on Python's standard library, character by character, and let it write.

    python examples/char_lm.py --layer mesanet2025
    python examples/char_lm.py --layer softmax_attention --steps 300 --prompt "import "

Any layer of the family can mix the tokens; everything else stays the same.
"""

import argparse
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mesaopt.layers import LayerState
from mesaopt.models.mixers import MIXERS

SIZES = {"width": 64, "depth": 2, "length": 64, "batch": 16, "steps": 500, "lr": 3e-3, "write": 300}
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # what source files are made of


class Block(nn.Module):
    """One layer: a mixer looks at the past, then an MLP at every position alone."""

    def __init__(self, layer: str, width: int):
        super().__init__()
        mixer = MIXERS[layer]
        self.mixer = mixer.layer(width, 4, width // 4, frame=mixer.frame, **mixer.settings)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def extend(self, x: Tensor, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """Process any number of further tokens."""
        mixed, state = self.mixer.extend(self.norms[0](x), state)
        x = x + mixed
        return x + self.mlp(self.norms[1](x)), state


class CharacterModel(nn.Module):
    """Predict the next character from all characters so far."""

    def __init__(self, layer: str, width: int, depth: int):
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), width)
        self.blocks = nn.ModuleList(Block(layer, width) for _ in range(depth))
        self.readout = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, len(CHARACTERS)))

    def forward(
        self, tokens: Tensor, states: Sequence[LayerState | None] | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """Return logits [batch, time, character], and the states to go on from."""
        x, ends = self.embedding(tokens), []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, end = block.extend(x, state)
            ends.append(end)
        return self.readout(x), ends


def read_corpus(held_out_every: int = 10) -> tuple[Tensor, Tensor]:
    """Read the standard library: most files to train on, every tenth to test on."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts: tuple[list[str], list[str]] = ([], [])
    for number, file in enumerate(files):
        parts[number % held_out_every == 0].append(file.read_text("utf-8", errors="ignore"))
    return encode("".join(parts[0])), encode("".join(parts[1]))


def encode(text: str) -> Tensor:
    """Turn characters into numbers; others than those of the alphabet are left out."""
    codes = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8).long()
    numbers = torch.where(codes == ord("\n"), 31, codes) - 31  # a new line, then the printable ones
    return numbers[(numbers >= 0) & (numbers < len(CHARACTERS))]


def loss_on(model: CharacterModel, text: Tensor, args: argparse.Namespace) -> Tensor:
    """Compute the cross-entropy on random windows of a text, in nats per character."""
    starts = torch.randint(len(text) - args.length, (args.batch, 1))
    windows = text[starts + torch.arange(args.length + 1)]
    return cross_entropy(model(windows[:, :-1])[0].flatten(0, 1), windows[:, 1:].flatten())


def train(
    model: CharacterModel, train_text: Tensor, test_text: Tensor, args: argparse.Namespace
) -> float:
    """Train with progress, and return the loss on files that were held out."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    warmup = max(0.1, 2 / max(3, args.steps))  # a tenth of the steps, two at least
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=warmup)
    begin, test_loss = time.monotonic(), float("nan")
    for step in range(1, args.steps + 1):
        loss = loss_on(model, train_text, args)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, args.steps // 10) == 0 or step == args.steps:
            with torch.no_grad():
                test_loss = loss_on(model, test_text, args).item()
            seconds = time.monotonic() - begin
            line = f"step {step}: loss {loss:.2f}, held out {test_loss:.2f}, {seconds:.0f} s"
            print(line, flush=True)
    return test_loss


@torch.no_grad()
def generate(model: CharacterModel, prompt: str, count: int) -> str:
    """Read the prompt at once, then write character by character from the states alone."""
    logits, states = model(encode(prompt)[None])
    written = []
    for _ in range(count):
        written.append(torch.multinomial(logits[:, -1].div(0.7).softmax(-1), 1))
        logits, states = model(written[-1], states)
    return prompt + "".join(CHARACTERS[token] for token in written)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train and write; return the loss on held-out files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layer", default="mesanet2025", choices=sorted(MIXERS))
    parser.add_argument("--prompt", default="def ")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args(arguments)
    if not any(character in CHARACTERS for character in args.prompt):
        parser.error("--prompt: must have a letter, a digit or a sign of ASCII")
    torch.manual_seed(0)
    model = CharacterModel(args.layer, args.width, args.depth)
    loss = train(model, *read_corpus(), args)
    print(generate(model, args.prompt, args.write))
    return loss


if __name__ == "__main__":
    main()
