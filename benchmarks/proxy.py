"""Measure which scores before training predict the accuracy after it.

Random policies of one budget are scored by every proxy and then fine-tuned alike. Spearman's rank correlation with the
accuracy after training, over all policies and within the better half, shows which proxy can choose. The accuracy is
measured on the search split; the test split is never read. One training per policy, one seed.

    python -m benchmarks.proxy --model resnet20 --weights W --data imagefolder:PATH --policies 40 --steps 300
    python -m benchmarks.proxy --model resnet20 ... --again     score the trained policies again
    python -m benchmarks.proxy --report

Resumable: `benchmarks/results/proxy-NETWORK.jsonl` holds one line per policy.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from amc.graph.channels import ModuleKind
from amc.space.sites import Choice
from amc.task import batches, evaluate
from amc.task.splits import sample
from amc.train import make_plan, train
from benchmarks.bench import RESULTS, Bench, Records, arguments, machine, open_bench, rounded

BRIEF = (20, 50)
LEARNED, DRAWS = (5, 10), 400
"""Numbers of trained policies that a surrogate is fitted on, and the number of random draws."""
Vector = np.ndarray[Any, Any]
LESS_IS_BETTER = ("loss", "refined loss", "distance", "table", "second order")
"""First words of proxies for which lower is better."""


def policies(bench: Bench, count: int, seed: int = 0) -> list[Choice]:
    """The uniform policy, and random policies near the budget with wide and narrow spreads of the shares."""
    rng, found = np.random.default_rng(seed), [bench.space.fit(np.ones(len(bench.space.names)))]
    while len(found) < count:
        low = rng.uniform(0.2, 0.9)
        choice = bench.space.fit(rng.uniform(low, 1, len(bench.space.names)))
        if choice not in found:
            found.append(choice)
    return found


def measured(bench: Bench, choice: Choice, steps: int, fisher: list[Vector]) -> dict[str, Any]:
    """All proxies of a policy with their CPU seconds, and the score after training."""
    values: dict[str, float] = {}
    seconds: dict[str, float] = {}
    evaluator, task = bench.evaluator, bench.task

    def timed(name: str) -> None:
        seconds[name] = time.process_time() - clock

    clock = time.process_time()
    values |= seen(bench, choice)
    seconds["loss"] = seconds["distance of logits"] = (time.process_time() - clock) / 2
    clock = time.process_time()
    values |= refined(bench, choice)
    timed("refined loss")
    clock = time.process_time()
    values["synaptic flow"] = _synaptic_flow(evaluator.pruned(choice), task.example)
    timed("synaptic flow")
    values["second order"] = _second_order(fisher, evaluator.kept(choice))
    values["table of site errors"] = sum(evaluator.site_error(s, w) for s, w in enumerate(choice))
    values["parameters"] = bench.space.costs(choice)["params"]
    values["least share kept"] = min(w / f for w, f in zip(choice, bench.space.full, strict=True))
    for brief in BRIEF:
        clock = time.process_time()
        loss, metric = _trained(bench, choice, brief)
        values |= {f"loss after {brief} steps": loss, f"accuracy after {brief} steps": metric}
        timed(f"loss after {brief} steps")
    clock = time.process_time()
    loss, metric = _trained(bench, choice, steps)
    timed("training")
    return {"choice": list(choice), "values": values, "seconds": seconds, "loss": loss, "metric": metric}


def _trained(bench: Bench, choice: Choice, steps: int) -> tuple[float, float]:
    model = bench.evaluator.pruned(choice)
    plan = make_plan(bench.stages.record.config.finetune, bench.task, 1.0, seed=0)
    train(model, bench.task, replace(plan, steps=steps, precision="bfloat16"), bench.task.model)
    return evaluate(model, bench.task, bench.task.splits.search)


def seen(bench: Bench, choice: Choice) -> dict[str, float]:
    """The fast scores of a policy by both objectives of the search."""
    score = bench.evaluator.score(choice)
    by_logits = bench.evaluator.with_settings(replace(bench.evaluator.settings, objective="logit_mse"))
    return {"loss": score.loss, "accuracy": score.metric, "distance of logits": by_logits.score(choice).loss}


def refined(bench: Bench, choice: Choice) -> dict[str, float]:
    """The scores of a policy by full evaluation."""
    score = bench.evaluator.refined_score(choice)
    return {"refined loss": score.loss, "refined accuracy": score.metric}


def fisher_information(bench: Bench, images: int = 512) -> list[Vector]:
    """Per site ``[C]``, half the mean square of the loss's derivative by a factor on each channel.

    Σ over the site's layers of ½ E[(Σ a ∂L/∂a)²] (Theis et al. 2018, arXiv:1801.05787), of the original with labels.
    """
    task, sums = bench.task, [np.zeros(site.channels) for site in bench.graph.sites]
    model = copy.deepcopy(task.model).eval().requires_grad_(True)
    caught: dict[str, torch.Tensor] = {}
    ends = {layer.name: layer for layer in bench.graph.layers if layer.is_conv_or_linear and layer.output}
    handles = [
        model.get_submodule(layer.norm or name).register_forward_hook(
            lambda module, inputs, out, name=name: caught.__setitem__(name, out) or out.clone()
        )
        for name, layer in ends.items()
    ]
    inputs, targets = next(batches(sample(task.splits.calibration, images), images))
    loss = task.objective.loss(model(inputs), targets).sum()
    gradients = torch.autograd.grad(loss, list(caught.values()))
    for (name, output), gradient in zip(caught.items(), gradients, strict=True):
        axis = ends[name].output
        assert axis is not None
        inner = tuple(range(1, output.ndim - 1) if ends[name].kind is ModuleKind.LINEAR else range(2, output.ndim))
        change = (output * gradient).sum(inner) if inner else output * gradient
        information = 0.5 * (change.double() ** 2).mean(0).detach().numpy()
        heard = axis.site >= 0
        for site in np.unique(axis.site[heard]):
            mine = axis.site == site
            np.add.at(sums[site], axis.channel[mine], information[mine])
    for handle in handles:
        handle.remove()
    return sums


def _second_order(fisher: list[Vector], kept: Any) -> float:
    """The Fisher information of the removed channels."""
    return float(sum(site.sum() - site[channels].sum() for site, channels in zip(fisher, kept, strict=True)))


def _synaptic_flow(model: nn.Module, example: torch.Tensor) -> float:
    """Logarithm of Σ |θ ∂R/∂θ| with absolute weights on an input of ones (Tanaka et al. 2020)."""
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean, module.running_var = (
                torch.zeros_like(module.running_mean),
                torch.ones_like(module.running_var),
            )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones_like(example).double()).sum().backward()
    total = sum(float((p * p.grad).detach().sum().abs()) for p in model.parameters() if p.grad is not None)
    return float(np.log(total))


def report(network: str, records: Records) -> str:
    """The correlations as a Markdown table."""
    again = {r["piece"]: r["values"] for r in records.all() if r["piece"].startswith("again ")}
    rows = [r for r in records.all() if "choice" in r]
    rows = [{**r, "values": {**r["values"], **again.get(f"again {r['piece']}", {})}} for r in rows]
    about = records("about") or {}
    after = np.array([r["metric"] for r in rows])
    half = after >= np.median(after)
    lines = [
        f"### {network} at {about.get('flops')} of its MACs: {len(rows)} policies, {about.get('steps')} steps",
        "",
        f"After training {100 * after.min():.2f} to {100 * after.max():.2f} % (median {100 * np.median(after):.2f}). "
        f"{about.get('machine')}, {about.get('images')} images, one thread.",
        "",
        "| proxy | Spearman, all | better half | seconds |",
        "|---|---|---|---|",
    ]
    for name, values, seconds in [*_columns(rows), _combined(rows, after)]:
        total, best = _ranks(values, after, half)
        lines.append(f"| {name} | {total:.2f} | {best:.2f} | {seconds} |")
    for count in LEARNED:
        lines += _learned(rows, after, half, count)
    return "\n".join(lines) + "\n"


def _ranks(values: Vector, after: Vector, half: Vector) -> tuple[float, float]:
    """Rank correlation over all policies, and over the better half."""
    return _correlation(values, after), _correlation(values[half], after[half])


def _correlation(values: Vector, after: Vector) -> float:
    """Spearman's correlation. NaN if all values are equal."""
    return float(spearmanr(values, after)[0]) if np.ptp(values) and np.ptp(after) else float("nan")


def _columns(rows: list[dict[str, Any]]) -> list[tuple[str, Vector, str]]:
    found = []
    for name in rows[0]["values"]:
        key = name.replace("accuracy", "loss") if name.replace("accuracy", "loss") in rows[0]["seconds"] else name
        cost = [r["seconds"][key] for r in rows if key in r["seconds"]]
        sign = -1 if name.startswith(LESS_IS_BETTER) else 1
        values = np.array([sign * r["values"][name] for r in rows])
        found.append((name, values, f"{np.median(cost):.2f}" if cost else "0"))
    return found


def _combined(rows: list[dict[str, Any]], after: Vector) -> tuple[str, Vector, str]:
    """Ridge regression on widths and the loss, each policy predicted from the others (leave one out)."""
    x = _standard([[*np.log(r["choice"]), np.log(r["values"]["refined loss"])] for r in rows])
    everyone = np.arange(len(rows))
    predicted = np.array([_ridge(x, after, everyone != i, 10.0)[i] for i in everyone])
    return "regression on widths and refined loss, leave one out", predicted, "trained policies"


def _learned(rows: list[dict[str, Any]], after: Vector, half: Vector, count: int) -> list[str]:
    """How a surrogate that is fitted on ``count`` trained policies ranks the others.

    Ridge regression on the scores that a search knows, next to the logit distance alone on the same policies. Means
    over random draws.
    """
    known = ("loss", "distance of logits", "refined loss", "second order", "table of site errors")
    if len(rows) < 3 * count or not all(name in rows[0]["values"] for name in known):
        return []
    x = _standard([[*np.log([r["values"][n] for n in known]), r["values"]["refined accuracy"]] for r in rows])
    rng, learned, alone = np.random.default_rng(0), [], []
    for _ in range(DRAWS):
        trained = np.isin(np.arange(len(rows)), rng.choice(len(rows), count, replace=False))
        predicted = _ridge(x, after, trained, 3.0)
        for found, values in ((learned, predicted), (alone, -x[:, 1])):
            found.append(_ranks(values[~trained], after[~trained], half[~trained]))
    lines = []
    for name, found in (
        (f"the above, fitted on {count} trained policies", learned),
        ("there, the distance alone", alone),
    ):
        total, best = np.mean(found, 0)
        lines.append(f"| {name}, means of {DRAWS} draws | {total:.2f} | {best:.2f} | trained policies |")
    return lines


def _standard(features: Any) -> Vector:
    values: Vector = np.array(features)
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-9)


def _ridge(x: Vector, y: Vector, known: Vector, ridge: float) -> Vector:
    """Predictions for all rows by a ridge regression on the ``known`` rows."""
    mean = y[known].mean()
    weights = np.linalg.solve(x[known].T @ x[known] + ridge * np.eye(x.shape[1]), x[known].T @ (y[known] - mean))
    return np.asarray(mean + x @ weights)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--steps", type=int, default=300, help="training steps for the reference accuracy")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--again", action="store_true", help="score the trained policies again")
    parser.add_argument("--report", action="store_true", help="print tables of all records")
    asked = parser.parse_args()
    if asked.report:
        for path in sorted(RESULTS.glob("proxy-*.jsonl")):
            with Records(path) as records:
                print(report(path.stem.removeprefix("proxy-"), records))
        return
    with Records(RESULTS / f"proxy-{asked.model}.jsonl") as records:
        if not records("about"):
            records.add("about", machine=machine(), steps=asked.steps, flops=asked.flops, images=asked.search_images)
        bench = open_bench(asked, asked.flops)
        fisher = fisher_information(bench)
        if asked.again:
            for row in [r for r in records.all() if "choice" in r]:
                piece, choice = f"again {row['piece']}", tuple(row["choice"])
                if not records(piece):
                    values = {**seen(bench, choice), **refined(bench, choice)}
                    values["second order"] = _second_order(fisher, bench.evaluator.kept(choice))
                    values["table of site errors"] = sum(bench.evaluator.site_error(s, w) for s, w in enumerate(choice))
                    print(records.add(piece, values=values), flush=True)
            return
        for number, choice in enumerate(policies(bench, asked.policies)):
            if not records(str(number)):
                print(rounded(records.add(str(number), **measured(bench, choice, asked.steps, fisher))), flush=True)
        print(report(asked.model, records))


if __name__ == "__main__":
    main()
