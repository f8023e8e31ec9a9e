"""The configuration: one tree for Python, YAML and the command line."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amc.config import (
    Config,
    DataConfig,
    FinetuneConfig,
    Option,
    SearchConfig,
    convert,
    from_dict,
    from_yaml,
    merge,
    options,
    read_yaml,
    to_dict,
)
from amc.errors import ConfigError

OPTIONS = {".".join(option.path): option for option in options()}


def other(option: Option) -> Any:
    """A value that is not the default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if isinstance(option.default, bool):
        return not option.default
    if isinstance(option.default, int):
        return option.default + 2
    if isinstance(option.default, float):
        return 0.25
    inner = typing.get_args(option.type)
    return 24 if int in inner else (0.5, 0.25) if tuple in map(typing.get_origin, inner) else "x"


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


def leaves(cls: type, path: tuple[str, ...] = ()) -> set[str]:
    hints, found = typing.get_type_hints(cls), set()
    for leaf in dataclasses.fields(cls):
        inner, where = hints[leaf.name], (*path, leaf.name)
        found |= leaves(inner, where) if dataclasses.is_dataclass(inner) else {".".join(where)}
    return found


def test_every_leaf_has_a_flag_and_a_help_text() -> None:
    assert set(OPTIONS) == leaves(Config)
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
    for path, option in OPTIONS.items():
        assert look_up(config, path) == values.get(path, option.default)
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
        ({1: 2}, "unknown key '1'."),
        ({"finetune": {"precision": "bfloat"}}, "finetune.precision is 'bfloat'. Did you mean 'bfloat16'?"),
        ({"search": {"recalibrate": "yes"}}, "search.recalibrate is 'yes'. Known: auto, off, on."),
        ({"model": "resnet8"}, "model. is 'resnet8', but must hold keys and values."),
        ({"model": []}, "model. is [], but must hold keys and values."),
        ({"model": False}, "model. is False, but must hold keys and values."),
        ({"seed": None}, "seed is None, but must be a whole number."),
        ({"seed": 1.5}, "seed is 1.5, but must be a whole number."),
        ({"seed": "three"}, "seed is 'three', but must be a whole number."),
        ({"seed": True}, "seed is True, but must be a whole number."),
        ({"seed": [1]}, "seed is [1], but must be a whole number."),
        ({"seed": -1}, "seed is -1, but must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296, but must be at least 0 and less than 2**32."),
        ({"seed": 10**400}, "but must be a whole number."),
        ({"finetune": {"lr": "fast"}}, "finetune.lr is 'fast', but must be a number."),
        ({"finetune": {"lr": None}}, "finetune.lr is None, but must be a number."),
        ({"search": {"reconstruct": 1}}, "search.reconstruct is 1, but must be true or false."),
        ({"search": {"reconstruct": "no"}}, "search.reconstruct is 'no', but must be true or false."),
        ({"model": {"name": None}}, "model.name is None, but must be a word."),
        ({"model": {"name": ["a"]}}, "model.name is ['a'], but must be a word."),
        ({"budget": {"flops": True}}, "budget.flops is True, but must be a word."),
        ({"data": {"mean": 0.5}}, "data.mean is 0.5, but must be numbers with commas between them."),
        ({"data": {"mean": "a,b"}}, "data.mean is 'a', but must be a number."),
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
    with pytest.raises(dataclasses.FrozenInstanceError):
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
        (0.5, str, "0.5"),
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
