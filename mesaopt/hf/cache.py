"""The state of a language model inside of a cache of transformers, and back.

A layer with a state of constant size has its tensors as recurrent states, the last projections for its
convolution after them, and the number of tokens of each sequence in the place of a convolution's window.
Softmax attention has its keys and values where every model has them, padding included. A model without it
counts positions in its first layer, with keys of a single byte for each token.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from mesaopt.layers import LayerState, MesaLayer, SelfAttention, SoftmaxSelfAttention
from mesaopt.models import LanguageModel
from mesaopt.models.language_state import LanguageState
from mesaopt.ops import KeyValueState, LinearState, MesaState

_RECENT = 3  # place of the last projections: after the three tensors of mesa


def read_state(
    cache: Cache, model: LanguageModel, past: Bool[Tensor, "batch past"] | None
) -> LanguageState | None:
    """Take the state after the last token out of a cache.

    Args:
        cache: of the model's configuration.
        model: whose state it is.
        past: true where a token was and false where padding was, as far as is known; None: no padding.

    Returns:
        The state; None where the cache is empty.
    """
    places = [cast(Any, place) for place in cache.layers]
    if not any(_is_used(place) for place in places):
        return None
    pairs = zip(places, model.mixers, strict=True)
    layers = tuple(_read_layer(place, mixer, past) for place, mixer in pairs)
    return LanguageState(layers, _read_seen(places, past))


def write_state(
    cache: Cache,
    state: LanguageState,
    real: Bool[Tensor, "batch slots"] | None,
    count: int,
) -> None:
    """Put the state after some more tokens into a cache.

    Args:
        cache: of the model's configuration, with the state before these tokens.
        state: after them.
        real: true where a token is, up to the last of these; None: everywhere.
        count: how many tokens came, padding included.
    """
    for number, layer in enumerate(state.layers):
        place = cast(Any, cache.layers[number])
        if isinstance(layer.memory, KeyValueState):
            pairs = _new_pairs(place, layer.memory, real, count)
            keys, values = (x.transpose(1, 2) for x in pairs)
            cache.update(keys, values, number)
        else:
            for index, x in enumerate(layer.memory):
                cache.update_recurrent_state(x, number, index)
            if hasattr(place, "keys"):  # counts positions
                shape = (len(state.seen), 1, count, 1)
                counted = torch.ones(shape, dtype=torch.bool, device=state.seen.device)
                cache.update(counted, counted[..., :0], number)
        if layer.recent is not None:
            cache.update_recurrent_state(layer.recent, number, _RECENT)
        if hasattr(place, "recurrent_states"):
            cache.update_conv_state(state.seen.unsqueeze(1), number, conv_kernel_size=1)


def past_length(cache: Cache) -> int:
    """Return the number of positions so far, padding included."""
    return int(_counting(cache).get_seq_length())


def num_sequences(cache: Cache) -> int | None:
    """Return the number of sequences in a cache; None where it is empty."""
    keys = _counting(cache).keys
    return None if keys is None else len(keys)


def _counting(cache: Cache) -> Any:
    """Return the first layer that counts positions."""
    return next(place for place in cache.layers if hasattr(place, "keys"))


def _is_used(place: Any) -> bool:
    linear = getattr(place, "is_recurrent_states_initialized", {})
    return any(linear.values()) or bool(getattr(place, "is_initialized", False))


def _read_seen(places: list[Any], past: Tensor | None) -> Int[Tensor, " batch"]:
    """Return the number of tokens of each sequence so far."""
    for place in places:
        if hasattr(place, "recurrent_states"):
            return place.conv_states[0][:, -1]
    if past is not None:
        return past.sum(1)
    keys = places[0].keys
    return torch.full((len(keys),), places[0].get_seq_length(), device=keys.device)


def _read_layer(place: Any, mixer: SelfAttention, past: Tensor | None) -> LayerState:
    recent = None if mixer.convolution is None else place.recurrent_states[_RECENT]
    if isinstance(mixer, SoftmaxSelfAttention):
        return LayerState(_read_pairs(place, past), recent)
    kind = MesaState if isinstance(mixer, MesaLayer) else LinearState
    parts = (place.recurrent_states[index] for index in range(len(kind._fields)))
    return LayerState(kind(*parts), recent)


def _read_pairs(place: Any, past: Tensor | None) -> KeyValueState:
    """Return keys and values without padding."""
    keys, values = place.keys.transpose(1, 2), place.values.transpose(1, 2)  # [B,P,H,K]
    kept = keys.shape[1]
    if past is None or kept == 0 or bool(past[:, -kept:].all()):
        return KeyValueState(keys, values)
    real = past[:, -kept:]
    return KeyValueState(keys[real].unsqueeze(0), values[real].unsqueeze(0), real.sum(1).cpu())


def _new_pairs(
    place: Any, memory: KeyValueState, real: Tensor | None, count: int
) -> tuple[Float[Tensor, "batch count head key"], Float[Tensor, "batch count head value"]]:
    """Return the last keys and values with zeros for padding, and for those a window has left behind."""
    lengths, device = memory.lengths, memory.keys.device
    batch = len(memory.keys) if lengths is None else len(lengths)
    if lengths is None:
        lengths = torch.full((batch,), memory.keys.shape[1])
    before = 0 if place.keys is None else place.keys.shape[2]
    if real is None:
        real = torch.ones(batch, before + count, dtype=torch.bool, device=device)
    real = real[:, -(before + count) :]
    later = real.flip(1).cumsum(1).flip(1)  # tokens from a position on
    kept = real & (later <= lengths.to(device).unsqueeze(1))
    return _spread(memory.keys, kept)[:, -count:], _spread(memory.values, kept)[:, -count:]


def _spread(x: Tensor, kept: Tensor) -> Tensor:
    """Put pairs, sequence after sequence, where the mask is true, and zeros elsewhere."""
    filled = x.new_zeros(*kept.shape, *x.shape[2:])
    filled[kept] = x.flatten(0, 1)
    return filled
