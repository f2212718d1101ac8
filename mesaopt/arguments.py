"""The arguments of every command, one typed object each, as :mod:`mesaopt.cli` parses them and
:mod:`mesaopt.commands` takes them. Docstrings are the help texts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional


def _value(metavar: str, name: str | None = None) -> Any:
    """Name the value of an argument in its help, where a default that says nothing is left out."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=_default)


def _default(text: str) -> str:
    return "" if text in ("None", "''", "") else f"(default: {text})"


_Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class List:
    """Show what there is: recipes to train, trained models, figures to reproduce, tasks.

    mesaopt list recipes

    mesaopt list zoo --json
    """

    what: Positional[Literal["all", "recipes", "zoo", "figures", "tasks"]] = "all"
    """Which of them."""
    json: _Switch = False
    """Print JSON."""


@dataclass(frozen=True)
class Doctor:
    """Check this machine, with a verdict on each thing: ok, slow or missing, and what to do.

    Exits with 1 if something is missing that is needed.

    mesaopt doctor

    mesaopt doctor --measure
    """

    measure: _Switch = False
    """Measure speed too, and estimate how long some commands take here: about ten seconds."""
    json: _Switch = False
    """Print JSON."""


@dataclass(frozen=True)
class Train:
    """Train a recipe in a run folder, or with --task a task of your own.

    Ctrl-C or a kill leave a folder that --resume continues, on the CPU bit for bit. At its end a language
    model is scored on test sequences, continues a text, and gets the report of its run.

    mesaopt train lsa-1

    mesaopt train lsa-1 --seeds 3 --set train.steps=500 --out runs/short

    torchrun --nproc-per-node 8 -m mesaopt train lm-mesanet --shard
    """

    recipe: Annotated[Positional[str], _value("RECIPE")] = ""
    """Name of a recipe; mesaopt list recipes shows them [with --task, tf-3]."""
    task: Annotated[str | None, _value("MODULE:CLASS")] = None
    """A task of your own; its module is imported. --set task.NAME=VALUE gives arguments to its class."""
    model: Annotated[str | None, _value("RECIPE|MODULE:CLASS")] = None
    """The model of another recipe, or a torch.nn.Module of your own; --set model.NAME=VALUE."""
    out: Annotated[Path | None, _value("DIR")] = None
    """Folder of the run, new or empty [runs/<recipe>-seed<seed>]; with --seeds, that of all [runs]."""
    seed: int = 0
    """Seed of the initial weights and of the training sequences."""
    seeds: Annotated[int, _value("N")] = 1
    """Number of seeds to train, from --seed on; on a GPU side by side."""
    set: Annotated[tuple[str, ...], _value("NAME=VALUE")] = ()
    """Settings to change, such as train.steps=500 model.num_heads=4; --dry-run shows them all."""
    device: Annotated[str, _value("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to compute; auto is a GPU if there is one."""
    shard: _Switch = False
    """Divide weights, gradients and optimiser among the processes of torchrun (FSDP), not only batches."""
    parts: Annotated[int, _value("N")] = 1
    """Compute a process's share of a batch in so many parts and add up the gradients, to save memory."""
    recompute: _Switch = False
    """Compute every block again for the gradients, to save memory (activation checkpointing)."""
    compile: _Switch = False
    """Compile every block with torch.compile."""
    resume: _Switch = False
    """Continue the run in the folder."""
    track: Annotated[str | None, _value("tensorboard|wandb|trackio")] = None
    """Log evaluations there too; pip install 'mesaopt[track]'. Of TensorBoard, in runs/tensorboard."""
    dry_run: _Switch = False
    """Print the settings and what the run would cost here, and stop."""


@dataclass(frozen=True)
class Sweep:
    """Train every combination of some settings, with several seeds: on cores, a Ray or a Slurm cluster.

    Each point is a run folder in the folder of the sweep, with a table and a picture of all. A point that
    fails does not stop the others; the status is then 1. --resume goes on, on any machine that sees the
    folder.

    mesaopt sweep lsa-1 --grid train.learning_rate=1e-4,3e-4 --grid model.num_heads=2,4 --seeds 3

    mesaopt sweep lsa-1 --grid train.batch_size=64,256 --engine ray --out batches
    """

    recipe: Annotated[Positional[str], _value("RECIPE")]
    """Name of a recipe; mesaopt list recipes shows them."""
    grid: Annotated[tuple[str, ...], _value("NAME=VALUE,...")] = ()
    """Settings and their values, such as train.learning_rate=1e-4,3e-4."""
    seeds: Annotated[int, _value("N")] = 1
    """Number of seeds of every combination."""
    set: Annotated[tuple[str, ...], _value("NAME=VALUE")] = ()
    """Settings to change in all points, such as train.steps=500."""
    engine: Annotated[str, _value("local|ray|slurm")] = "local"
    """Where to train: here, or on a cluster (pip install 'mesaopt[ray]' or 'mesaopt[slurm]')."""
    engine_set: Annotated[tuple[str, ...], _value("NAME=VALUE")] = ()
    """Options of the engine, such as processes=4 of local, gpus=1 of ray, partition=long of slurm."""
    out: Annotated[Path, _value("DIR")] = Path("sweep")
    """Folder of the sweep, new or empty."""
    device: Annotated[str, _value("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to compute; auto is a GPU if there is one, with --engine ray the CPU."""
    resume: _Switch = False
    """Go on with the sweep in the folder."""
    dry_run: _Switch = False
    """Print the points and what they would cost here, and stop."""


_Runs = Annotated[
    Positional[tuple[Path, ...]],
    tyro.conf.arg(name="run", metavar="RUN ...", help_behavior_hint="(one or more)"),
]
_Picture = Annotated[Path | None, _value("FILE.png|.svg|.html")]


@dataclass(frozen=True)
class Data:
    """Write a corpus of text as files of tokens, for large corpora and for tokenizers other than bytes.

    Needs the extra mesaopt[text] for tokenizers and for hf:NAME.

    mesaopt data prepare stdlib --out shards

    mesaopt data prepare notes --out shards --tokenizer bpe --vocabulary 4096
    """

    what: Positional[Literal["prepare"]]
    """prepare: tokenise a corpus. Train on it with --set task.corpus=DIR."""
    source: Annotated[Positional[str], _value("PATH|stdlib|hf:NAME")]
    """A file, a folder, Python's standard library, or the column text of a data set on Hugging Face."""
    out: Annotated[Path, _value("DIR")]
    """Folder of the files, new or empty."""
    tokenizer: Annotated[str, _value("bytes|bpe|FILE")] = "bytes"
    """Bytes; a byte-pair encoding that is learned from the training part; or a file tokenizer.json."""
    vocabulary: Annotated[int, _value("N")] = 4096
    """Of bpe: tokens to learn."""
    json: _Switch = False
    """Print JSON."""


@dataclass(frozen=True)
class Evaluate:
    """Score trained runs by position, compared with gradient descent and least squares.

    Runs of one task are scored on the same sequences. Runs of several tasks give one table for each task.

    mesaopt evaluate zoo:lsa-1

    mesaopt evaluate zoo:lsa-1 zoo:mesa-1 runs/lsa-1-seed0 --csv
    """

    runs: _Runs
    """Folders of runs, or trained models of the package, such as zoo:tf-3."""
    task: Annotated[str | None, _value("MODULE:CLASS")] = None
    """The task of your own that they were trained on; its module is imported."""
    model: Annotated[str | None, _value("MODULE:CLASS")] = None
    """The torch.nn.Module of your own that they are."""
    sequences: Annotated[int, _value("N")] = 2560
    """Test sequences, rounded up to batches of 256; no run was trained on them."""
    seed: int = 0
    """Seed of these sequences: 0 are those that a training is scored on, too, others are new."""
    out: _Picture = None
    """Write the figure here, or a page with the figure and the tables."""
    json: _Switch = False
    """Print JSON."""
    csv: _Switch = False
    """Print comma-separated values: a line for each predictor and position."""


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a trained language model.

    mesaopt generate runs/lm-mesanet-seed0 --prompt "def " --tokens 200 --temperature 0.8

    mesaopt generate runs/lm-mesanet-seed0 --prompt "import " --tokens 40 --beams 4
    """

    path: Annotated[Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run, or a trained model of the package."""
    prompt: Annotated[str, _value("TEXT")]
    """Prompt to continue: text, or numbers with spaces between them where tokens are no text."""
    tokens: Annotated[int, _value("N")] = 200
    """Tokens to add."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: Annotated[int | None, _value("K")] = None
    """Draw from the K likeliest tokens [all]."""
    top_p: Annotated[float | None, _value("P")] = None
    """Draw from the fewest tokens whose probabilities add up to P [all]."""
    samples: Annotated[int, _value("N")] = 1
    """Continuations to draw."""
    beams: Annotated[int | None, _value("N")] = None
    """Search for the N likeliest continuations instead of drawing some, without the options of drawing."""
    seed: int = 0
    """Seed of the random numbers."""
    device: Annotated[str, _value("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to compute; auto is a GPU if there is one."""
    json: _Switch = False
    """Print JSON, with the tokens as numbers."""


@dataclass(frozen=True)
class Diagnose:
    """Say whether there is a mesa-optimizer in trained runs: yes, no or unclear, and why.

    Several runs give a line each. The status is 0 whatever the answer.

    mesaopt diagnose zoo:tf-3

    mesaopt diagnose zoo:lsa-1 zoo:lsa-2 runs/lsa-1-seed0 --out page.html
    """

    runs: _Runs
    """Folders of runs, or trained models of the package, such as zoo:tf-3."""
    task: Annotated[str | None, _value("MODULE:CLASS")] = None
    """The task of your own that they were trained on; its module is imported."""
    model: Annotated[str | None, _value("MODULE:CLASS")] = None
    """The torch.nn.Module of your own that they are."""
    step: Annotated[int | None, _value("N")] = None
    """Step of the checkpoint to diagnose [the last]."""
    sequences: Annotated[int, _value("N")] = 1024
    """Test sequences, rounded up to batches of 256; no run was trained on them."""
    seed: int = 0
    """Seed of these sequences: 0 are those that a training is scored on, too, others are new."""
    out: _Picture = None
    """Write the figure here, or a page with the figure and the tables."""
    json: _Switch = False
    """Print JSON."""
    csv: _Switch = False
    """Print comma-separated values: lines for each run and algorithm."""


@dataclass(frozen=True)
class Compare:
    """Compare trained runs of one task with the first: losses, settings and training.

    All runs are scored on the same sequences, so differences are far more exact than the losses are.

    mesaopt compare zoo:lsa-1 zoo:lsa-2 zoo:mesa-1

    mesaopt compare runs/lsa-1-seed0 runs/lsa-1-seed1 --to zoo:lsa-1 --out curves.png
    """

    runs: _Runs
    """Folders of runs, or trained models of the package, such as zoo:tf-3."""
    to: Annotated[Path | None, _value("RUN")] = None
    """Compare all others with this run, which may be one of them [the first]."""
    task: Annotated[str | None, _value("MODULE:CLASS")] = None
    """The task of your own that they were trained on; its module is imported."""
    model: Annotated[str | None, _value("MODULE:CLASS")] = None
    """The torch.nn.Module of your own that they are."""
    sequences: Annotated[int, _value("N")] = 2560
    """Test sequences, rounded up to batches of 256; no run was trained on them."""
    seed: int = 0
    """Seed of these sequences: 0 are those that a training is scored on, too, others are new."""
    out: _Picture = None
    """Write the figure here, or a page with the figure and the tables."""
    json: _Switch = False
    """Print JSON."""
    csv: _Switch = False
    """Print comma-separated values: a line for each run, quantity and position."""


@dataclass(frozen=True)
class Reproduce:
    """Train, measure and judge a study, whole or some of its figures, and write its report.

    Exits with 0 if all claims hold, 1 if one fails, 2 after a usage error.

    mesaopt reproduce core --from-zoo

    mesaopt reproduce emergence2024 --only fig1 --dry-run
    """

    what: Annotated[Positional[str], _value("WHAT")]
    """Name of a study, or of a figure such as emergence2024/fig1; mesaopt list figures shows them."""
    scale: Annotated[str, _value("smoke|small|paper")] = "small"
    """smoke: a minute or two, to see that it runs. small: minutes to hours. paper: as published."""
    out: Annotated[Path, _value("DIR")] = Path("results")
    """Folder of the results, new or empty."""
    seeds: Annotated[int | None, _value("N")] = None
    """Training seeds of every recipe, or sets of sequences [the scale's own numbers]."""
    only: Annotated[str, _value("FIGURE,...")] = ""
    """Figures of the study to compute, such as fig1,fig3 [all of them]."""
    device: Annotated[str, _value("auto|cpu|cuda|cuda:N")] = "auto"
    """Where to compute; auto is a GPU if there is one."""
    runs: Annotated[Path | None, _value("DIR", name="from")] = None
    """Train nothing: measure the finished runs in this folder of run folders."""
    from_zoo: _Switch = False
    """Train nothing: measure the trained models of the package."""
    engine: Annotated[str | None, _value("local|ray|slurm")] = None
    """Train several runs at once, as mesaopt sweep does [one after another, on all cores]."""
    engine_set: Annotated[tuple[str, ...], _value("NAME=VALUE")] = ()
    """Options of the engine, such as processes=4."""
    resume: _Switch = False
    """Continue what is in the folder, with more figures if there are."""
    dry_run: _Switch = False
    """Print what it would cost here, and stop."""


@dataclass(frozen=True)
class Demo:
    """Show the first paper's main result on one page, in about a minute.

    Loads three trained models of the package, scores them next to gradient descent and least squares, takes
    one apart, asks of one whether it is a mesa-optimizer, and shows the report in the web browser.

    mesaopt demo

    mesaopt demo --out shown --no-open
    """

    out: Annotated[Path, _value("DIR")] = Path("results")
    """Folder of the results, new or empty, or that of an earlier demo."""
    train: _Switch = False
    """Train the models first, which takes minutes."""
    no_open: _Switch = False
    """Do not show the report in the web browser."""


@dataclass(frozen=True)
class ImportReleased:
    """Make run folders of the weights that the first paper's authors released, from your own clone.

    Give a clone of github.com/mtavit/transformers_mesa_optimization_paper with its first commit, c8c1e37,
    checked out. Only arrays are read from its pickles.

    mesaopt import-released clone

    mesaopt import-released clone --out released --overwrite
    """

    clone: Annotated[Positional[Path], _value("PATH")]
    """Folder of the clone."""
    out: Annotated[Path, _value("DIR")] = Path("released")
    """Folder of the run folders."""
    overwrite: _Switch = False
    """Replace the run folders of an earlier import."""
    json: _Switch = False
    """Print JSON."""


@dataclass(frozen=True)
class Claims:
    """Show the claims of a folder of results with their verdicts.

    mesaopt claims results

    mesaopt claims results --json
    """

    folder: Annotated[Positional[Path], _value("DIR")]
    """Folder that reproduce has written."""
    json: _Switch = False
    """Print JSON."""


@dataclass(frozen=True)
class Report:
    """Write the report of a folder of results anew, or that of a run.

    The page of a run shows its learning curve, its settings and what to type next; that of a language model
    its test scores, a text that it continues and its mixers, too.

    mesaopt report results --open

    mesaopt report runs/lsa-1-seed0 --out lsa-1.html
    """

    folder: Annotated[Positional[Path], _value("DIR|RUN")]
    """Folder that reproduce has written, a run folder, or a model of the package such as zoo:tf-3."""
    out: _Picture = None
    """Of a run: the file to write [report.html in its folder; of zoo:NAME, NAME.html here]."""
    redraw: _Switch = False
    """Of results: draw all figures again, from their saved numbers."""
    open: _Switch = False
    """Show it in the web browser."""


@dataclass(frozen=True)
class Bench:
    """Measure time, tokens a second, memory and errors on this machine.

    mesaopt bench train --recipe lsa-1

    mesaopt bench ops --quick

    mesaopt bench generate
    """

    what: Positional[Literal["train", "ops", "generate"]]
    """train: a training step of a recipe. ops: the operators. generate: a token of language models."""
    recipe: Annotated[str, _value("RECIPE")] = "lsa-2-notebook"
    """Of train: the recipe whose step is timed."""
    repeats: int = 30
    """Of train: timed repetitions, after a warm-up."""
    threads: Annotated[int | None, _value("N")] = None
    """Of train: threads to compute with [all cores]."""
    official: Annotated[Path | None, _value("PATH")] = None
    """Of train: a clone of the authors' JAX code, to time on all cores in turns with this package."""
    python: Annotated[Path | None, _value("PATH")] = None
    """Of train, with --official: an interpreter that has jax, flax and optax."""
    quick: _Switch = False
    """Of ops and generate: small sizes, to see in seconds that everything runs."""
    goals: _Switch = False
    """Show also what the developers of the package look at: goals, and shares of what is possible."""
    json: _Switch = False
    """Print JSON."""


@dataclass(frozen=True)
class Completion:
    """Print a script that lets the shell complete commands, options, recipes and trained models.

    In ~/.bashrc: eval "$(mesaopt completion bash)". In ~/.zshrc the same with zsh.

    mesaopt completion bash

    mesaopt completion zsh
    """

    shell: Positional[Literal["bash", "zsh"]]
    """Your shell; echo $SHELL shows it."""


Command = (
    Demo
    | List
    | Doctor
    | Train
    | Sweep
    | Data
    | Evaluate
    | Generate
    | Diagnose
    | Compare
    | Reproduce
    | ImportReleased
    | Claims
    | Report
    | Bench
    | Completion
)
"""The arguments of any command."""
