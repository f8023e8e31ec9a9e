"""The error tree, and the hints in messages."""

import inspect

import pytest

from amc import errors
from amc.errors import AmcError, did_you_mean


def test_the_docstring_draws_the_whole_tree() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    classes = {name for name in classes if not issubclass(getattr(errors, name), Warning)}
    drawn = {word for line in errors.__doc__.splitlines() for word in line.split() if word.endswith("Error")}
    assert classes == drawn
    assert all(issubclass(getattr(errors, name), AmcError) for name in classes)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("resnet2O", ["vgg16bn", "resnet20"], " Did you mean 'resnet20'?"),
        ("xyz", ["b", "a"], " Known: a, b."),
        ("xyz", [], ""),
    ],
)
def test_did_you_mean(word: str, known: list[str], hint: str) -> None:
    assert did_you_mean(word, known) == hint
