"""Where a file keeps its weights, and how their keys become those of a whole network.

Training scripts wrap a network before they save it, and their wrappers show in the keys:
``module.`` of parallel training, ``_orig_mod.`` of ``torch.compile``, ``model.`` or ``sam.`` of a
larger module. The weights lie at the top of the file or under a name of the script's choice.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
DECODER_PARTS = PARTS[1:]
WEIGHTS = "model_state_dict"
DECODER_WEIGHTS = "decoder_state_dict"
_ENCODER_ROOTS = frozenset({"pos_embed", "patch_embed", "blocks", "neck", "detail"})
_WRAPPERS = ("module", "_orig_mod")  # parallel training, torch.compile
_AVERAGED = re.compile(r"(^|[_.])(ema|swa|averaged?|avg)([_.]|$)", re.IGNORECASE)
_NAMED_KEYS = 8  # how many keys of a kind an error message spells out


class KeysError(ValueError):
    """A file's weights are missing or ambiguous; the message lacks the file's name."""


def is_state_dict(value: Any) -> bool:
    """Tell whether a value is a dictionary of named tensors, and not empty."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def find_weights(content: Mapping) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the state dict in a file's content, and notes on the choice.

    `WEIGHTS` counts first, then the content itself, then the only entry with a network's keys.
    Averaged weights (EMA) count only where there are no others.

    Raises:
        KeysError: there is no state dict, or more than one could be meant.
    """
    entries = [name for name, value in content.items() if _is_network(value)]
    if is_state_dict(content.get(WEIGHTS)):
        chosen = WEIGHTS
    elif WEIGHTS in content:
        raise KeysError(
            f"found the entries {shorten(map(str, content))}, but no named tensors under "
            f"'{WEIGHTS}'; expected a state dict there.\nSave the weights alone as "
            f"{{'{WEIGHTS}': model.state_dict()}}."
        )
    elif is_state_dict(content):
        return content, []
    else:
        candidates = [name for name in entries if name != DECODER_WEIGHTS]
        plain = [name for name in candidates if not _AVERAGED.search(str(name))]
        candidates = plain or candidates
        if len(candidates) != 1:
            raise KeysError(
                f"found the entries {shorten(map(str, content))}, {len(candidates) or 'none'} of "
                f"them with the weights of a network; expected one, or weights under '{WEIGHTS}' "
                "or a state dict.\nPoint to the file that training wrote, or save the weights "
                f"alone as {{'{WEIGHTS}': model.state_dict()}}."
            )
        chosen = candidates[0]
    aside = [str(name) for name in entries if name not in (chosen, DECODER_WEIGHTS)]
    notes = []
    if aside:
        notes.append(f"takes the weights under '{chosen}', not those under {shorten(aside)}")
    elif _AVERAGED.search(str(chosen)):
        notes.append(f"takes the averaged weights under '{chosen}', since there are no others")
    return content[chosen], notes


def whole_network(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights with the keys of a whole network, and notes on what was changed.

    Wrappers are dropped, and so is a prefix that all keys share. An encoder alone gets
    ``image_encoder.``. Keys of other networks stay.

    Raises:
        KeysError: two keys become one.
    """
    unwrapped = {key: _unwrapped(key) for key in weights}
    twice = [key for key, n in Counter(unwrapped.values()).items() if n > 1]
    if twice:
        pair = [key for key, name in unwrapped.items() if name == twice[0]]
        raise KeysError(
            f"holds {len(twice)} weights twice, {' and '.join(pair[:2])} first; expected each "
            f"once, with or without {' and '.join(_WRAPPERS)}.\nSave the state dict of one model."
        )
    paths = {key: tuple(name.split(".")) for key, name in unwrapped.items()}
    depth, encoder_alone = _prefix(list(paths.values()))
    front = "image_encoder." if encoder_alone else ""
    named = {front + ".".join(path[depth:]): weights[key] for key, path in paths.items()}
    prefix = ".".join(next(iter(paths.values()))[:depth])
    return named, [f"the prefix '{prefix}.' of all keys was removed"] if depth else []


def foreign_prefixes(keys: Iterable[str]) -> list[tuple[str, int]]:
    """Return what stands before the parts' names in keys, and how often, the most frequent first.

    >>> foreign_prefixes(["sam.mask_decoder.a", "sam.mask_decoder.b", "loss.c"])
    [('sam.', 2)]
    """
    found = Counter()
    for key in keys:
        path = key.split(".")
        places = [n for n, name in enumerate(path) if name in PARTS]
        if places and places[0]:
            found[".".join(path[: places[0]]) + "."] += 1
    return found.most_common()


def prefix_advice(keys: Iterable[str]) -> str:
    """Return what to do about prefixes that only some keys have; "" where there are none."""
    keys = list(keys)
    foreign = foreign_prefixes(keys)
    if not foreign:
        return ""
    prefix = foreign[0][0]
    found = ", ".join(f"{count} keys begin with '{name}'" for name, count in foreign[:4])
    return (
        f"{found}, of {len(keys)}. Save the network's own weights without that prefix: "
        f"{{'{WEIGHTS}': {{k.removeprefix('{prefix}'): v for k, v in weights.items() "
        f"if k.startswith('{prefix}')}}}}."
    )


def shorten(names: Iterable[str]) -> str:
    """Return the first names with commas, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return ", ".join(name[:200] for name in names[:_NAMED_KEYS]) + more


def _is_network(value: Any) -> bool:
    """Tell whether a value is a state dict with keys of one of these networks."""
    names = {*PARTS, "patch_embed", "pos_embed"}
    return is_state_dict(value) and any(not names.isdisjoint(key.split(".")) for key in value)


def _unwrapped(key: str) -> str:
    return ".".join(name for name in key.split(".") if name not in _WRAPPERS)


def _prefix(paths: list[tuple[str, ...]]) -> tuple[int, bool]:
    """Return how many names to drop in front of all keys, and whether these are an encoder's."""
    if any(path[0] in PARTS for path in paths):
        return 0, False
    shared = min(len(path) for path in paths) - 1
    for depth in range(shared + 1):
        roots = {path[depth] for path in paths}
        if roots <= set(PARTS):
            return depth, False
        if roots <= _ENCODER_ROOTS:
            return depth, True
        if len(roots) > 1:
            break
    return 0, not foreign_prefixes(".".join(path) for path in paths)
