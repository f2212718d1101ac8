"""From a run folder to a folder that transformers loads, and back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from mesaopt import files, json_files
from mesaopt.config import LanguageModelConfig, RunConfig, TextConfig, from_dict, to_dict
from mesaopt.corpus import ByteTokenizer, tokenizer_of
from mesaopt.corpus.tokenizer import import_tokenizers
from mesaopt.errors import ConfigError, RunError
from mesaopt.hf.configuration import MesaoptConfig
from mesaopt.hf.modelling import MesaoptForCausalLM
from mesaopt.models.language import require_language_model
from mesaopt.models.random import keep_global_random
from mesaopt.training import Checkpoint, RunFolder, Trainer
from mesaopt.training.loop import load_folder, metrics_line

_RUN = "mesaopt_run.json"  # settings of the run and its step, next to config.json


def export(run: str | Path, path: str | Path, *, step: int | None = None) -> Path:
    """Write the language model of a run as a folder that `from_pretrained` loads.

    The settings of the run come along. So does a tokenizer where the run has learnt text: the one it used,
    or one whose tokens are bytes.

    Args:
        run: folder of the run.
        path: of the folder to write, new or empty.
        step: of the weights; the newest if None.

    Returns:
        The folder.

    Raises:
        ConfigError: the model of the run is no language model, or its tokenizer is lost.
        RunError: there is no such run, the folder holds files, or it cannot be written.

    Example:
        >>> export("no/such/run", "pretrained")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: run='no/such/run': there is no such folder
    """
    folder, out = RunFolder(files.as_path(run)), files.as_path(path)
    config = folder.config
    if type(config.model) is not LanguageModelConfig:
        raise ConfigError(f"run={str(run)!r}: model.kind={config.model.kind!r}: must be 'language'")
    files.require_free(out)
    step = max(folder.steps, default=0) if step is None else step
    trained = load_folder(folder, step=step, device="cpu").model
    model = wrap(trained)
    tokenizer = _tokenizer(config)
    model.save_pretrained(out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    json_files.write(out / _RUN, {"step": step, "run": to_dict(config)})
    return out


def restore(path: str | Path, run: str | Path) -> Path:
    """Write a run folder from a folder that :func:`export` wrote, whether it was trained on or not.

    As for other weights from elsewhere, the metrics have the line of the last step alone, with the loss
    measured here.

    Args:
        path: the folder with the model.
        run: the run folder to write, new or empty.

    Returns:
        The run folder.

    Raises:
        ConfigError: the model is of another architecture.
        RunError: the folder was not exported from a run, or before its first step, or the other one
            cannot be written.
    """
    source, out = files.as_path(path), files.as_path(run)
    saved = json_files.read(source / _RUN, {"step": int})
    config = from_dict(RunConfig, saved.get("run"), where=str(source / _RUN))
    steps = saved["step"]
    if steps < 1:
        wanted = (
            "must be 1 or greater: the first weights are no run, for which train makes a folder"
        )
        raise RunError(f"{source / _RUN}: step={steps}: {wanted}")
    files.require_free(out)
    model = MesaoptForCausalLM.from_pretrained(source, dtype=torch.float32).plain()
    config = replace(config, model=model.config, train=replace(config.train, steps=steps))
    weights = model.state_dict()
    with Trainer.open(config, torch.device("cpu")) as trainer:
        trainer.model.load_state_dict(weights)
        loss = trainer.test_loss()
    folder = RunFolder.open(out, config, resume=False)
    origin = {"from": "transformers", "folder": source.name, "steps": steps}
    json_files.write(folder.path / "meta.json", folder.meta | {"imported": origin})
    folder.log(metrics_line(config, steps, None, loss))
    folder.save(Checkpoint(steps, 0.0, weights, {}), resumable=False)
    folder.finish(steps, 0.0)
    return out


def wrap(model: Any) -> MesaoptForCausalLM:
    """Return a model for transformers with the weights of a language model.

    Args:
        model: a language model.

    Returns:
        The same function, with weights of its own of the same type on the same device, in evaluation mode.

    Raises:
        TypeError: it is another kind of model.

    Example:
        >>> from mesaopt.models import LanguageModel
        >>> settings = LanguageModelConfig(vocabulary=16, width=8, num_heads=2)
        >>> model, tokens = LanguageModel(settings), torch.tensor([[3, 1, 4]])
        >>> torch.equal(wrap(model)(tokens).logits, model(tokens))
        True
    """
    require_language_model(model)
    weight = model.embedding.weight
    with keep_global_random():
        wrapped = MesaoptForCausalLM(MesaoptConfig(model.config)).to(weight.device, weight.dtype)
    wrapped.model.load_plain(model.state_dict())
    return wrapped.eval()


def _tokenizer(config: RunConfig) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of a run on text."""
    task = config.task
    if not isinstance(task, TextConfig):
        return None
    own = tokenizer_of(task)
    if isinstance(own, ByteTokenizer):
        tokenizer = _bytes_tokenizer() if task.vocabulary == 256 else None
    else:
        tokenizer = getattr(own, "tokenizer", None)
    return None if tokenizer is None else PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _bytes_tokenizer() -> Any:
    """Return a tokenizer whose token i is the byte i."""
    package = import_tokenizers("bytes")
    letters = {_letter(byte): byte for byte in range(256)}
    tokenizer = package.Tokenizer(package.models.BPE(vocab=letters, merges=[]))
    level = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = level, package.decoders.ByteLevel()
    return tokenizer


def _letter(byte: int) -> str:
    """Return the letter that stands for a byte in byte-level vocabularies.

    Visible Latin-1 letters stand for themselves, the others for letters from number 256 on, in order.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    return chr(256 + sum(other not in visible for other in range(byte)))
