"""A language model of ours as a model of the library transformers; all computation stays in ours."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesaopt.config import LanguageModelConfig, require_count
from mesaopt.errors import ConfigError, wrong_type
from mesaopt.hf.cache import num_sequences, past_length, read_state, write_state
from mesaopt.hf.configuration import MesaoptConfig
from mesaopt.layers.checks import check_indices
from mesaopt.models import LanguageModel
from mesaopt.models.language import Block

# The name of the cache among the outputs: it changed within version 5 of transformers.
_CACHE = next(
    field.name
    for field in dataclasses.fields(CausalLMOutputWithPast)
    if field.name in ("cache", "past_key_values")
)


class Core(LanguageModel):
    """Our language model, with tied weights as a second name, and blocks that can be computed twice.

    Args:
        config: settings of the language model.
        seed: of the initial weights, 0 or greater.

    Example:
        >>> core = Core(LanguageModelConfig(vocabulary=16, width=8, num_heads=2), seed=3)
        >>> core.head.weight is core.embedding.weight
        True
    """

    gradient_checkpointing = False  # transformers sets this, and the function below

    def __init__(self, config: LanguageModelConfig, *, seed: int = 0):
        super().__init__(config, seed=seed)
        if config.tied:
            self.head = nn.Linear(config.width, config.vocabulary, bias=False, device="meta")
            self.head.weight = self.embedding.weight

    def _run_block(self, block: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return cast(Any, self)._gradient_checkpointing_func(block.__call__, x, mask)
        return super()._run_block(block, x, mask)

    def plain_state(self) -> dict[str, Tensor]:
        """Return the tensors by their names in :class:`mesaopt.models.LanguageModel`."""
        alias = {"head.weight"} if self.config.tied else set()
        return {name: x for name, x in self.state_dict().items() if name not in alias}

    def load_plain(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of a :class:`mesaopt.models.LanguageModel` of the same settings."""
        alias = {"head.weight": state["embedding.weight"]} if self.config.tied else {}
        self.load_state_dict({**state, **alias})


class MesaoptForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model of ours for transformers: `from_pretrained`, `save_pretrained` and `generate`.

    The language model is the attribute `model`, so that all else of this package works on it. States are
    kept in a `DynamicCache`; they cannot be rolled back, other than by a copy of the cache.

    Args:
        config: settings.

    Example:
        >>> settings = LanguageModelConfig(vocabulary=16, width=8, num_heads=2)
        >>> model = MesaoptForCausalLM(MesaoptConfig(settings)).eval()
        >>> tokens = torch.tensor([[3, 1, 4, 1, 5]])
        >>> model.generate(tokens, max_new_tokens=4, do_sample=False).shape
        torch.Size([1, 9])
    """

    config_class = MesaoptConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True  # no rolling back: transformers refuses what needs it
    _no_split_modules: Any = {"Core"}
    _skip_keys_device_placement: Any = {"cache", "past_key_values"}
    _tied_weights_keys: Any = {"model.head.weight": "model.embedding.weight"}
    _keep_in_fp32_modules_strict: Any = {"raw_ridge", "inverse_ridge"}

    def __init__(self, config: MesaoptConfig):
        super().__init__(config)
        self.model = Core(config.language, seed=_draw_seed())
        for _, x in self._tensors():
            if not x.is_meta:
                cast(Any, x)._is_hf_initialized = True
        self.post_init()

    def initialize_weights(self) -> None:
        """Give what was not loaded the first values of :class:`mesaopt.models.LanguageModel`."""
        missing = {
            name for name, x in self._tensors() if not getattr(x, "_is_hf_initialized", False)
        }
        if not missing:
            return
        fresh = LanguageModel(self.model.config, seed=_draw_seed())
        values = dict([*fresh.named_parameters(), *fresh.named_buffers()])
        for name, x in self._tensors():
            if name in missing and name in values and not x.is_meta:
                initialization.copy_(x, values[name].detach())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model from a folder or a hub; weights are read from safetensors only.

        Args:
            pretrained_model_name_or_path: the folder, or a name on the hub.
            args: as in :meth:`transformers.PreTrainedModel.from_pretrained`.
            kwargs: as there.

        Returns:
            The model, in evaluation mode.

        Raises:
            ConfigError: the folder is of another architecture, or tensors are missing, left over or of
                another shape.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ConfigError("use_safetensors=False: must be True: nothing is unpickled")
        wanted = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # they are refused below, in one line
        load = cast(Any, super().from_pretrained)
        model, info = load(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        _refuse_misfits(str(pretrained_model_name_or_path), info)
        return (model, info) if wanted else model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Compute the logits of the token after each position.

        Args:
            input_ids: tokens [batch, time].
            attention_mask: [batch, past + time], 1 where a token is and 0 where padding is; None: no
                padding.
            labels: tokens [batch, time], -100 where none is predicted; for the loss. They are shifted here.
            cache: what earlier calls left behind; None at the beginning.
            past_key_values: the older name of `cache`.
            use_cache: whether to return the cache; None: yes, but not in training.
            logits_to_keep: so many of the last positions get logits, or those with these indices; 0: all.
            kwargs: `return_dict`; other inputs of transformers have no meaning here, positions among them:
                they follow from the mask.

        Returns:
            Logits [batch, time or kept, vocabulary], the loss if there are labels, and the cache.

        Raises:
            ValueError: there is no token, one is not in the vocabulary, the mask or the labels have the
                wrong shape, a position is out of range, or the cache is of another kind or batch.
        """
        _check_others(kwargs)
        _check_tokens(input_ids, labels)
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = cache is not None or not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        logits = self._extend(input_ids, attention_mask, cache, logits_to_keep)
        loss = None
        if labels is not None:
            extra = {name: x for name, x in kwargs.items() if name == "num_items_in_batch"}
            size = self.model.config.vocabulary
            loss = cast(Any, self).loss_function(logits, labels, vocab_size=size, **extra)
        found: dict[str, Any] = {_CACHE: cache}
        output = CausalLMOutputWithPast(loss=loss, logits=cast(Any, logits), **found)
        as_dict = kwargs.get("return_dict")
        as_dict = self.config.return_dict if as_dict is None else as_dict
        return output if as_dict else output.to_tuple()

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Continue prompts, as :meth:`transformers.GenerationMixin.generate` does.

        Args:
            inputs: prompts [batch, time]; or `input_ids` by name.
            args: as there.
            kwargs: as there. Prompts of several lengths are filled up on the left, and `attention_mask`
                says where.

        Returns:
            Prompts and continuations [batch, time + new].

        Raises:
            ValueError: there is no prompt, one is empty, or a token is not in the vocabulary.
        """
        prompts = kwargs.get("input_ids") if inputs is None else inputs
        _check_prompts(prompts, kwargs.get("attention_mask"), self.model.config.vocabulary)
        return super().generate(inputs, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Leave the mask as it is: where padding is, for each sequence."""
        return attention_mask

    def plain(self) -> LanguageModel:
        """Return a copy as a :class:`mesaopt.models.LanguageModel`, on the same device."""
        model = LanguageModel(self.model.config).to(self.device, self.dtype)
        model.load_state_dict(self.model.plain_state())
        return model.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output matrix."""
        return self.model.head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the size of the vocabulary is fixed.

        Raises:
            ConfigError: always.
        """
        size = self.model.config.vocabulary
        raise ConfigError(f"vocabulary={size}: is fixed; make a new model with more tokens")

    def _extend(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        kept: int | Tensor,
    ) -> Float[Tensor, "batch kept vocabulary"]:
        """Read tokens, and update the cache if there is one."""
        batch, time = tokens.shape
        at = _places(tokens, kept)
        _check_cache(cache, self.model.config.depth, batch)
        real = None if attention_mask is None else _read_mask(attention_mask, batch, time)
        past = None if real is None else real[:, :-time]
        _check_mask(real, cache, time, self.model.config.window)
        state = None if cache is None else read_state(cache, self.model, past)
        if real is not None and bool(real.all()):
            real = None
        mask = None if real is None else real[:, -time:]
        if cache is None:
            return self.model(tokens, mask=mask, at=at)
        if time == 1 and state is not None and (mask is None or bool(mask.all())):
            logits, state = self.model.step(tokens[:, 0], state)
            logits = logits.unsqueeze(1)
        else:
            logits, state = self.model.extend(tokens, state, mask=mask, at=at)
        write_state(cache, state, real, time)
        return logits

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Walk over the parameters and buffers of the language model, by their names in it."""
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()


def _draw_seed() -> int:
    """Draw a seed from torch's global random numbers, as transformers draws weights."""
    return int(torch.randint(2**31, (), device="cpu"))


def _places(tokens: Tensor, kept: int | Tensor) -> Int[Tensor, "batch kept"] | None:
    """Return the positions that logits are computed for."""
    batch, time = tokens.shape
    if isinstance(kept, Tensor):
        kept = check_indices("logits_to_keep", kept, ("kept",), limit=time)
    else:
        require_count("logits_to_keep", kept, smallest=0)
        if kept == 0 or kept >= time:
            return None
        kept = torch.arange(time - kept, time)
    return kept.to(tokens.device).expand(batch, -1)


def _read_mask(mask: Any, batch: int, time: int) -> Tensor:
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != batch or shape[1] < time:
        given = f"is a {type(mask).__name__}" if shape is None else f"has shape {shape}"
        raise ValueError(f"attention_mask {given}: must be [{batch}, past + {time}]")
    return mask.bool()


def _check_mask(real: Tensor | None, cache: Cache | None, time: int, window: int | None) -> None:
    """Refuse a mask that does not cover the past, or has padding that a window would count."""
    if real is None:
        return
    past = 0 if cache is None else past_length(cache)
    if real.shape[1] != past + time:
        wanted = f"must be {past + time}, for {past} positions so far and {time} more"
        raise ValueError(f"attention_mask has {real.shape[1]} columns: {wanted}")
    if window is not None and bool((real[:, :-1] & ~real[:, 1:]).any()):
        wanted = f"must be on the left with window={window}"
        raise ValueError(f"attention_mask has padding behind a token: {wanted}")


def _check_others(given: dict[str, Any]) -> None:
    """Refuse inputs and outputs that there are none of."""
    if given.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds is given: must be input_ids, tokens [batch, time]")
    for name in ("output_hidden_states", "output_attentions"):
        if given.get(name):
            raise ValueError(f"{name}=True: must be False; mesaopt.analysis.capture has them")


def _check_cache(cache: Cache | None, depth: int, batch: int) -> None:
    """Refuse a cache of another kind or another model, or of more or fewer sequences."""
    if cache is None:
        return
    wanted = "must be DynamicCache(config=model.config)"
    if not isinstance(cache, DynamicCache):
        raise ValueError(f"cache is a {type(cache).__name__}: {wanted}")
    if len(cache.layers) != depth:
        raise ValueError(f"cache has {len(cache.layers)} layers, not {depth}: {wanted}")
    sequences = num_sequences(cache)
    if sequences not in (None, batch):
        raise ValueError(f"cache has {sequences} sequences: must have {batch}, as input_ids")


def _check_tokens(tokens: Any, labels: Any = None) -> None:
    if not isinstance(tokens, Tensor) or tokens.dim() != 2:
        given = f"has shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else "is missing"
        raise ValueError(f"input_ids {given}: must be tokens [batch, time]")
    if tokens.numel() == 0:
        raise ValueError("input_ids is empty: must be one token or more")
    if labels is None:
        return
    wanted = f"{tuple(tokens.shape)}, as input_ids"
    if not isinstance(labels, Tensor):
        raise wrong_type("labels", labels, f"a tensor {wanted}")
    if labels.shape != tokens.shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}: must be {wanted}")


def _check_prompts(prompts: Any, mask: Tensor | None, vocabulary: int) -> None:
    """Refuse prompts before any work."""
    _check_tokens(prompts)
    smallest, largest = (int(x) for x in prompts.aminmax())
    if smallest < 0 or largest >= vocabulary:
        worst = smallest if smallest < 0 else largest
        raise ValueError(f"input_ids has the value {worst}: must be from 0 to {vocabulary - 1}")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return
    present = mask.bool()
    if not bool(present.any(1).all()):
        empty = int(present.any(1).int().argmin())
        raise ValueError(f"input_ids[{empty}] is padding only: must be one token or more")
    if not bool(present[:, -1].all()):
        filled = int(present[:, -1].int().argmin())
        raise ValueError(f"input_ids[{filled}] ends in padding: must be filled up on the left")


def _refuse_misfits(where: str, info: dict[str, Any]) -> None:
    """Refuse weights of another architecture, naming one tensor."""
    for kind, wanted in (
        ("missing", "there is no such tensor"),
        ("unexpected", "is not of the model"),
    ):
        if names := sorted(map(str, info[f"{kind}_keys"])):
            raise ConfigError(f"{where}: {names[0]}: {wanted}")
    if mismatched := sorted(info["mismatched_keys"], key=lambda entry: str(entry[0])):
        name, given, wanted = mismatched[0]
        raise ConfigError(f"{where}: {name} has shape {tuple(given)}: must be {tuple(wanted)}")
