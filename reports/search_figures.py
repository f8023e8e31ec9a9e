"""Figures about the search: its progress, its policies against their cost, all widths, its parts, and its agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amc.reports import human
from amc.reports.plot import Cell, ChartAxis, DataTable, Figure, Guide, Line, Plot, Scale, axis, number
from amc.reports.read import Episode, SearchHistory, SearchPoint
from amc.reports.table import NAMES, budgeted

MOST_LINES = 200
"""Policies in parallel coordinates: the best of them."""
KINDS = {"full": "all samples read", "hollow": "estimated from a part", "cross": "rejected"}


def search_figures(result: Mapping[str, Any], journal: SearchHistory) -> Iterator[Figure]:
    """The figures for which there is data."""
    if len(journal.evaluations) > 1:
        yield progress(journal, result)
        yield tradeoff(result, journal)
        if lines := parallel(result, journal):
            yield lines
        if any(e.part for e in journal.evaluations):
            yield parts(journal)
    if len(journal.episodes) > 1:
        yield agent(journal.episodes)


def kind_of(point: SearchPoint) -> str:
    """How an evaluation is drawn: exact scores filled, estimates hollow, rejected policies as crosses."""
    return "cross" if point.rejected else "hollow" if point.share < 1 else "full"


def _legend(points: Sequence[SearchPoint]) -> list[tuple[str, str, str]]:
    used = {kind_of(point) for point in points}
    return [("point", kind, text) for kind, text in KINDS.items() if kind in used]


def objective_axis(points: Sequence[SearchPoint]) -> ChartAxis:
    """Logarithmic if all values are above 0."""
    return axis("search objective (lower is better)", [e.loss for e in points], log=True)


def describe(point: SearchPoint, result: Mapping[str, Any]) -> str:
    """An evaluation in one line."""
    costs = [_cost(name, point, result) for name in leading(result) if name in point.costs]
    state = "" if kind_of(point) == "full" else f", {KINDS[kind_of(point)]}"
    part = f", by {point.part}" if point.part else ""
    return f"evaluation {point.number}: objective {point.loss:.4g}{state}{part}, {', '.join(costs)}".rstrip(", ")


def leading(result: Mapping[str, Any]) -> list[str]:
    """The resources with a limit, latency first."""
    return ["latency"] * ("latency" in result["budget"]["limits"]) + budgeted(result)


def _original(resource: str, result: Mapping[str, Any]) -> float | None:
    found: float | None = result["original"].get("latency_ms" if resource == "latency" else resource)
    return found


def _cost(resource: str, point: SearchPoint, result: Mapping[str, Any]) -> str:
    if resource == "latency":
        return human.milliseconds(point.costs[resource])
    share = human.quotient(point.costs[resource], _original(resource, result))
    return f"{human.short_percent(share)} of the {NAMES[resource]}"


def accepted(points: Sequence[SearchPoint]) -> list[SearchPoint]:
    """The evaluations that were not rejected."""
    return [e for e in points if not e.rejected]


def improvements(points: Sequence[SearchPoint]) -> list[SearchPoint]:
    """The evaluations that were the best so far.

    >>> [e.number for e in improvements([SearchPoint(n, loss, 0, [], {}) for n, loss in ((1, 3), (2, 4), (3, 1))])]
    [1, 3]
    """
    found: list[SearchPoint] = []
    for point in accepted(points):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def progress(journal: SearchHistory, result: Mapping[str, Any]) -> Figure:
    """The search objective of every evaluation and the best so far, against the number of the evaluation."""
    points = journal.evaluations
    last = points[-1].number
    scale = Scale(axis("evaluation", [1, last]), objective_axis(points))
    best = [(float(e.number), e.loss) for e in improvements(points)]
    lines = [scale.line([*best, (float(last), best[-1][1])], "best", steps=True)] if best else []
    plot = Plot(
        "The search objective of every evaluation, and the best so far", scale.x, scale.y,
        [scale.point(e.number, e.loss, describe(e, result), kind_of(e)) for e in points], lines,
        legend=[*_legend(points), *([("line", "best", "best so far")] if best else [])],
    )  # fmt: skip
    failed = f" Failed evaluations, not shown: {journal.failed}." if journal.failed else ""
    text = (
        "The search objective of every policy before fine-tuning; lower is better. It is the mean squared difference "
        "of the logits from the original's, or the loss. A policy that is clearly worse than the best so far is "
        f"rejected after a part of the search split; what is shown of it is an estimate.{failed}"
    )
    return Figure("progress", "Progress of the search", text, evaluations_table(points, result), [plot])


def evaluations_table(points: Sequence[SearchPoint], result: Mapping[str, Any]) -> DataTable:
    """All evaluations."""
    resources = [name for name in leading(result) if any(name in e.costs for e in points)]
    parts = any(e.part for e in points)
    head = ["evaluation", "objective", result["metric"], *(NAMES.get(n, n) for n in resources), "score",
            *(["proposed by"] if parts else []), "widths"]  # fmt: skip
    rows = [
        [
            Cell(str(e.number), e.number), Cell(f"{e.loss:.4g}", e.loss), number(e.metric, human.percent),
            *(Cell(_cost(n, e, result), e.costs[n]) if n in e.costs else Cell(human.NOTHING) for n in resources),
            Cell(KINDS[kind_of(e)]), *([Cell(e.part)] if parts else []), _widths(e.choice),
        ]
        for e in points
    ]  # fmt: skip
    return DataTable("evaluations", "All evaluations of the search", head, rows)


def _widths(choice: Sequence[Any]) -> Cell:
    return Cell(" ".join(str(item) for item in choice), kind="small")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front of (cost, objective) points, both better if lower, by rising cost.

    >>> front([(1.0, 0.5), (2.0, 0.6), (3.0, 0.1)])
    [0, 2]
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not found or points[index][1] < points[found[-1]][1]:
            found.append(index)
    return found


def tradeoff(result: Mapping[str, Any], journal: SearchHistory) -> Figure:
    """The search objective of every evaluation against the leading cost, and what smaller budgets would reach."""
    points = [*journal.evaluations, *journal.others]
    resource = next((n for n in leading(result) if any(n in e.costs for e in points)), "macs")
    known = [e for e in points if resource in e.costs]
    original = None if resource == "latency" else _original(resource, result)
    name = "predicted latency, ms" if resource == "latency" else f"{NAMES[resource]}, % of the original"
    places = [e.costs[resource] * (100 / original if original else 1) for e in known]
    limits = [line["limit"] * (100 / original if original else 1)
              for line in result["proof"] if line["resource"] == resource]  # fmt: skip
    scale = Scale(axis(name, [*places, *limits]), objective_axis(known or points))
    marks = [scale.point(x, e.loss, describe(e, result), kind_of(e)) for x, e in zip(places, known, strict=True)]
    chosen = [c["choice"] for c in result["candidates"] if c["chosen"]]
    ring = next((scale.point(x, e.loss, f"chosen: {describe(e, result)}", "ring")
                 for x, e in zip(places, known, strict=True) if e.choice in chosen), None)  # fmt: skip
    good = [i for i, e in enumerate(known) if not e.rejected]
    best = [good[i] for i in front([(places[i], known[i].loss) for i in good])]
    plot = Plot(
        f"The search objective against {name}", scale.x, scale.y, [*marks, *([ring] if ring else [])],
        [scale.line([(places[i], known[i].loss) for i in best], "front")] if len(best) > 1 else [],
        guides=[Guide(scale.x.place(limit), "limit") for limit in limits],
        legend=[*_legend(known), *([("line", "front", "best at each cost")] if len(best) > 1 else []),
                *([("point", "ring", "chosen")] if ring else [])],
    )  # fmt: skip
    text = (
        "The same policies against their cost. The line joins those that no cheaper policy beats: what the search has "
        "already seen for smaller budgets. The best few are compared more closely before one is chosen."
    )
    table = DataTable(
        "other-budgets", "What smaller budgets would reach, before fine-tuning",
        [NAMES.get(resource, resource), "objective", result["metric"], "widths"],
        [[Cell(_cost(resource, e, result), e.costs[resource]), Cell(f"{e.loss:.4g}", e.loss),
          number(e.metric, human.percent), _widths(e.choice)] for e in (known[i] for i in best)],
    )  # fmt: skip
    return Figure("tradeoff", "Search objective against cost", text, table, [plot])


def parallel(result: Mapping[str, Any], journal: SearchHistory) -> Figure | None:
    """All policies in parallel coordinates: the share kept at every site. None if settings are not all widths."""
    sites = result["sites"]
    fits = [e for e in journal.evaluations if len(e.choice) == len(sites) > 1 and all(map(_is_width, e.choice))]
    if len(fits) < 2 or not all(site["of"] for site in sites):
        return None
    ranked = sorted(accepted(fits), key=lambda e: e.loss) + [e for e in fits if e.rejected]
    shown = ranked[:MOST_LINES]
    labels = tuple((float(i), str(i + 1)) for i in range(0, len(sites), -(-len(sites) // 12)))
    scale = Scale(
        ChartAxis("site", -0.3, len(sites) - 0.7, labels=labels), ChartAxis("kept, % of the original", 0, 103)
    )
    chosen = [c["choice"] for c in result["candidates"] if c["chosen"]]
    lines = list[Line]()
    for rank, e in reversed(list(enumerate(shown))):
        shares = [(float(i), 100 * w / site["of"]) for i, (w, site) in enumerate(zip(e.choice, sites, strict=True))]
        kind = "winner" if e.choice in chosen else "faint" if e.rejected else f"r{min(3, 4 * rank // len(shown))}"
        lines.append(scale.line(shares, kind, f"{describe(e, result)}; widths {' '.join(map(str, e.choice))}"))
    lines.sort(key=lambda line: line.kind == "winner")
    plot = Plot(
        "The share kept at every site, by every policy", scale.x, scale.y, lines=lines,
        legend=[("line", "winner", "chosen"), ("line", "r0", "best quarter"), ("line", "r2", "others"),
                ("line", "faint", "rejected")],
    )  # fmt: skip
    most = f" The best {MOST_LINES} of {len(ranked)} are shown." if len(ranked) > MOST_LINES else ""
    text = (
        "Each line is a policy; its height is the share of channels that it keeps at each site. Where good policies "
        f"run together, the search is certain.{most} The sites are numbered as in the table of widths."
    )
    rows = [
        [Cell(str(i + 1), i + 1), Cell(site["name"]), *_spread([e.choice[i] for e in shown[: max(1, len(shown) // 4)]])]
        for i, site in enumerate(sites)
    ]
    head = ["number", "site", "narrowest", "median", "widest"]
    return Figure(
        "policies", "All policies", text, DataTable("policies", "Widths in the best quarter", head, rows), [plot]
    )


def _spread(widths: Sequence[float]) -> list[Cell]:
    ordered = sorted(widths)
    return [Cell(human.exact(v), v) for v in (ordered[0], ordered[len(ordered) // 2], ordered[-1])]


def _is_width(setting: object) -> bool:
    return isinstance(setting, int | float) and not isinstance(setting, bool)


def parts(journal: SearchHistory) -> Figure:
    """The parts of the searcher: how much each proposed, and how often it found a better policy."""
    points = journal.evaluations
    better = {e.number for e in improvements(points)}
    names = list(dict.fromkeys(e.part or "other" for e in points))
    rows_at = {name: len(names) - 1 - i for i, name in enumerate(names)}
    labels = tuple((float(place), name) for name, place in rows_at.items())
    scale = Scale(axis("evaluation", [1, points[-1].number]), ChartAxis("", -0.6, len(names) - 0.4, labels=()))
    marks = [
        scale.point(e.number, rows_at[e.part or "other"], f"{e.part or 'other'}: evaluation {e.number}, objective "
                    f"{e.loss:.4g}{', the best so far' if e.number in better else ''}",
                    "square" if e.number in better else kind_of(e))
        for e in points
    ]  # fmt: skip
    plot = Plot(
        "Which part of the searcher proposed each policy", scale.x, scale.y, marks,
        guides=[Guide(100 - scale.y.place(value), text, upright=False) for value, text in labels],
        legend=[("point", "square", "the best so far"), *_legend([e for e in points if e.number not in better])],
        height=44 * len(names),
    )  # fmt: skip
    rows = []
    for name in names:
        own = [e for e in points if (e.part or "other") == name]
        found, good = sum(e.number in better for e in own), [e.loss for e in accepted(own)]
        rows.append([Cell(name), Cell(str(len(own)), len(own)), Cell(str(len(good)), len(good)),
                     Cell(str(found), found), Cell(f"{min(good):.4g}", min(good)) if good else Cell("–")])  # fmt: skip
    head = ["part", "proposed", "not rejected", "best so far", "best objective"]
    text = "What each part of the searcher proposed. A square is a policy that was better than all before it."
    table = DataTable("parts", "Proposals by part of the searcher", head, rows)
    return Figure("parts", "Parts of the searcher", text, table, [plot])


def agent(episodes: Sequence[Episode]) -> Figure:
    """Reward, noise and the critic's loss of a learning agent, by episode."""
    numbers = [float(e.number) for e in episodes]
    plots = []
    for key, name in (("reward", "reward"), ("sigma", "deviation of the noise"), ("critic_loss", "loss of the critic")):
        known = [(n, value) for n, e in zip(numbers, episodes, strict=True) if (value := getattr(e, key)) is not None]
        if len(known) > 1:
            scale = Scale(axis("episode", numbers), axis(name, [v for _, v in known], log=key == "critic_loss"))
            marks = [scale.point(n, v, f"episode {n:.0f}: {name} {v:.4g}", "full") for n, v in known]
            plots.append(Plot(f"{name} by episode", scale.x, scale.y, marks, [scale.line(known, "faint")], height=150))
    rows = [
        [Cell(str(e.number), e.number),
         *(Cell("–") if v is None else Cell(f"{v:.4g}", v) for v in (e.reward, e.sigma, e.critic_loss))]
        for e in episodes
    ]  # fmt: skip
    text = (
        "Each episode proposes one policy. The first episodes are random; later ones add noise, which decreases with "
        "every episode, to the agent's own actions. The critic's loss is the mean over the updates after an episode."
    )
    head = ["episode", "reward", "noise", "critic's loss"]
    return Figure("agent", "The agent", text, DataTable("episodes", "Episodes of the agent", head, rows), plots)
