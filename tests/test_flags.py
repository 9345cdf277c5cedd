"""Types of numeric flags: numbers in their range are parsed, everything else is refused."""

from argparse import ArgumentTypeError

import pytest

from utils.run import flags


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("positive_int", "1", 1),
        ("non_negative_int", "0", 0),
        ("positive_float", "1e-9", 1e-9),
        ("non_negative_float", "0", 0.0),
        ("finite_float", "-3.5", -3.5),
        ("share", "0", 0.0),
        ("share", "1", 1.0),
    ],
)
def test_a_number_in_the_range_is_parsed(kind, text, value):
    assert getattr(flags, kind)(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            (kind, "nan")
            for kind in ("positive_float", "non_negative_float", "finite_float", "share")
        ),
        *(
            (kind, "inf")
            for kind in ("positive_float", "non_negative_float", "finite_float", "share")
        ),
        *((kind, "many") for kind in ("positive_int", "positive_float", "share")),
        ("positive_int", "0"),
        ("positive_int", "1.5"),
        ("non_negative_int", "-1"),
        ("positive_float", "0"),
        ("non_negative_float", "-1e-9"),
        ("share", "1.001"),
        ("share", "-0.001"),
    ],
)
def test_other_values_are_refused_with_what_was_found_and_expected(kind, text):
    with pytest.raises(ArgumentTypeError, match=f"found {text}, expected .*(more|above|to|finite)"):
        getattr(flags, kind)(text)
