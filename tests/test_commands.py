"""The command line as a new user meets it: help, output for people and programs, init, doctor, completion."""

import io
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from amc.cli import main
from amc.commands import COMMANDS
from amc.commands.doctor import DoctorAnswer, findings
from amc.commands.parser import make_parser
from amc.config import from_dict, from_yaml, options, to_dict
from amc.config.schema import json_schema
from amc.runtime.machine import Machine

ROOT = Path(__file__).parent.parent
QUICK = ["search", "--flops", "0.5", "--evaluations", "1", "--searcher", "uniform", "--no-finetune", "--cache", "auto"]


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def flags_in(text: str) -> set[str]:
    """The options that a help text describes."""
    lines = [line.split() for line in text.splitlines() if line.startswith("  -")]
    return {word.rstrip(",") for words in lines for word in words if word.startswith("--")}


def complaint(capsys, *words: str) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip()


# help


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.main])
def test_help_is_short_and_help_all_is_complete(capsys, name: str):
    short, full = help_of(capsys, name, "--help"), help_of(capsys, name, "--help-all")
    command = COMMANDS[name]
    common = {"--json", "--quiet", "--verbose", "--help", "--help-all"}
    assert flags_in(short) - common - {f"--no-{flag[2:]}" for flag in command.main} == set(command.main)
    assert len(command.main) <= 14
    assert flags_in(short) < flags_in(full)
    assert f"amc {name} --help-all" in short
    for text in (short, full):
        assert "examples:" in text
        assert max(map(len, text.splitlines())) <= 100


def test_training_has_no_options_of_searching(capsys):
    found = flags_in(help_of(capsys, "train", "--help-all"))
    paths = {option.flag: option.path for option in options()}
    assert not {flag for flag in found if paths.get(flag, ("",))[0] in ("search", "budget")}
    assert not found & {"--candidates", "--schedule", "--int8", "--distillation"}
    assert {"--lr", "--finetune-epochs", "--calibration-images"} <= found


def test_an_option_without_effect_is_accepted_with_a_warning(capsys):
    assert main(["inspect", "--evaluations", "3"]) == 0
    assert capsys.readouterr().err == (
        "amc: warning: --evaluations has no effect in amc inspect, and is accepted in this version only.\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search", "--flop", "0.5"], "amc: unknown option --flop. Did you mean '--flops'?"),
        (["search", "--finetune-epoch=3"], "amc: unknown option --finetune-epoch. Did you mean '--finetune-epochs'?"),
        (["search", "--zzz"], "amc: unknown option --zzz. See amc search --help-all."),
        (["cache", "--zzz"], "amc: unknown option --zzz. See amc cache --help."),
        (["train", "--flops", "0.5"], "amc: --flops is no option of amc train, but of amc search."),
        (["status", "a", "b"], "amc: unexpected argument 'b' (see amc status --help)"),
        (["cache", "--quiet", "--verbose"], "amc: --quiet and --verbose exclude each other: leave one out."),
        (["measure", "--json", "a.onnx"], "amc: MODEL.onnx is missing (see amc measure --help)"),
        (["search", "--flops"], "amc: --flops needs a value (see amc search --help)"),
        (["list"], "amc: name what to list: searchers, criteria, rewards, data, schedules, recoveries, preparations, "
                   "sparse-rules, operators, latency-models, onnx-operators."),
        (["measure", "a.onnx", "--json", "b.onnx"], "amc: --json would write over b.onnx: put --json at the end, or "
                                                    "name a .json file after it."),
        (["completion", "bsh"], "amc: unknown shell 'bsh'. Did you mean 'bash'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(capsys, words: list[str], told: str):
    assert complaint(capsys, *words) == told


def test_exit_codes_and_version_are_told(capsys):
    told = help_of(capsys, "--help")
    documented = (ROOT / "docs/commands.md").read_text()
    for code in ("0", "1", "2", "3", "130"):
        assert f"\n  {code} " in told
        assert f"| {code} |" in documented
    assert help_of(capsys, "--version").startswith("amc ")


def test_every_command_and_common_option_is_documented():
    text = (ROOT / "docs/commands.md").read_text()
    for name in COMMANDS:
        assert name == "searchers" or f"amc {name}" in text
    for word in ("--quiet", "--verbose", "--json", "--help-all", "NO_COLOR", "CI"):
        assert word in text


def test_the_command_need_not_come_first(capsys):
    assert help_of(capsys, "help", "search") == help_of(capsys, "search", "--help")
    assert help_of(capsys, "help") == help_of(capsys, "--help")
    assert main(["--json", "cache", "--folder", "nothing"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 0


# output


def test_a_search_as_json_quiet_and_verbose(capfd):
    """One run of each; stdout is one document, and what else is told is on stderr."""
    assert main([*QUICK, "--json", "--out", "a"]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document["folder"] == "a"
    assert document["final"]["macs"] <= document["budget"]["limits"]["macs"]
    assert "samples to train on" in err
    assert "\x1b" not in err
    assert main(["search", "--resume", "a", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "Results in a: model.onnx" in out
    assert main(["search", "--resume", "a", "--verbose"]) == 0
    out, err = capfd.readouterr()
    assert "INFO everything is written to a" in err
    assert not logging.getLogger("amc").handlers
    assert main(["status", "a", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][0]["state"] == "done"
    assert main(["evaluate", "a", "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)) == {"metric", "test", "recorded"}
    assert main(["measure", "a/model.onnx", "--seconds", "0.1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["format"] == "amc-measure"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["inspect", "--json"], "sites"),
        (["cache", "--folder", "nothing", "--json"], "kinds"),
        (["doctor", "--json"], "findings"),
        (["init", "--defaults", "--json"], "config"),
        (["batch", str(ROOT / "configs/batch-digits.yaml"), "--dry-run", "--json"], "runs"),
    ],
)
def test_commands_that_tell_something_tell_it_as_json(capfd, words: list[str], key: str):
    assert main(words) == 0
    assert key in json.loads(capfd.readouterr().out)


def test_lists_as_json(capsys):
    assert main(["list", "searchers", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["evolution"]["settings"] if "evolution" in found else found["tpe"]["summary"]


def test_a_mistake_leaves_stdout_empty(capfd):
    assert main(["evaluate", "nowhere", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("amc: ")


def test_every_command_takes_the_common_options():
    _, parsers = make_parser(COMMANDS)
    for name, parser in parsers.items():
        flags = {flag for flag, _ in parser.flags()}
        assert {"--quiet", "--verbose", "--help"} <= flags
        assert ("--json" in flags) == COMMANDS[name].json


# init


def test_five_answers_become_a_configuration(capsys, monkeypatch):
    answers = "resnet20\nw.safetensors\nimagefolder:photos\nlatency=3ms, size=500KB\n2.5\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    assert main(["init"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("?") >= 5
    assert "amc search --config amc.yaml" in captured.out
    expected = from_dict({
        "model": {"name": "resnet20", "weights": "w.safetensors"},
        "data": {"name": "imagefolder:photos"},
        "budget": {"latency": "3ms", "size": "500KB"},
        "finetune": {"epochs": 2.5},
    })  # fmt: skip
    assert from_yaml("amc.yaml") == expected
    assert "amc.yaml is there already" in complaint(capsys, "init")


def test_settings_in_comments_are_legal(capsys):
    """Every setting that init writes as a comment can be used by removing the #."""
    assert main(["init", "--defaults"]) == 0
    lines = Path("amc.yaml").read_text().splitlines()
    count = 0
    for index, line in enumerate(lines):
        name = line.strip().removeprefix("# ").partition(":")[0]
        if line.strip().startswith("# ") and name.isidentifier() and not line.strip().startswith("#  "):
            changed = [*lines[:index], line.replace("# ", "", 1), *lines[index + 1 :]]
            from_dict(yaml.safe_load("\n".join(changed)))
            count += 1
    assert count >= 15


def test_code_of_the_users_own_is_run_with_trust(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("net.py:make\n\nmy.py:data\n\n0\n"))
    assert main(["init", "own.yaml"]) == 0
    assert "amc search --config own.yaml --trust" in capsys.readouterr().out
    assert from_yaml("own.yaml").budget.flops == "0.5"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ("\n\n\nflops=2x\n", "must be like"),
        ("\n\n\nflop=0.5\n", "Did you mean 'flops'?"),
        ("\n\n\nhalf\n", "must be like flops=0.5"),
        ("\n\n\n\nmany\n", "--finetune-epochs is 'many'"),
    ],
)
def test_a_wrong_answer_writes_nothing(capsys, monkeypatch, answers: str, told: str):
    monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
    assert main(["init"]) == 2
    assert told in capsys.readouterr().err
    assert not Path("amc.yaml").exists()


def test_the_schema_agrees_with_the_configuration(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    assert main(["init", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema() == json.loads((ROOT / "configs/amc.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    for values in (to_dict(from_dict({})), {"budget": {"flops": 0.5}}, {"data": {"mean": "0.1,0.2"}}, {}):
        check.validate(values)
    for values in ({"budget": {"flop": 0.5}}, {"finetune": {"batch_size": 1}}, {"search": {"recalibrate": "maybe"}}):
        assert not check.is_valid(values)
    for path in (ROOT / "configs").glob("*.yaml"):
        assert path.name.startswith("batch") or check.is_valid(yaml.safe_load(path.read_text()))


# doctor


def test_what_follows_from_a_machine():
    here = replace(
        Machine.here(),
        **{"load": 0.0, "usable": 4.0, "cache_trouble": None, "folder_writable": True, "gpus": ()},
        **{"free_disk": 1 << 40, "free_memory": 1 << 35, "memory": 1 << 35},
        flags=frozenset({"avx2", "avx512f", "avx512_vnni"}),
    )

    def told(**changes) -> str:
        return "\n".join(f"{f.state}: {f.text}" for f in findings(replace(here, **changes)))

    assert "good: ONNX Runtime computes channels in blocks of 16" in told()
    assert "good: The CPU multiplies 8-bit numbers directly" in told()
    assert "good: The machine is quiet" in told()
    assert "note: There is no GPU" in told()
    assert "blocks of 8 (AVX2)" in told(flags=frozenset({"avx2"}))
    assert "note: The CPU has no instructions for 8-bit" in told(flags=frozenset({"avx2"}))
    assert "note: The CPU has neither AVX2" in told(flags=frozenset())
    assert "note: The machine is busy (load 3.0 on 4 cores)" in told(load=3.0)
    assert "note: Only 0.5 GiB of memory are free" in told(free_memory=1 << 29)
    assert "problem: " not in told()
    assert "problem: only 1 MB are free" in told(free_disk=1_000_000)
    assert "note: The cache x cannot be written to" in told(cache_trouble="the cache x cannot be written to")
    assert DoctorAnswer(here, ()).code == 0
    assert DoctorAnswer(replace(here, folder_writable=False), ()).code == 2


def test_doctor_says_what_the_machine_has(capsys):
    assert main(["doctor"]) in (0, 2)
    out = capsys.readouterr().out
    for word in ("CPU ", "instructions", "cores", "ONNX Runtime", "CPUExecutionProvider", "GPU", "memory", "cache"):
        assert word in out


# completion


def script(capsys, shell: str) -> Path:
    assert main(["completion", shell]) == 0
    path = Path(f"amc.{shell}")
    path.write_text(capsys.readouterr().out)
    return path


def shell(name: str, *words: str) -> str:
    done = subprocess.run([name, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered", "others"),
    [
        (["s"], {"search", "status"}, {"train"}),
        (["search", "--fl"], {"--flops"}, {"--params"}),
        (["train", "--"], {"--lr", "--json", "--help-all"}, {"--flops", "--evaluations"}),
        (["search", "--search-objective", ""], {"logit_mse", "loss"}, {"--flops"}),
        (["list", ""], {"searchers", "criteria"}, set()),
        (["completion", "z"], {"zsh"}, {"bash"}),
        (["measure", "some"], {"some.onnx"}, set()),
    ],
)
def test_bash_completes(capsys, words: list[str], offered: set[str], others: set[str]):
    Path("some.onnx").touch()
    line = " ".join(f"'{word}'" for word in ["amc", *words])
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _amc; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    found = set(shell("bash", "--norc", "-uc", f"source {script(capsys, 'bash')}; {ask}").split())
    assert offered <= found
    assert not others & found


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_sources_the_script(capsys):
    path = script(capsys, "zsh")
    assert shell("zsh", "-fc", f"source ./{path}; print $_comps[amc]").strip() == "_amc"
    assert shell("zsh", "-fc", f"cp {path} _amc; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; "
                               "print $_comps[amc]").strip() == "_amc"  # fmt: skip


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
@pytest.mark.parametrize(
    ("line", "offered", "others"),
    [
        ("amc s", {"search", "status"}, {"train"}),
        ("amc search --fl", {"--flops"}, {"--params"}),
        ("amc train --", {"--lr", "--json"}, {"--flops"}),
        ("amc search --search-objective ", {"logit_mse", "loss"}, set()),
        ("amc list ", {"searchers", "criteria"}, set()),
    ],
)
def test_fish_completes(capsys, line: str, offered: set[str], others: set[str]):
    found = shell("fish", "--no-config", "-c", f"source {script(capsys, 'fish')}; complete -C '{line}'")
    words = {entry.split("\t")[0] for entry in found.splitlines()}
    assert offered <= words
    assert not others & words
