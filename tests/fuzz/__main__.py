"""The table: ``python -m tests.fuzz [NAME …]``, names with shell patterns; a single case is shown with its checks."""

from __future__ import annotations

import sys
import time
from collections import Counter
from fnmatch import fnmatchcase

import torch

from .collect import cases
from .trial import FAULTS, ask


def main(patterns: list[str]) -> int:
    torch.set_num_threads(1)
    chosen = [c for name, c in cases().items() if not patterns or any(fnmatchcase(name, p) for p in patterns)]
    begun, verdicts = time.perf_counter(), []
    for case in chosen:
        verdict = ask(case)
        verdicts.append(verdict)
        if len(chosen) <= 3 or verdict.faults:
            print(verdict if len(chosen) <= 3 else line(verdict), flush=True)
    refusals = Counter(c.detail.split(":")[0] for v in verdicts if v.status == "refused" for c in v.checks[:1])
    print(f"\n{len(verdicts)} cases, {time.perf_counter() - begun:.0f} s")
    families = dict.fromkeys(case.family for case in chosen)
    columns = ("right", "refused", "warned", *FAULTS)
    print(f"{'':<16}" + "".join(f"{c:>9}" for c in columns))
    for family in [*families, "all"]:
        count = Counter(v.status for v in verdicts if family in ("all", v.name.split("/")[0]))
        print(f"{family:<16}" + "".join(f"{count[c]:>9}" for c in columns))
    print("refusals:", dict(refusals))
    slow = sorted(verdicts, key=lambda v: -v.seconds)[:5]
    print("slowest:", ", ".join(f"{v.name} {v.seconds:.1f} s" for v in slow))
    return 1 if any(v.faults for v in verdicts) else 0


def line(verdict) -> str:
    first = verdict.faults[0]
    more = f" (+{len(verdict.faults) - 1})" if len(verdict.faults) > 1 else ""
    return f"{verdict.status:<7} {verdict.name:<44} {first.what}: {first.detail[:170]}{more}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
