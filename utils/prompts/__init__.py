"""The prompts of a target (clicks, boxes, masks), and the rule that places simulated clicks."""
