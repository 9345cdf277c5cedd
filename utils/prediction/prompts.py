"""The prompts of one target, in the order given, and those of them that count."""

from utils.prompts.kinds import Click, MaskPrompt, Prompt


class PromptHistory:
    """A target's prompts. A mask replaces all prompts before it, until `undo` removes it."""

    def __init__(self) -> None:
        self._prompts: list[Prompt] = []
        self._masks: list[int] = []  # where in the list the masks are

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, prompt: Prompt) -> None:
        """Add the newest prompt."""
        if isinstance(prompt, MaskPrompt):
            self._masks.append(len(self._prompts))
        self._prompts.append(prompt)

    def undo(self) -> Prompt:
        """Remove and return the newest prompt; there must be one."""
        prompt = self._prompts.pop()
        if isinstance(prompt, MaskPrompt):
            self._masks.pop()
        return prompt

    @property
    def counted(self) -> list[Prompt]:
        """The prompts that count: those from the last mask on."""
        return self._prompts[self._masks[-1] if self._masks else 0 :]

    @property
    def clicks(self) -> list[Click]:
        """The clicks among the prompts that count."""
        return [prompt for prompt in self.counted if isinstance(prompt, Click)]
