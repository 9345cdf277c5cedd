"""Run several computations side by side, so that their requests are answered in common batches.

A computation is a generator. It yields a list of requests, is sent the list of their answers, and
so on until it returns its result. In each round the requests of all computations that still run are
answered by one call. Requests and answers may be of any type.
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
    """Run all computations to their end; return their results, in the order of the computations.

    Args:
        computations: may take different numbers of rounds.
        answer: takes the requests of one round, in the order of the computations, and returns one
            answer for each. It is not called in a round without requests.

    Raises:
        ValueError: ``answer`` returned more or fewer answers than it got requests.
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
