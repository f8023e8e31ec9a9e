"""The page of a batch: the matrix of devices and budgets, fronts with filters, links, and hostile names."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest
from test_reports import HOSTILE, RESULT, Page

from amc.reports.batch import Network
from amc.reports.batch_page import filters, html_batch

DEVICES, BUDGETS = ("laptop", "phone"), ("half", "third")


def network(device: str, budget: str, test: float, latency: float, seed: str = "0") -> Network:
    result: dict[str, Any] = copy.deepcopy(RESULT)
    result["final"].update(test=test, search=test, latency_ms=latency, macs=result["final"]["macs"] * latency)
    place = {"model": "small", "device": device, "budget": budget, "seed": seed}
    return Network("--".join(place.values()), place, result, "")


@pytest.fixture
def networks() -> list[Network]:
    places = itertools.product(DEVICES, BUDGETS)
    found = [network(d, b, 0.8 + 0.01 * i, 0.3 - 0.02 * i) for i, (d, b) in enumerate(places)]
    failed = Network("small--phone--half--1", {**found[2].place, "seed": "1"}, None, "out of memory")
    return [*found, network("phone", "third", 0.7, 0.2, seed="1"), failed]


def test_the_matrix_has_the_best_network_of_each_device_and_budget(networks: list[Network]) -> None:
    page = html_batch("photos", networks)
    matrix = page[page.index('data-name="matrix-1"') :].partition("</table>")[0]
    assert re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', matrix) == ["device", "half", "third"]
    rows = [re.findall(r">([^<>]+)<", row) for row in matrix.partition("<tbody>")[2].split("<tr>")[1:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["laptop", "80.00 %, 0.300 ms", "81.00 %, 0.280 ms"],
        ["phone", "82.00 %, 0.260 ms", "83.00 %, 0.240 ms"],
    ]
    assert 'href="small--phone--third--0/report.html"' in matrix


def test_one_field_needs_no_matrix(networks: list[Network]) -> None:
    assert "matrix-1" not in html_batch("photos", networks[:1])


def test_points_have_the_tags_of_the_filters(networks: list[Network]) -> None:
    found = filters(networks)
    assert [one.axis for one in found] == ["device", "budget", "seed"]
    page = Page(html_batch("photos", networks))
    offered = {a["value"] for tag, a in page.elements if tag == "input"}
    assert offered == {tag for one in found for _, tag in one.values}
    tags = [a["data-tags"].split() for _, a in page.elements if "data-tags" in a]
    assert tags
    assert all(len(own) == 3 and set(own) <= offered for own in tags)


def test_failures_are_told(networks: list[Network]) -> None:
    page = html_batch("photos", networks)
    assert "out of memory" in page
    assert "1 failed" in page
    assert "5 of 6 runs are done." in page


def test_hostile_names_stay_texts(networks: list[Network]) -> None:
    odd = [
        Network(f"{n.name}{HOSTILE}", {axis: f"{HOSTILE}{v}" for axis, v in n.place.items()}, n.result, n.reason)
        for n in networks
    ]
    page = html_batch(HOSTILE, odd)
    assert sorted(Page(page).tags) == sorted(Page(html_batch("photos", networks)).tags)
    links = [a["href"] for tag, a in Page(page).elements if tag == "a"]
    assert all(re.fullmatch(r"#[\w-]+|[\w.~%-]+(/[\w.~%-]+)*", link) for link in links)


def test_an_empty_batch() -> None:
    assert "0 of 0 runs are done." in html_batch("nothing", [])
