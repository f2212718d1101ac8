"""Runs that several processes train together; :mod:`mesaopt.training.loop` asks it for folder and trainer.

All compute the same steps, each on its rows of the batch that one process alone would draw. Weights are
divided by `fully_shard`, over a mesh of replicas and shards: data parallel training is the case of one
shard. The first process writes all files but the optimiser's state, of which each writes its pieces.
"""

import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint as recomputed

from mesaopt import files
from mesaopt.config import MergedAttentionConfig, OwnModelConfig, RunConfig, TrainConfig
from mesaopt.errors import ConfigError, MesaoptError, RunError
from mesaopt.models.own import build_own
from mesaopt.progress import AnyProgress, OnProgress
from mesaopt.tasks import Batch
from mesaopt.training.devices import ENDED, Devices, is_launched, is_lost
from mesaopt.training.loop import train_in
from mesaopt.training.optimizer import Optimizer
from mesaopt.training.run_folder import Checkpoint, RunFolder
from mesaopt.training.tensors import MOMENTS, check_optimizer, damaged, trained_parameters
from mesaopt.training.trainer import Trainer
from mesaopt.workers import num_threads

T = TypeVar("T")
_GROUPS_MADE = itertools.count()


class ProcessGroup:
    """The processes of one training, each with its device, and what they do together.

    Args:
        device: of this process.
        devices: how the run is spread over them.

    Example:
        >>> with ProcessGroup.join(torch.device("cpu"), Devices()) as group:
        ...     group.rank, group.size, group.first(len, "one")
        (0, 1, 3)
    """

    def __init__(self, device: torch.device, devices: Devices):
        self.device, self.devices = device, devices
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        shape = (1, self.size) if devices.shard else (self.size, 1)
        names = ("replicas", "shards")
        self.mesh: DeviceMesh = init_device_mesh(device.type, shape, mesh_dim_names=names)

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: torch.device, devices: Devices) -> Generator["ProcessGroup"]:
        """Join the processes that `torchrun` has started, or be a group of one.

        Args:
            device: where to compute; of several GPUs each process takes the one of its number.
            devices: how the run is spread over them.

        Yields:
            The group, until the block ends.

        Raises:
            ConfigError: the device is the GPU of another process.
            RunError: a machine has fewer GPUs than processes, or a process has gone.
        """
        if not hasattr(dcp, "HuggingFaceStorageReader"):
            raise RunError(f"torch {torch.__version__}: must be 2.9 or newer for several devices")
        device = _own_device(device)
        joins = not distributed.is_initialized()
        if joins:
            _join(device)
        try:
            yield cls(device, devices)
        except BaseException as error:
            # The others shall not see that this process goes before it has said why.
            if joins and distributed.get_world_size() == 1:
                distributed.destroy_process_group()
            if is_lost(error):
                raise RunError(ENDED) from error
            raise
        if joins:
            distributed.destroy_process_group()

    def first(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Let the first process call a function, while the others wait.

        Args:
            function: called by the first process alone.
            *args: its arguments.
            **keywords: more of them.

        Returns:
            Its result, in every process.

        Raises:
            MesaoptError: what it raised, in every process.
        """
        outcome: list[Any] = [None]
        if self.rank == 0:
            try:
                outcome = [function(*args, **keywords)]
            except MesaoptError as error:
                outcome = [error]
        distributed.broadcast_object_list(outcome)
        if isinstance(outcome[0], MesaoptError):
            raise outcome[0]
        return outcome[0]

    def total(self, value: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place, and return it."""
        distributed.all_reduce(value)
        return value

    @contextlib.contextmanager
    def open(self, path: Path, config: RunConfig, *, resume: bool) -> Generator["SharedFolder"]:
        """Open the folder of a run for all processes, and lock it against others.

        Args:
            path: of the folder, which all of them see.
            config: of the run.
            resume: as in :meth:`RunFolder.open`.

        Yields:
            The folder.

        Raises:
            ConfigError: the batch cannot be divided among the processes, the model is of another kind, or
                has no blocks to recompute or compile.
            RunError: as in :meth:`RunFolder.open`.
        """
        self.check(config)
        with contextlib.ExitStack() as stack:

            def open_and_lock() -> None:
                RunFolder.open(path, config, resume=resume)
                stack.enter_context(files.only_one_process(path))

            self.first(open_and_lock)
            yield SharedFolder(path, config, self)

    def check(self, config: RunConfig) -> None:
        """Refuse a run that these processes cannot share, or not in this way."""
        if config.train.batch_size % self.size:
            wanted = f"must be a multiple of {self.size}, the number of processes"
            raise ConfigError(f"train.batch_size={config.train.batch_size}: {wanted}")
        if isinstance(config.model, MergedAttentionConfig):
            wanted = "must be 'sequence', 'language' or a module of your own, with torchrun"
            raise ConfigError(f"model.kind={config.model.kind!r}: {wanted}")
        own = config.model if isinstance(config.model, OwnModelConfig) else None
        ways = [name for name in ("recompute", "compile") if getattr(self.devices, name)]
        # The models of this package have blocks.
        if own and ways and not getattr(build_own(own, seed=config.seed), "blocks", ()):
            given = f"{ways[0]}=True: works on blocks, and {own.name!r} has none"
            raise ConfigError(f"{given}: must have a torch.nn.ModuleList `blocks`")

    def train(
        self, folder: "SharedFolder", *, progress: AnyProgress, logger: OnProgress | None
    ) -> None:
        """Train the run of a folder to its end, if it has not come there; the first process reports."""
        if folder.is_done:
            return
        heard = (progress, logger) if self.rank == 0 else (False, None)
        train_in(folder, self.device, progress=heard[0], logger=heard[1], open_trainer=self.trainer)

    @contextlib.contextmanager
    def trainer(self, folder: RunFolder, device: torch.device) -> Generator["SharedTrainer"]:
        """Make the trainer of a run, whose parameters are then those of the folder."""
        trainer = SharedTrainer(folder.config, self)
        folder.parameters = trainer.parameters
        same = device.type == "cpu" and folder.meta.get("processes") == self.size
        with num_threads(folder.num_threads) if same else contextlib.nullcontext():
            yield trainer


class SharedFolder(RunFolder):
    """A run folder that all processes of a group use, and the first one writes.

    Args:
        path: of the folder.
        config: of the run, with the task or model of your own.
        group: the processes.
    """

    def __init__(self, path: Path, config: RunConfig, group: ProcessGroup):
        super().__init__(path, config)
        self.group = group

    def finish(self, steps: int, seconds: float) -> None:
        """Mark the run as ended."""
        self.group.first(super().finish, steps, seconds)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line of metrics."""
        self.group.first(super().log, metrics)

    def save(
        self, checkpoint: Checkpoint, *, resumable: bool = True, pieces: Path | None = None
    ) -> None:
        """Write a checkpoint, of which every process writes its pieces of the optimiser's state."""
        if checkpoint.optimizer:
            pieces = self.path / "checkpoints" / f"{files.TEMPORARY}pieces"
            self.group.first(files.remove, pieces)
            write_pieces(pieces, checkpoint.optimizer)
        whole = replace(checkpoint, optimizer={})
        self.group.first(super().save, whole, resumable=resumable, pieces=pieces)

    def rewind(self, last: int | None = None) -> Checkpoint | None:
        """Go back to a checkpoint, and delete what came after it."""
        last = self.group.first(lambda: self.resumable_steps[-1]) if last is None else last
        self.group.first(self._rewind, last)
        return None if last < 0 else self.load(last)

    def _rewind(self, last: int) -> None:
        RunFolder(self.path, self._objects).rewind(last)


class SharedTrainer(Trainer):
    """Training steps of one run, of which this process computes its share.

    Args:
        config: of the run.
        group: the processes.

    Example:
        >>> from mesaopt import recipes
        >>> with ProcessGroup.join(torch.device("cpu"), Devices(parts=2)) as group:
        ...     round(SharedTrainer(recipes.get("lsa-1"), group).step(0).item(), 1)
        1.7
    """

    def __init__(self, config: RunConfig, group: ProcessGroup):
        super().__init__(config, group.device)
        self.group = group
        self.divided = _divide(self.model, group)
        self.parameters = trained_parameters(self.model)
        self.optimizer = Optimizer(config.train, self.parameters)

    def step(self, step: int) -> Float[Tensor, ""]:
        """Train on the batch of one step.

        Args:
            step: 0 for the first one.

        Returns:
            The loss of the whole batch before the step, on the device.
        """
        rows = self.config.train.batch_size // self.group.size
        own = list(self._batch(step).split(rows))[self.group.rank]
        parts = list(own.split(-(-rows // self.group.devices.parts)))
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            self.divided.set_requires_gradient_sync(number == len(parts))
            loss = self._loss(part) * (len(part.tokens) / rows)
            loss.backward()  # fully_shard takes the mean of the gradients
            total += loss.detach()
        for parameter in self.parameters.values():
            if parameter.grad is None:  # it decays all the same, as with one process
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step(step)
        return self.group.total(total / self.group.size)

    @torch.no_grad()
    def test_loss(self) -> float:
        """Return the mean loss of the test sequences."""
        total = torch.zeros((), device=self.device)
        for batch in map(self.data.test_batch, range(self.data.num_test_batches)):
            for part in batch.split(self._scored_at_once(batch) * self.group.size):
                total += self._share(part)
        return self.group.total(total).item() / self.data.num_test_sequences

    def _share(self, part: Batch) -> Tensor:
        """Compute the sum of the losses of own rows; without any a process must gather weights, too."""
        rows = list(part.split(-(-len(part.tokens) // self.group.size)))
        own = self.group.rank < len(rows)
        mine = rows[self.group.rank if own else 0]
        return self._loss(mine) * (len(mine.tokens) if own else 0)

    def checkpoint(self, step: int, seconds: float) -> Checkpoint:
        """Return the state after some steps: the weights in the first process, pieces of the moments."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any = get_model_state_dict(self.model, options=whole)
        return Checkpoint(step, seconds, weights, self.optimizer.state())

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint."""
        for name, weight in self.model.state_dict().items():
            weight.copy_(_divided(checkpoint.model[name], like=weight))
        like = {name: self.parameters[name.rsplit("/", 1)[0]] for name in checkpoint.optimizer}
        state = {n: _divided(t, like=like[n]) for n, t in checkpoint.optimizer.items()}
        self.optimizer.load_state(state)


def write_pieces(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that are divided among processes, of which all call this: each writes its pieces.

    Args:
        path: of a new folder that all of them see.
        tensors: by name, divided or whole ones that all have.

    Raises:
        RunError: the disk is full, on one of the machines.
    """
    writer = dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
    with files.explain_os_errors(path):
        try:
            dcp.save(dict(tensors), storage_writer=writer)
        except CheckpointException as error:  # it is no Exception
            raise next(iter(error.failures.values()))[0] from error


def read_pieces(
    path: Path, parameters: Mapping[str, Tensor], config: TrainConfig, *, step: int
) -> dict[str, Tensor]:
    """Read the state of AdamW from pieces, however many processes wrote them; nothing is unpickled.

    Args:
        path: of a folder that :func:`write_pieces` has written.
        parameters: those that are trained, by name: of each, the part that this process has is read.
        config: of the training.
        step: steps done.

    Returns:
        The state, "<parameter>/<name>" to tensor, divided like the parameters.

    Raises:
        RunError: a piece is missing or damaged.
    """
    state: dict[str, Any] = {f"{name}/step": torch.tensor(torch.nan) for name in parameters}
    for name, parameter in parameters.items():  # what no piece has stays no number
        state |= {f"{name}/{m}": torch.full_like(parameter, torch.nan) for m in MOMENTS}
    reader = dcp.HuggingFaceStorageReader(str(path))
    try:
        with warnings.catch_warnings(action="ignore"):  # that this process reads for itself
            dcp.load(state, storage_reader=reader, no_dist=True)
    except (CheckpointException, Exception) as error:
        raise damaged(path, str(error).strip().splitlines()[-1]) from None
    check_optimizer(path, _local(state), _local(parameters), config, step=step)
    return state


def _divided(whole: Tensor, *, like: Tensor) -> Tensor:
    """Take the part of a whole tensor that this process has of another one; counts of steps stay whole."""
    if isinstance(whole, DTensor) or whole.shape != like.shape or not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _local(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of tensors that this process has."""
    return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def _divide(model: nn.Module, group: ProcessGroup) -> FSDPModule:
    """Divide the weights of a model among the processes, block by block, and change how blocks compute."""
    for block in getattr(model, "blocks", ()):
        if group.devices.compile:
            block.forward = torch.compile(block.forward)
        if group.devices.recompute:
            again = {"use_reentrant": False, "preserve_rng_state": False}
            block.forward = functools.partial(recomputed, block.forward, **again)
    model.register_forward_hook(_no_view)
    for module in (*getattr(model, "blocks", ()), model):
        fully_shard(module, mesh=group.mesh, reshard_after_forward=group.devices.shard)
    return cast(FSDPModule, model)


def _no_view(model: nn.Module, inputs: Any, predictions: Tensor) -> Tensor:
    """Return predictions in memory of their own: fully_shard loses track of views."""
    return predictions.clone() if predictions._is_view() else predictions


def _join(device: torch.device) -> None:
    """Make a process group of the processes that `torchrun` has started, or of this one."""
    store, rank, size = distributed.HashStore(), 0, 1
    if is_launched():
        store, rank, size = next(distributed.rendezvous("env://"))
    # A group made before, or before torchrun started all again, has left addresses in the store.
    name = f"mesaopt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_GROUPS_MADE)}"
    store = distributed.PrefixStore(name, store)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _own_device(device: torch.device) -> torch.device:
    """Return the device of this process: of several GPUs, the one of its number on this machine."""
    number = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or number is None:
        return device
    if device.index not in (None, int(number)):
        wanted = f"must be 'cuda', of which process {number} takes the GPU of its number"
        raise ConfigError(f"device='{device}': {wanted}")
    if int(number) >= torch.cuda.device_count():
        have, need = torch.cuda.device_count(), os.environ.get("LOCAL_WORLD_SIZE", "more")
        raise RunError(
            f"device='cuda': {need} processes here share {have} GPUs: must have one each"
        )
    torch.cuda.set_device(int(number))
    return torch.device("cuda", int(number))
