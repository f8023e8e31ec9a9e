"""``python -m tests.fuzz --cases 50000``: gives the findings, and exit code 1 where there are any."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.fuzz.harness import generator, one, run
from tests.fuzz.kinds import KINDS, dealt, prepare


def _kind(word: str) -> tuple[str, int | None]:
    kind, _, count = word.partition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kind, int(count) if count else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=3000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", action="append", type=_kind, metavar="KIND[=CASES]", help=f"these kinds only: {', '.join(KINDS)}"
    )
    parser.add_argument("--only", type=int, help="one case, in this process, with its traceback")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    asked: dict[str, int | None] = dict(given.kind or dict.fromkeys(KINDS))
    kinds = list(asked)
    cases = dealt(kinds, given.cases)
    if any(asked.values()):
        cases = [(kind, case) for kind, count in asked.items() for case in range(count or 0)]
    prepare(kinds)
    if given.only is not None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            print(one(KINDS[kinds[0]], generator(kinds[0], given.only, given.seed), Path(folder)) or "as it must be")
        return 0
    start = time.monotonic()
    findings = run(KINDS, cases, given.seed, given.processes)
    for finding in findings:
        print(f"{finding.kind} {finding.case}: {finding.what}")
    counts = Counter(finding.kind for finding in findings)
    told = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"
    print(f"{len(cases)} cases in {time.monotonic() - start:.0f} s, findings: {told}")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
