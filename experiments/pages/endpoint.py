"""What docs/benchmarks.md says of solved runs: fidelity, risk, linearity."""

from __future__ import annotations

from jumpstart.report import records

from . import RESULTS, machine, markdown


def endpoint() -> str:
    """Points 1 to 5 and 8 of the endpoint experiment."""
    content = records.read(RESULTS / "endpoint")
    heads = {"point": "", "check": "", "smallest": "smallest", "largest": "largest", "limit": "limit", "holds": "holds"}
    summary = [row for row in content["settings"]["summary"] if row["point"] not in (6, 7)]
    rows = []
    for ending, name in (("t 0.1 to 1000", "finite t"), ("t ∞", "t = ∞")):  # one line for all inputs, c and point sets
        same = [row for row in summary if row["point"] == 1 and row["limit"] and row["check"].endswith(ending)]
        sizes = {"smallest": min(r["smallest"] for r in same), "largest": max(r["largest"] for r in same)}
        held = [tuple(map(int, row["holds"].split("/"))) for row in same]
        holds = "/".join(str(sum(pair[i] for pair in held)) for i in (0, 1))
        rows.append(
            {"point": 1, "check": f"outputs, {name}, all cases", **sizes, "limit": same[0]["limit"], "holds": holds}
        )
    shown = ("seconds, jump", "seconds, struct", "seconds, default", "GiB at peak", "outputs: seconds", " / ", "slope")
    rows += [row for row in summary if row["point"] > 1 and any(word in row["check"] for word in shown)]
    pictures = sorted(path.name for path in (RESULTS / "endpoint").glob("*.png"))
    images = "\n".join(f"![{name}](results/endpoint/{name})" for name in pictures)
    commits = ", ".join(f"{point}: {commit}" for point, commit in content["settings"]["commits"].items())
    return f"{markdown(rows, heads)}\n\n{images}\n\n<sub>{machine(content)}; commits by point {commits}</sub>"


def risk() -> str:
    """Excess test loss of each way to choose a horizon, by number of samples and by data set."""
    content = records.read(RESULTS / "endpoint" / "risk")
    summary = content["settings"]["summary"]
    heads = {
        "value": "", "runs": "runs", "excess, leave-one-out": "leave-one-out", "excess, gcv": "GCV (mse)",
        "excess, population": "population", "excess, held out": "20% held out",
        "excess, held out, then all": "held out, then all", "excess, last": "last step",
        "ahead of held out": "share ahead of held out", "correlation": "correlation", "gap": "mean gap",
    }  # fmt: skip
    rows = [{**row, "value": f"n = {row['value']}"} for row in summary if row["by"] == "n"]
    rows += [row for row in summary if row["by"] == "set"]
    jumps = {
        "value": "", "jump excess, horizon": "horizon alone", "jump excess, damping": "+ damping",
        "jump excess, gate": "+ gate", "jump excess, weights": "+ sample weights",
    }  # fmt: skip
    tuned = [row for row in rows if row["jump excess, horizon"] is not None]
    both = {
        family: [row[f"jump excess, {family}"] - row[plain] for row in content["rows"] if plain in row]
        for plain in ["jump excess, horizon"]
        for family in ("damping", "gate", "weights")
    }
    shares = [
        f"{family} better in {sum(d < 0 for d in gains) / len(gains):.0%}, worse in "
        f"{sum(d > 0 for d in gains) / len(gains):.0%}"
        for family, gains in both.items()
    ]
    costs = records.read(RESULTS / "endpoint" / "cost")
    prices = {
        "setting": "", "n": "n", "outputs": "outputs", "parameters": "parameters", "gradient seconds": "s / gradient",
        "solve / gradient": "solve, in gradients", "leave-one-out seconds": "leave-one-out, s",
        "leave-one-out / gradient": "in gradients",
    }  # fmt: skip
    return "\n\n".join(
        (
            "Median excess of the real run's test loss at the chosen horizon over the best on the way; correlation and "
            "gap of the predicted with the real held-out curve.",
            markdown(rows, heads),
            "Excess test loss of the real network moved to `parameters(t)`, the horizon and more chosen by "
            "leave-one-out (over the best horizon of the plain run):",
            markdown(tuned, jumps),
            f"Beside the horizon alone, over {len(both['damping'])} runs: {'; '.join(shares)}.",
            "![risk](results/endpoint/risk/risk.png)",
            f"<sub>{machine(content)}</sub>",
            "What leave-one-out at 30 horizons costs, on one thread and without a single network pass:",
            markdown(costs["rows"], prices),
            f"<sub>{machine(costs)}</sub>",
        )
    )


def linearity() -> str:
    """How far the linearized run and the real one go together."""
    content = records.read(RESULTS / "endpoint" / "linearity")
    heads = {
        "setting": "", "seed": "seed", "last": "run to flow time", "trust": "trust horizon (check)",
        "agreement": "real run within 10% to", "order 2 / order 1": "gained by order 2",
        "train loss at trust, real": "train loss there, real", "train loss at trust, predicted": "predicted",
        "test loss at trust, real": "test loss, real", "test loss at trust, predicted": "predicted ",
    }  # fmt: skip
    table = markdown(content["settings"]["summary"], heads)
    return f"{table}\n\n![linearity](results/endpoint/linearity/linearity.png)\n\n<sub>{machine(content)}</sub>"
