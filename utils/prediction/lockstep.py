"""Computations side by side: what they ask for at the same time is answered together.

A computation is a generator. It yields a list of requests, is sent the list of their answers, and
goes on so until it returns. What is asked for, and who answers, is not known here.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


def in_lockstep(
    computations: Sequence[Generator[list[Request], list[Answer], Result]],
    answer: Callable[[list[Request]], list[Answer]],
) -> list[Result]:
    """Run computations to their ends; return what each of them returns.

    Args:
        answer: gets the present requests of all computations that have not ended, in order, and
            returns as many answers.
    """
    results: list[Result | None] = [None] * len(computations)
    answers: dict[int, list[Answer] | None] = dict.fromkeys(range(len(computations)))
    while answers:
        asked: dict[int, list[Request]] = {}
        for number, own in answers.items():
            try:
                asked[number] = computations[number].send(own)  # None starts a generator
            except StopIteration as end:
                results[number] = end.value
        together = [request for requests in asked.values() for request in requests]
        answered = answer(together) if together else []
        if len(answered) != len(together):
            raise ValueError(f"{len(together)} requests got {len(answered)} answers")
        found = iter(answered)
        answers = {number: list(islice(found, len(own))) for number, own in asked.items()}
    return results
