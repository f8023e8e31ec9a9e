"""What a run shows while it goes on."""

import io
import logging
import re
import time

import pytest
from rich.console import Console

from amc.runtime.display import Display, Warnings, clock, progress_console
from amc.runtime.monitor import Logged, announce
from amc.runtime.progress import Recorder

STAGES = ["inspect", "calibrate", "search", "choose", "fine-tune", "export", "measure", "test"]
NOTE = "best accuracy 97.71 % before fine-tuning, and much more that has no room on the line"


def terminal(file: io.StringIO, width: int = 80) -> Console:
    return Console(file=file, force_terminal=True, force_interactive=True, color_system=None, width=width,
                   legacy_windows=False, _environ={"TERM": "xterm"})  # fmt: skip


def frames(file: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def wait_for(file: io.StringIO, text: str) -> None:
    end = time.monotonic() + 20
    while text not in frames(file):
        assert time.monotonic() < end, frames(file)
        time.sleep(0.05)


@pytest.mark.parametrize("width", [60, 80])
def test_no_time_is_lost_on_a_narrow_terminal(width: int):
    file = io.StringIO()
    with Display(terminal(file, width)) as display:
        display.plan(STAGES)
        display.begin("inspect")
        display.end(3675.0)
        display.begin("search")
        display.progress(0.5, NOTE)
        wait_for(file, " left ")
        wait_for(file, "test ")
        display.progress(1.0)
        display.end(75.0)
    shown = frames(file)
    last = shown[shown.rindex("✓ inspect") :].splitlines()
    assert "100 %" in last[0]
    assert "1:01:15" in last[0]
    assert "1:15" in last[1]
    assert last[1].rstrip().endswith("…")
    assert "best" in last[1]
    assert all(len(line) <= width for line in shown.replace("\r", "\n").splitlines())
    assert "1 of 8 stages done" in shown
    assert "2 of 2 stages done" in last[2]


def test_stages_that_come_again_are_shown_again():
    file = io.StringIO()
    with Display(terminal(file)) as display:
        display.plan(["search", "measure", "test"])
        for stage in ("search", "measure", "search", "measure", "test"):
            display.begin(stage)
            display.end(1.0)
    last = frames(file)
    last = last[last.rindex("5 of 5 stages done") - 1000 :]
    names = re.findall(r"✓ (\w+)", last)[-5:]
    assert names == ["search", "measure", "search", "measure", "test"]


def test_without_a_terminal_there_are_lines():
    file = io.StringIO()
    with Display(Console(file=file, width=80)) as display:
        display.plan(STAGES)
        display.say("x" * 200)
        display.begin("inspect")
        display.progress(0.3, "half")
        display.end(1.0)
        display.begin("search")
        display.end(2.0)
    lines = file.getvalue().splitlines()
    assert lines[:3] == ["x" * 200, "inspect        1.0 s  half", "search         2.0 s"]
    assert re.fullmatch(r"total +\d+\.\d s", lines[3])
    assert "\x1b" not in file.getvalue()


def test_a_long_stage_gives_lines_in_between(monkeypatch):
    monkeypatch.setattr("amc.runtime.display._LINES_EVERY", -1.0)
    file = io.StringIO()
    with Display(Console(file=file, width=80)) as display:
        display.begin("search")
        display.progress(0.25, "best so far")
    assert file.getvalue().split() == ["search", "0.0", "s", "25", "%", "done", "best", "so", "far"]


@pytest.mark.parametrize(
    ("terminal_there", "environment", "live"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "CI": "true"}, False),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_only_a_terminal_that_can_gets_control_codes(monkeypatch, terminal_there: bool, environment, live: bool):
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal_there

    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Stream()
    monkeypatch.setattr("sys.stderr", stream)
    with Display(progress_console()) as display:
        display.begin("search")
        display.end(1.0)
    assert ("\x1b" in stream.getvalue()) == live
    assert "search" in stream.getvalue()


def test_no_color_is_kept_to(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stderr", stream)
    with Display(progress_console()) as display:
        display.begin("search")
        display.end(1.0)
    assert not re.search(r"\x1b\[(\d+;)*(3[0-7]|38|9[0-7])[;m]", stream.getvalue())


def test_quiet_shows_warnings_alone(capsys):
    quiet = Warnings()
    announce(quiet, STAGES)
    quiet.begin("search")
    quiet.say("everything is written to x")
    quiet.say("warning: the cache cannot be written to")
    quiet.end(1.0)
    assert capsys.readouterr().err == "warning: the cache cannot be written to\n"


def test_stages_to_come_reach_the_display_and_the_log_does_without(tmp_path, caplog):
    class Shows(Logged):
        stages: list[str] = []  # noqa: RUF012

        def plan(self, stages) -> None:
            self.stages = list(stages)

    shows = Shows()
    with Recorder(tmp_path, shows) as recorder:
        announce(recorder, STAGES)
    assert shows.stages == STAGES
    caplog.set_level(logging.DEBUG, "amc")
    with Recorder(tmp_path, Logged()) as recorder:
        announce(recorder, STAGES)
        recorder.begin("search")
        recorder.say("warning: x")
        recorder.end(1.0)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("DEBUG", "search: begins"),
        ("WARNING", "warning: x"),
        ("INFO", "search: done in 1.0 s"),
    ]


def test_clock():
    assert [clock(s) for s in (0.4, 59.6, 3599.6, 360000)] == ["0:00", "1:00", "1:00:00", "100:00:00"]
