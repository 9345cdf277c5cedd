"""Which prompts of a target count: later clicks may show that a box misses its target.

The challenge draws boxes on one slice. On a bent target, such as the mandible, such a box may hold
little more than what the target bends around. A network that trusts the box finds the wrong
structure, and each background click cuts a small piece off it.
"""

from collections.abc import Sequence
from itertools import takewhile

from utils.prompts.kinds import BoxPrompt, Click, Prompt

#: A box's middle: this share of its extent along each axis.
MIDDLE = 0.3
#: A place is far from a box if it lies outside of the box enlarged by this factor.
FAR_OUT = 2.0


def standing(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts that count, without the boxes that later clicks contradict.

    A box is contradicted by a background click in its middle, unless a foreground click in the box
    came before; and by a foreground click far outside of it. Clicks after a newer box count for
    that one. With a box go all boxes before it.

    If boxes were dropped and only clicks are left, the first foreground click is put before the
    background clicks: those can correct a mask, but not start one.

    Args:
        prompts: of one target, in order.
    """
    kept: list[Prompt] = []
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, BoxPrompt) and _is_contradicted(prompt, prompts[place + 1 :]):
            kept = [other for other in kept if not isinstance(other, BoxPrompt)]
        else:
            kept.append(prompt)
    if len(kept) < len(prompts) and all(isinstance(prompt, Click) for prompt in kept):
        first = next((n for n, click in enumerate(kept) if click.is_foreground), 0)
        kept.insert(0, kept.pop(first))
    return kept


def drops_box(prompts: Sequence[Prompt]) -> bool:
    """Tell whether the newest prompt contradicts a box that counted until then."""
    return bool(prompts) and len(standing(prompts)) <= len(standing(prompts[:-1]))


def _is_contradicted(box: BoxPrompt, later: Sequence[Prompt]) -> bool:
    sides = list(zip(box.start_zyx, box.stop_zyx, strict=True))
    is_confirmed = False
    for click in takewhile(lambda prompt: isinstance(prompt, Click), later):
        # How far out: 0 in the box's middle, 1 on its faces.
        out = max(
            abs(2 * c + 1 - a - b) / (b - a) for c, (a, b) in zip(click.zyx, sides, strict=True)
        )
        if click.is_foreground:
            if out > FAR_OUT:
                return True
            is_confirmed |= out <= 1
        elif out <= MIDDLE and not is_confirmed:
            return True
    return False
