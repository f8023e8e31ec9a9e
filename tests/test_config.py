"""The configuration: one tree for Python, YAML and the command line."""

import datetime
import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from amc.config import (
    RECIPES,
    Auto,
    Config,
    DataConfig,
    FinetuneConfig,
    Option,
    SearchConfig,
    binding,
    convert,
    from_dict,
    from_yaml,
    merge,
    options,
    read_yaml,
    to_dict,
)
from amc.config.base import Limit
from amc.errors import ConfigError, RenamedWarning

OPTIONS = {".".join(option.path): option for option in options()}


def other(option: Option) -> Any:
    """A value that is not the default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if isinstance(option.default, bool):
        return not option.default
    if option.path == ("search", "operators"):
        return "channels", "my.py:operator"
    if option.path == ("search", "bits"):
        return (8,)
    return {int: 24, float: 0.25, tuple: (0.5, 0.25), dict: {"a": 1}, str: "x"}[option.kind]


def nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *folders, leaf = path.split(".")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = value
    return tree


def look_up(config: Config, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found


# The tree


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> set[str]:
    found = set()
    for name, value in values.items():
        found |= leaves(value, (*path, name)) if value and isinstance(value, dict) else {".".join((*path, name))}
    return found


def test_every_leaf_has_a_flag_and_a_help_text() -> None:
    assert set(OPTIONS) == leaves(to_dict(Config()))
    assert all(len(option.help) > 10 for option in OPTIONS.values())
    flags = [option.flag for option in OPTIONS.values()]
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") and flag == flag.lower() for flag in flags)


def test_help_texts_can_be_formatted_by_argparse() -> None:
    assert all(option.help % {} == option.help.replace("%%", "%") for option in OPTIONS.values())


def test_defaults_are_among_the_choices() -> None:
    assert all(option.default in option.choices for option in OPTIONS.values() if option.choices)


# Round trips


def test_every_value_survives_yaml(tmp_path: Path) -> None:
    values = {path: other(option) for path, option in OPTIONS.items()}
    config = from_dict(nested(values))
    assert {path: look_up(config, path) for path in values} == values
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert from_yaml(file) == config
    assert from_dict(to_dict(config)) == config


def test_defaults_survive() -> None:
    assert from_dict({}) == from_dict(to_dict(Config())) == Config()
    assert from_dict({"model": None, "budget": {}}) == Config()


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.just(None)))
def test_any_part_may_be_given(chosen: dict[str, None]) -> None:
    values = {path: other(OPTIONS[path]) for path in chosen}
    config = from_dict(nested(values))
    of_recipe = {f"finetune.{name}": value for name, value in RECIPES[config.finetune.recipe].settings.items()}
    for path, option in OPTIONS.items():
        assert look_up(config, path) == values.get(path, of_recipe.get(path, option.default))
    assert from_dict(to_dict(config)) == config


def test_numbers_as_yaml_writes_them(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 and 2e7 as words, and 0.5 and 20000000 as numbers."""
    file = tmp_path / "c.yaml"
    file.write_text(
        "seed: 3\nbudget: {flops: 0.5, params: 100000, size: 500KB}\n"
        "finetune: {lr: 1e-3, epochs: 2}\ndata: {mean: [0.1, 1], std: '0.5, 0.25', search: 2e3}\n"
    )
    config = from_yaml(file)
    assert (config.budget.flops, config.budget.params, config.budget.size) == ("0.5", "100000", "500KB")
    assert (config.finetune.lr, config.finetune.epochs) == (0.001, 2.0)
    assert (config.data.mean, config.data.std, config.data.search) == ((0.1, 1.0), (0.5, 0.25), 2000)
    assert type(config.data.search) is int
    assert type(config.finetune.epochs) is float


# What is refused


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sed": 3}, "unknown key 'sed'. Did you mean 'seed'?"),
        ({"search": {"evaluation": 3}}, "unknown key 'search.evaluation'. Did you mean 'evaluations'?"),
        ({"finetune": {"learning": 1}}, "unknown key 'finetune.learning'."),
        ({1: 2}, "unknown key '1'. Known: budget,"),
        ({"finetune": {"precision": "bfloat"}}, "finetune.precision is 'bfloat'. Did you mean 'bfloat16'?"),
        ({"search": {"recalibrate": "yes"}}, "search.recalibrate is 'yes'. Known: auto, off, on."),
        ({"model": "resnet8"}, "model is 'resnet8', but must hold keys and values."),
        ({"model": []}, "model is [], but must hold keys and values."),
        ({"model": False}, "model is False, but must hold keys and values."),
        ({"seed": None}, "seed is None, but must be a whole number."),
        ({"seed": 1.5}, "seed is 1.5, but must be a whole number."),
        ({"seed": "three"}, "seed is 'three', but must be a whole number."),
        ({"seed": True}, "seed is True, but must be a whole number."),
        ({"seed": [1]}, "seed is [1], but must be a whole number."),
        ({"seed": -1}, "seed is -1, but must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296, but must be at least 0 and at most 4294967295."),
        ({"seed": 10**400}, "but must be at least 0"),
        ({"seed": 10**5000}, "seed is a number of thousands of digits, but must be at least 0"),
        ({"finetune": {"lr": "fast"}}, "finetune.lr is 'fast', but must be a number."),
        ({"finetune": {"lr": None}}, "finetune.lr is None, but must be a number."),
        ({"search": {"reconstruct": 1}}, "search.reconstruct is 1, but must be true or false."),
        ({"search": {"reconstruct": "no"}}, "search.reconstruct is 'no', but must be true or false."),
        ({"model": {"name": None}}, "model.name is None, but must be a text."),
        ({"model": {"name": ["a"]}}, "model.name is ['a'], but must be a text."),
        ({"budget": {"flops": True}}, "budget.flops is True, but must be a share or an amount."),
        ({"data": {"mean": 0.5}}, "data.mean is 0.5, but must be numbers with commas between them."),
        ({"data": {"mean": "a,b"}}, "data.mean is 'a,b', but must be a number."),
        ({"data": {"image_size": "big"}}, "data.image_size is 'big', but must be a whole number."),
    ],
)
def test_what_is_not_understood_is_refused(values: dict[Any, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert told in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf", "nan", "1e999"])
@pytest.mark.parametrize("path", [p for p, o in OPTIONS.items() if isinstance(o.default, float)] + ["seed", "data.std"])
def test_nan_and_infinity_are_refused(path: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match="but must be a"):
        from_dict(nested({path: [value] if path == "data.std" else value}))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("search.evaluations", 0),
        ("search.min_keep", -0.1),
        ("search.min_keep", 1.01),
        ("search.channel_step", -1),
        ("finetune.candidates", 0),
        ("finetune.lr", 0),
        ("finetune.batch_size", 1),
        ("finetune.distillation", 1.5),
        ("finetune.distillation", -0.1),
        ("finetune.trial_share", 2),
        ("finetune.temperature", 0),
        ("data.calibration", 1),
        ("data.search", 0),
        ("threads", -1),
        ("latency_threads", 0),
    ],
)
def test_out_of_range(path: str, value: float) -> None:
    with pytest.raises(ConfigError, match="must be"):
        from_dict(nested({path: value}))


def test_ranges_hold_in_python_too() -> None:
    with pytest.raises(ConfigError, match="lr is -1"):
        Config(finetune=FinetuneConfig(lr=-1))
    with pytest.raises(ConfigError, match=r"min_keep is -0\.1"):
        Config(search=SearchConfig(min_keep=-0.1))
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 3  # type: ignore[misc]


def test_the_ends_of_ranges_are_legal() -> None:
    config = Config(search=SearchConfig(min_keep=1.0, evaluations=1), data=DataConfig(calibration=2), seed=2**32 - 1)
    assert from_dict(to_dict(config)) == config


# Files


@pytest.mark.parametrize("text", ["- 1", "word", "3"])
def test_yaml_without_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="must hold keys and values"):
        read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "text",
    [b"a: [", b"a: b: c", b"\xff\xfe\xff", b"a: \x00", b"d: 2020-13-45", b"[" * 3000, b"a: !!python/name:os.system"],
)
def test_what_is_not_yaml_is_told_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML") as caught:
        read_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="directory"):
        from_yaml(tmp_path)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert from_yaml(tmp_path / "c.yaml") == Config()


def test_other_files_than_small_regular_ones_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        read_yaml(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        read_yaml("/dev/zero")
    (tmp_path / "large.yaml").write_text("a: " + "b" * (1 << 20))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_yaml(tmp_path / "large.yaml")
    with pytest.raises(ConfigError, match="can be no path"):
        read_yaml("a\0b")


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, levels)])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (bomb(9), "more than 50,000 values, aliases written out"),
        ("a: &a [*a]", "stands for nothing, or for what it is itself within"),
        ("a: &a {b: {c: *a}}", "stands for nothing, or for what it is itself within"),
        ("[" * 500 + "]" * 500, "nested more than 40 levels deep"),
        ("{a: " * 500 + "}" * 500, "nested more than 40 levels deep"),
        ("seed: " + "9" * 5000, "4300 digits"),
        ("seed: " + ":".join(9000 * ["1"]), "a value of more than 10,000 characters"),
        ("[" + "a, " * 60_000 + "]", "more than 50,000 values"),
        ("a: !!int ''", "is not YAML"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ("? [a]\n: 1", "is not YAML"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ('"a\\e[31m": 1\n"a\\e[31m": 1', r"the key 'a\x1b[31m' is there twice"),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_yaml_is_refused_in_one_line_at_once(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        from_yaml(tmp_path / "c.yaml")
    assert time.monotonic() - begun < 5
    assert told in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_aliases_that_are_small_work(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("finetune: &f {epochs: 1}\nsearch: {evaluations: &n 7, refine: *n}\n")
    config = from_yaml(tmp_path / "c.yaml")
    assert (config.search.evaluations, config.search.refine, config.finetune.epochs) == (7, 7, 1)


@pytest.mark.parametrize("value", [5, 0.5, ["a"], datetime.date(2020, 1, 1), "a\0b", "a" * 5000, {"a": 1}])
@pytest.mark.parametrize("path", ["out", "model.name", "data.root", "cache"])
def test_what_is_no_path_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{path} is .*, but must be a text"):
        from_dict(nested({path: value}))


# Earlier versions

OLD = [
    ("search.min_keep", -1),
    ("search.channel_step", 0),
    ("finetune.epochs", -1),
    ("threads", 0),
    ("memory_limit", 0.0),
]


@pytest.mark.parametrize(("path", "value"), OLD)
def test_old_values_are_accepted_with_a_warning(path: str, value: float) -> None:
    with pytest.warns(RenamedWarning, match=f"{path}: {value} is now written auto"):
        assert look_up(from_dict(nested({path: value})), path) == "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look_up(from_dict(nested({path: str(value)}), quiet=True), path) == "auto"
    section, _, key = path.rpartition(".")
    parts = {"": Config, "search": SearchConfig, "finetune": FinetuneConfig}
    with pytest.warns(RenamedWarning):
        assert getattr(parts[section](**{key: value}), key) == "auto"


@pytest.mark.parametrize(
    ("old", "value", "new", "now"),
    [
        ("search.judge", "distance", "search.objective", "logit_mse"),
        ("search.judge", "loss", "search.objective", "loss"),
        ("search.drift", "final", "search.sequential_reconstruction", "final"),
    ],
)
def test_old_names_are_accepted_with_a_warning(old: str, value: str, new: str, now: str) -> None:
    with pytest.warns(RenamedWarning, match=f"{old} is now called {new}"):
        config = from_dict(nested({old: value}))
    assert look_up(config, new) == now
    assert identity(config) == identity(from_dict(nested({new: now})))


def identity(config: Config) -> str:
    return hashlib.sha256(json.dumps(binding(config), sort_keys=True).encode()).hexdigest()[:32]


def test_the_identity_of_a_run_is_what_version_0_1_computed() -> None:
    """The journals of runs that were begun with version 0.1 hold these digests."""
    assert identity(Config()) == "5bb163f0688483fcd9d57bea22c16fe9"
    values = {"budget": {"flops": 0.5}, "search": {"min_keep": 0.3, "channel_step": 1}}
    assert (
        identity(from_dict({**values, "finetune": {"epochs": 1}, "data": {"mean": [0.5]}}))
        == "1abcb3c9c1452df3480c7cfa1fe8b3b3"
    )
    assert identity(Config(out="x", cache="auto", log="y", threads=3, memory_limit=2)) == identity(Config())


# Helpers


def test_merge_goes_into_nested_mappings_and_changes_nothing() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"c": 5}, "e": 6}) == {"a": {"b": 1, "c": 5}, "d": 3, "e": 6}
    assert merge(base, {"a": 7}) == {"a": 7, "d": 3}
    assert merge(base, {"d": {"x": 1}}) == {"a": {"b": 1, "c": 2}, "d": {"x": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("value", "wanted", "result"),
    [
        ("3", int, 3),
        ("1e3", int, 1000),
        (4.0, int, 4),
        ("0.5", float, 0.5),
        (2, float, 2.0),
        (0.5, Limit, "0.5"),
        ("auto", float | Auto, "auto"),
        (True, Literal["on", "off"], "on"),
        (None, int | None, None),
        ("5", int | None, 5),
        ("0.1,0.2", tuple[float, ...] | None, (0.1, 0.2)),
        ([1, "2"], tuple[float, ...], (1.0, 2.0)),
        (False, bool, False),
    ],
)
def test_convert(value: Any, wanted: Any, result: Any) -> None:
    found = convert(value, wanted, "x")
    assert found == result
    assert type(found) is type(result)
