"""The content of reports. Hostile text is escaped, and the same run gives the same bytes."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from amc.errors import BundleError
from amc.reports import columns, final_table, human, was_trained, write_reports
from amc.reports.markdown import escape, fenced, markdown_report
from amc.reports.network_figures import bars
from amc.reports.notebook import notebook_html
from amc.reports.page import content_policy, source_hash
from amc.reports.read import SearchHistory, SearchPoint, read_journal
from amc.reports.search_figures import progress
from amc.reports.table import budget_lines, outcome

HOSTILE = 'a|b`c`\n<script>alert("1")</script> $x^{ **bold** ![i](u) 漢 \ud800 </svg> ]]> --> {{ 7 * 7 }}'


def times(original: float, final: float) -> dict[str, float]:
    return {"original": original, "final": final}


RESULT: dict[str, Any] = {
    "format": "amc-result",
    "version": 1,
    "task": "resnet20 on cifar10",
    "model": {"name": "resnet20", "fingerprint": "0123abcd"},
    "data": {"source": "cifar10", "splits": {"seed": 3, "train": {"count": 48976, "digest": "ab12"}}},
    "metric": "accuracy",
    "budget": {"asked": {"flops": "0.5"}, "limits": {"macs": 20406592.0}},
    "original": {
        "search": 0.885,
        "test": 0.8854,
        "macs": 40813184.0,
        "params": 272474.0,
        "size": 1096450.0,
        "memory": 196608.0,
        "latency_ms": 0.4054,
    },
    "pruned": {"search": 0.741},
    "final": {
        "search": 0.8685,
        "test": 0.868,
        "macs": 20300176.0,
        "params": 121130.0,
        "size": 516300.0,
        "memory": 163840.0,
        "latency_ms": 0.2831,
    },
    "latency": {
        "threads": 1,
        "rounds": 60,
        "min_ms": times(0.3981, 0.2789),
        "p10_ms": times(0.4011, 0.2802),
        "median_ms": times(0.4054, 0.2831),
        "ratio": {"value": 0.698, "low": 0.681, "high": 0.719},
    },
    "proof": [
        {
            "resource": "macs",
            "unit": "MACs",
            "limit": 20406592.0,
            "exported": 20300176.0,
            "met": True,
            "how": "counted in model.onnx",
        }
    ],
    "parity": {"samples": 64, "largest_difference": 1.2e-6},
    "sites": [{"name": "conv1", "width": 12, "of": 16}, {"name": "layer1.0_conv2", "width": 8, "of": 32}],
    "search": {
        "searcher": "tpe",
        "evaluations": 4,
        "criterion": "obs",
        "recalibrate": False,
        "reward": "error",
    },
    "candidates": [
        {"choice": [12, 8], "before": 0.741, "after": 0.85, "chosen": True},
        {"choice": [16, 4], "before": 0.7, "after": 0.84, "chosen": False},
    ],
    "stages": [{"name": "search", "seconds": 31.24}, {"name": "fine-tuning", "seconds": 312.4}],
    "notes": ["MACs fell to 0.50, but the measured time only to 0.70."],
    "environment": {"cpu": "a CPU", "cores": 2, "python": "3.11.7", "versions": {"torch": "2.14.1"}},
    "config": {"model": {"name": "resnet20"}, "seed": 7},
}


def evaluation(choice: list[int], metric: float | None, macs: float) -> dict[str, Any]:
    return {
        "kind": "evaluation",
        "choice": choice,
        "metric": metric,
        "loss": None if metric is None else 1 - metric,
        "costs": {"macs": macs},
        "error": None if metric is not None else "NaN",
    }


JOURNAL = [
    {"kind": "start"},
    evaluation([8, 8], 0.5, 1.9e7),
    evaluation([8, 4], None, 1.8e7),
    evaluation([16, 4], 0.7, 2.0e7),
    evaluation([12, 8], 0.741, 20300176.0),
]


@pytest.fixture
def result() -> dict[str, Any]:
    return copy.deepcopy(RESULT)


def reports(folder: Path, result: object, journal: list[Any] = JOURNAL, tail: str = "") -> tuple[str, str]:
    """The Markdown and the HTML made from a result and a journal."""
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    lines = "".join(json.dumps(line) + "\n" for line in journal)
    (folder / "journal.jsonl").write_text(lines + tail, encoding="utf-8")
    write_reports(folder)
    return tuple((folder / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))  # type: ignore[return-value]


def cells(markdown: str) -> list[int]:
    """The number of unescaped pipes on every line."""
    return [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()]


class Page(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.attributes += [(name, value or "") for name, value in attrs]

    def marks(self, kind: str) -> int:
        """The number of marks of a kind in all charts."""
        return sum({"mark", kind} <= set(attributes.get("class", "").split()) for _, attributes in self.elements)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (human.count(20300176), "20.30 M"),
        (human.count(121130), "121.1 k"),
        (human.count(999), "999"),
        (human.count(999.7), "1.000 k"),
        (human.count(999_960), "1.000 M"),
        (human.count(15_470_264_320), "15.47 G"),
        (human.count(0), "0"),
        (human.count(None), "–"),
        (human.size(516300), "516.3 kB"),
        (human.size(1096450), "1.096 MB"),
        (human.size(640), "640 B"),
        (human.exact(20406592.0), "20,406,592"),
        (human.exact(13604394.6667), "13,604,394.667"),
        (human.exact(100), "100"),
        (human.milliseconds(0.2831), "0.283 ms"),
        (human.milliseconds(2.8), "2.80 ms"),
        (human.milliseconds(99.96), "100 ms"),
        (human.milliseconds(1234.5), "1234 ms"),
        (human.milliseconds(None), "–"),
        (human.seconds(31.24), "31.2 s"),
        (human.seconds(59.96), "1 min 00 s"),
        (human.seconds(312.4), "5 min 12 s"),
        (human.seconds(7500), "2 h 05 min"),
        (human.percent(0.8854), "88.54 %"),
        (human.short_percent(0.4974), "49.7 %"),
        (human.points(-0.0165), "-1.65"),
        (human.points(0.004), "+0.40"),
        (human.points(-0.00001), "0.00"),
        (human.ratio(human.quotient(20300176, 40813184)), "0.497"),
        (human.ratio(human.quotient(1, 0)), "–"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


def test_the_final_table(result: dict[str, Any]) -> None:
    rows = [(row.label, *row.cells(trained=True)) for row in final_table(result)]
    assert was_trained(result)
    assert columns(result) == ("original", "pruned", "fine-tuned", "ratio")
    assert rows == [
        ("accuracy, search split", "88.50 %", "74.10 %", "86.85 %", "-1.65"),
        ("accuracy, test split", "88.54 %", "–", "86.80 %", "-1.74"),
        ("MACs", "40.81 M", "–", "20.30 M", "0.497"),
        ("parameters", "272.5 k", "–", "121.1 k", "0.445"),
        ("model.onnx", "1.096 MB", "–", "516.3 kB", "0.471"),
        ("peak activations", "196.6 kB", "–", "163.8 kB", "0.833"),
        ("latency, ONNX Runtime, 1 thread", "0.405 ms", "–", "0.283 ms", "0.698"),
    ]


def test_without_training_nothing_is_called_fine_tuned(result: dict[str, Any]) -> None:
    untrained = {**result, "stages": result["stages"][:1]}
    assert columns(untrained) == ("original", "pruned", "ratio")
    row = final_table(untrained)[0]
    assert (row.label, *row.cells(was_trained(untrained))) == ("accuracy, search split", "88.50 %", "86.85 %", "-1.65")
    report = markdown_report(untrained, SearchHistory([], 0))
    assert (
        "| | original | pruned | ratio |\n|:--|--:|--:|--:|\n| accuracy, search split | 88.50 % | 86.85 % |" in report
    )


def test_the_outcome_in_one_sentence(result: dict[str, Any]) -> None:
    assert outcome(result) == (
        "49.7 % of the MACs, accuracy 88.54 → 86.80 % (−1.74 points) on the test split, 0.70 of the time."
    )


def test_the_outcome_names_every_limit_and_a_missed_one(result: dict[str, Any]) -> None:
    result["budget"]["limits"] = {"size": 5e5, "params": 2e5}
    result["proof"][0]["met"] = False
    assert outcome(result).startswith("44.5 % of the parameters, 47.1 % of the file size, ")
    assert outcome(result).endswith("; the budget is NOT met.")


def test_another_metric_is_called_by_its_name(tmp_path: Path, result: dict[str, Any]) -> None:
    result["metric"] = "mIoU"
    for report in reports(tmp_path, result):
        assert "mIoU, search split" in report
        assert "accuracy" not in report


def test_the_markdown_holds_every_section(tmp_path: Path, result: dict[str, Any]) -> None:
    markdown, _ = reports(tmp_path, result)
    for line in [
        "**resnet20 on cifar10: " + outcome(result) + "**",
        "> **Note:** MACs fell to 0.50, but the measured time only to 0.70.",
        "| accuracy, search split | 88.50 % | 74.10 % | 86.85 % | −1.65 |",
        "| macs | 20,406,592 | 20,300,176 | MACs | yes | counted in model.onnx |",
        "| median | 0.405 ms | 0.283 ms |",
        "| layer1.0_conv2 | 8 | 32 | 25.0 % |",
        "| 1 | 74.10 % | 85.00 % | yes | 12 8 |",
        "| fine-tuning | 5 min 12 s |",
        "| all stages | 5 min 44 s |",
        "- train split: 48976 samples, digest ab12",
        "- seeds: run 7, splits 3",
        "- search: tpe, 4 evaluations (1 failed), criterion obs, reward error, recalibration off",
        "- versions: torch 2.14.1",
        "  name: resnet20",
    ]:
        assert line in markdown.splitlines()


def test_the_page_shows_key_figures_and_charts(tmp_path: Path, result: dict[str, Any]) -> None:
    _, page = reports(tmp_path, result)
    figures = re.findall(r'<li class="tile"><span>(.*?)</span><b>(.*?)</b>', page)
    assert figures == [
        ("test accuracy, points", "−1.74"),
        ("MACs", "49.7 %"),
        ("model.onnx", "47.1 %"),
        ("time", "69.8 %"),
    ]
    assert sections(page) == ["widths", "progress", "tradeoff", "policies"]
    assert "<title>1. conv1: 12 of 16 (75.0 %)</title>" in page
    assert Page(page).marks("ring") == Page(page).marks("winner") == 1
    assert ">limit</text>" in page
    assert ">budget met<" in page


def sections(page: str) -> list[str]:
    """The ids of the figures of a page, in order."""
    return [attributes["id"] for tag, attributes in Page(page).elements if tag == "section" and "id" in attributes][:-1]


def test_a_limit_on_time_comes_first(tmp_path: Path, result: dict[str, Any]) -> None:
    result["budget"] = {"asked": {"latency": "0.75"}, "limits": {"latency": 0.304}}
    result["latency"]["prediction"] = {"model": "profile", "predicted_ms": 0.3, "corrected_ms": 0.29}
    result["proof"] = [{"resource": "latency", "unit": "ms", "limit": 0.304, "exported": 0.2831, "met": True,
                        "how": "measured beside the original"}]  # fmt: skip
    assert outcome(result).startswith("0.70 of the time, 49.7 % of the MACs, accuracy ")
    assert [row.label for row in final_table(result)][2] == "latency, ONNX Runtime, 1 thread"
    (line,) = budget_lines(result)
    assert (line.asked, line.limit, line.predicted, line.found) == ("0.75", "0.304 ms", "0.290 ms", "0.283 ms")
    assert line.interval == "0.276 ms to 0.291 ms"
    timed = [{**entry, "costs": {**entry["costs"], "latency": 0.28}} for entry in JOURNAL[1:]]
    _, page = reports(tmp_path, result, timed)
    assert re.findall(r'<li class="tile"><span>(.*?)</span>', page)[0] == "time"
    assert "predicted latency, ms" in page


def test_a_missed_budget_is_stated_plainly(tmp_path: Path, result: dict[str, Any]) -> None:
    result["proof"][0]["met"] = False
    markdown, page = reports(tmp_path, result)
    assert "| MACs | NO |" in markdown
    assert ">budget NOT met<" in page


def test_fields_that_may_be_null(tmp_path: Path, result: dict[str, Any]) -> None:
    result["latency"] = result["pruned"]["search"] = None
    for stage in ("original", "final"):
        result[stage].update(test=None, latency_ms=None)
    rows = {row.label: row for row in final_table(result)}
    assert rows["accuracy, test split"].ratio == rows["accuracy, search split"].after_pruning == "–"
    assert rows["latency, ONNX Runtime"].final == rows["latency, ONNX Runtime"].ratio == "–"
    assert outcome(result) == ("49.7 % of the MACs, accuracy 88.50 → 86.85 % (−1.65 points) on the search split.")
    markdown, page = reports(tmp_path, result)
    assert "None" not in markdown + page
    assert "not measured" in page


def test_hostile_texts_stay_texts(tmp_path: Path, result: dict[str, Any]) -> None:
    tame_markdown, tame_page = reports(tmp_path / "tame", result)
    result.update(task=HOSTILE, metric=HOSTILE, notes=[HOSTILE], config={HOSTILE: HOSTILE})
    for part in (result["model"], result["sites"][0], result["stages"][0]):
        part["name"] = HOSTILE
    result["proof"][0]["how"] = result["data"]["source"] = result["environment"]["cpu"] = HOSTILE
    markdown, page = reports(tmp_path / "hostile", result)
    assert sorted(Page(page).tags) == sorted(Page(tame_page).tags)
    assert "{{ 7 * 7 }}" in page
    prose, tame_prose = (text.split("\n```")[0] for text in (markdown, tame_markdown))
    assert "<script>" not in prose
    assert "![i]" not in prose
    assert cells(prose) == cells(tame_prose)


def test_escaping_for_markdown() -> None:
    assert escape("a|b\n`c` <i> layer_1 _x_") == r"a\|b \`c\` &lt;i&gt; layer_1 \_x\_"
    assert fenced("a ```` b", "yaml").startswith("`````yaml\n")


def test_the_page_fetches_nothing(tmp_path: Path, result: dict[str, Any]) -> None:
    _, page = reports(tmp_path, result)
    assert not re.search(r"https?://|@import|url\(", page)
    assert not {"link", "img", "iframe", "object"} & set(Page(page).tags)
    references = [value for name, value in Page(page).attributes if name in ("href", "xlink:href", "src")]
    assert all(reference.startswith("#") for reference in references)


def test_the_policy_allows_only_the_script_and_the_style_of_the_page(tmp_path: Path, result: dict[str, Any]) -> None:
    _, page = reports(tmp_path, result)
    read = Page(page)
    (policy,) = [a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"]
    (script,), (style,) = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    assert policy == content_policy()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src {source_hash(script)}",
        f"style-src {source_hash(style)}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not [
        name for name, _ in read.attributes if name == "style" or name.startswith("on")
    ]  # they would be refused


def test_every_chart_has_a_name_and_a_table(tmp_path: Path, result: dict[str, Any]) -> None:
    _, page = reports(tmp_path, result)
    for part in page.split("<section")[1:]:
        section = Page("<section" + part)
        charts = [a for tag, a in section.elements if tag == "svg" and a.get("role") == "img"]
        assert all(chart["aria-label"] for chart in charts)
        assert not charts or section.tags.count("table") >= 1
        assert section.tags.count("table") == section.tags.count("caption")
    heads = [a for tag, a in Page(page).elements if tag == "th"]
    assert all(head.get("scope") in ("col", "row") for head in heads)


LAYER = {"inputs": 16, "outputs": 16, "macs": 1e6, "params": 2304}
MORE: dict[str, Any] = {
    "command": "amc search --flops 0.5 --model 'my net'",
    "sensitivity": [
        {"site": "conv1", "sizes": [8, 12, 16], "errors": [0.5, 0.01, 0.0]},
        {"site": "layer1.0_conv2", "sizes": [8, 32], "errors": [0.2, 0.0]},
    ],
    "layers": [
        {"name": "conv1", "operator": "Conv", "original": {**LAYER, "ms": 0.3}, "final": {**LAYER, "ms": 0.2}},
        {"name": "gone", "operator": "Conv", "original": LAYER, "final": None},
    ],
    "answers": {
        "split": "test", "samples": 10, "both_right": 6, "lost": 2, "gained": 1, "both_wrong": 1, "changed": 3,
        "pairs": [{"label": 1, "original": 1, "final": 0, "count": 2}],
        "confusion": {"original": [[4, 1], [1, 4]], "final": [[4, 1], [2, 3]]},
    },
}  # fmt: skip
"""The keys of result.json that older versions did not write."""
MORE_JOURNAL = [
    {**evaluation([8, 8], 0.5, 1.9e7), "part": "uniform"},
    {**evaluation([16, 4], 0.7, 2.0e7), "part": "<climb>"},
    {"kind": "agent", "episode": 1, "reward": -1.0, "sigma": 0.5, "critic_loss": None},
    {"kind": "agent", "episode": 2, "reward": -0.5, "sigma": 0.4, "critic_loss": 0.1},
    {"kind": "agent", "episode": 2, "reward": -0.6, "sigma": 0.4, "critic_loss": 0.1},
    *({"kind": "trial-training", "choice": [12, 8], "done": done, "loss": 1 - done} for done in (0.5, 0.9, 0.25, 0.5)),
    *({"kind": "training", "done": done, "loss": 1 - done} for done in (0.5, 0.9)),
]


def test_the_page_shows_all_that_is_known(tmp_path: Path, result: dict[str, Any]) -> None:
    _, page = reports(tmp_path, {**result, **MORE}, MORE_JOURNAL)
    assert sections(page) == [
        "widths", "sensitivity", "layers", "progress", "tradeoff", "policies", "parts", "agent", "training", "answers",
    ]  # fmt: skip
    assert "conv1, 12 of 16: error 0.01, chosen" in page
    assert "&lt;climb&gt;" in page
    assert "amc search --flops 0.5 --model &#39;my net&#39;" in page
    assert "candidate 12 8, 25 %: loss 0.75" in page
    assert "candidate 12 8, 90 %" not in page  # that attempt was interrupted
    assert "episode 2: reward -0.6" in page
    assert "The commonest changes" in page
    assert page.count("Confusion of") == 2


def test_hostile_names_in_figures_stay_texts(tmp_path: Path, result: dict[str, Any]) -> None:
    _, tame = reports(tmp_path / "tame", {**result, **MORE}, MORE_JOURNAL)
    written = json.dumps({**result, **MORE, "command": HOSTILE})
    hostile = json.loads(written.replace("conv1", '\\"><script>x</script>'))
    journal = json.loads(json.dumps(MORE_JOURNAL).replace("uniform", "</title><script>x</script>"))
    _, page = reports(tmp_path / "hostile", hostile, journal)
    assert sorted(Page(page).tags) == sorted(Page(tame).tags)
    assert "&lt;script&gt;" in page


def test_a_result_of_version_0_1_gives_a_report(tmp_path: Path) -> None:
    old = Path(__file__).parent / "data" / "bundle-1" / "result.json"
    (tmp_path / "result.json").write_bytes(old.read_bytes())
    write_reports(tmp_path)
    assert sections((tmp_path / "report.html").read_text(encoding="utf-8")) == ["widths"]


def test_numbers_of_tables_can_be_sorted(tmp_path: Path, result: dict[str, Any]) -> None:
    _, page = reports(tmp_path, {**result, **MORE}, MORE_JOURNAL)
    table = page[page.index('data-name="sensitivity"') :]
    values = re.findall(r'data-value="([^"]*)"', table[: table.index("</table>")])
    assert values[3::4] == ["0.5", "0.01", "0.0", "0.2", "0.0"]


def test_ids_of_the_page_are_unique(tmp_path: Path, result: dict[str, Any]) -> None:
    ids = [value for name, value in Page(reports(tmp_path, result)[1]).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, result: dict[str, Any]) -> None:
    assert reports(tmp_path / "one", result) == reports(tmp_path / "two", result)


def test_damaged_journal_lines_are_skipped(tmp_path: Path, result: dict[str, Any]) -> None:
    reports(tmp_path, result, tail='[1]\nnull\n{"kind": "evaluation", "metric": 0.')
    journal = read_journal(tmp_path / "journal.jsonl")
    assert [(e.number, e.metric) for e in journal.evaluations] == [(1, 0.5), (3, 0.7), (4, 0.741)]
    assert journal.failed == 1


@pytest.mark.parametrize("journal", [[], JOURNAL[:2], [evaluation([8], None, 1.0)] * 3])
def test_search_charts_need_two_evaluations(tmp_path: Path, result: dict[str, Any], journal: list[Any]) -> None:
    assert sections(reports(tmp_path, result, journal)[1]) == ["widths"]


def test_a_run_without_a_journal(tmp_path: Path, result: dict[str, Any]) -> None:
    reports(tmp_path, result)
    (tmp_path / "journal.jsonl").unlink()
    write_reports(tmp_path)
    assert sections((tmp_path / "report.html").read_text(encoding="utf-8")) == ["widths"]


@pytest.mark.parametrize("count", [1, 60])
def test_any_number_of_sites(tmp_path: Path, result: dict[str, Any], count: int) -> None:
    result["sites"] = [{"name": f"features.{i}" * 9, "width": i + 1, "of": 64} for i in range(count)]
    assert f": {count} of 64 (" in reports(tmp_path, result)[1]


def test_a_missing_result(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*result\.json: No such file"):
        write_reports(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a result of amc, version 1"),
        (json.dumps({**RESULT, "version": 2}), "is not a result of amc, version 1"),
        (json.dumps({**RESULT, "task": None}), "is damaged: task is not a text"),
        (
            json.dumps({**RESULT, "sites": [{"name": "a", "width": "8", "of": 9}]}),
            r"sites\[0\].width is not a number",
        ),
        (json.dumps({**RESULT, "final": {"search": float("nan")}}), r"final\.search is not a number"),
        (json.dumps({**RESULT, "latency": {"threads": 1}}), r"latency\.rounds is missing"),
    ],
)
def test_a_broken_result_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=message) as caught:
        write_reports(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.md").exists()


def test_importing_is_quick() -> None:
    program = "import sys, amc.reports; print([m for m in ('matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_chart_distinguishes_estimates_and_rejected_policies(result: dict[str, Any]) -> None:
    history = SearchHistory(
        [
            SearchPoint(1, 0.5, 0.8, [1], {}),
            SearchPoint(2, 0.4, 0.8, [2], {}, share=0.5),
            SearchPoint(3, 0.9, 0.8, [3], {}, share=0.25, rejected=True),
        ],
        failed=0,
    )
    (plot,) = progress(history, result).plots
    assert [point.kind for point in plot.points] == ["full", "hollow", "cross"]
    assert [text for *_, text in plot.legend] == [
        "all samples read", "estimated from a part", "rejected", "best so far",
    ]  # fmt: skip
    (plot,) = progress(SearchHistory(history.evaluations[:1], 0), result).plots
    assert [text for *_, text in plot.legend] == ["all samples read", "best so far"]


def test_a_notebook_shows_the_final_table_and_hostile_texts_stay_texts(result: dict[str, Any]) -> None:
    shown = notebook_html({**result, "task": HOSTILE})
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "<td>MACs</td><td>40.81 M</td><td>–</td><td>20.30 M</td><td>0.497</td>" in shown
    assert f"<td>{result['sites'][0]['name']}</td>" in shown
    assert shown.count("<table>") == shown.count("</table>") == 2


def test_bits_of_weights_have_a_section_of_their_own(tmp_path: Path, result: dict[str, Any]) -> None:
    setting = {"kind": "bits", "bits": 4, "of": 32}
    result["sites"].append({"name": "bits:conv1", "width": 4, "of": 32, "setting": setting})
    text, page = reports(tmp_path, result, [])
    assert sections(page) == ["widths", "bits"]
    assert "## Bits of weights\n\n| layer | bits |\n|:--|--:|\n| conv1 | 4 |" in text
    assert "| bits:conv1 |" not in text


def test_bars_that_grew_stay_within_the_chart():
    plot = bars("times", "layer", [1.0, 2.0], [4.0, 1.0], ["a", "b"])
    drawn = [(box.kind, box.y, box.height) for box in plot.boxes if box.kind != "hit"]
    assert drawn == [("kept", 0, 100), ("whole", 37.5, 25), ("whole", 25, 50), ("kept", 37.5, 25)]
