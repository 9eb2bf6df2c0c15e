"""What docs/distributed.md says of collectives, memory and what is predicted from them."""

from __future__ import annotations

from typing import Any

from jumpstart.report import records

from . import machine, markdown, told

COUNTED = {
    "processes": "processes", "what": "", "agreements": "agreements", "collectives": "collectives",
    "bytes": "bytes a process", "model": "by the model",
}  # fmt: skip


def _sentence(content: dict[str, Any]) -> str:
    settings = content["settings"]
    worst = max(value for row in settings["differences"] for key, value in row.items() if key != "processes")
    return f"the largest difference from one process, over jumps and solutions, is {worst:.1g} (relative, float64)"


def spread_traffic() -> str:
    """Collectives and bytes of each product, counted and from the model."""

    def page(content: dict[str, Any]) -> str:
        settings = content["settings"]
        return (
            f"{settings['samples']} samples on one process, {settings['parameters']:,} parameters, Krylov vectors: "
            f"{settings['depth']}; {_sentence(content)}.\n\n"
            f"{markdown(settings['traffic'], COUNTED)}\n\n<sub>{machine(content)}</sub>"
        )

    return told("distributed", page)


def spread_memory() -> str:
    """What a Krylov jump on many samples adds to a process."""

    def page(content: dict[str, Any]) -> str:
        rows = [{**row, "most a process": f"{row['most a process']:.0f}"} for row in content["settings"]["memory"]]
        heads = {
            "processes": "processes", "samples": "samples in all", "most a process": "MiB a process, the most",
            "agreement": "ms an agreement", "bandwidth": "MiB/s of an all-reduce",
        }  # fmt: skip
        return markdown(rows, heads)

    return told("distributed", page)


def spread_predicted() -> str:
    """Seconds of a Krylov jump by the cost model, on a network that is assumed."""

    def page(content: dict[str, Any]) -> str:
        settings = content["settings"]
        rows = [
            {key: row[key] if key == "machines" else records.show(row[key]) for key in row}
            for row in settings["predicted"]
        ]
        heads = {"machines": "machines", "compute": "passes, s", "exchange": "exchange, s", "seconds": "together, s"}
        return (
            f"A million samples of 10 outputs, a million parameters, 12 Krylov vectors; a forward pass of all samples "
            f"takes 1 s on one machine; {1e6 * settings['latency']:.0f} µs a collective times log₂, "
            f"{settings['link'] / 1e9:g} GB/s. Predicted, not measured.\n\n{markdown(rows, heads)}"
        )

    return told("distributed", page)


def spread_shards() -> str:
    """What FSDP2 gathers for a jump and for a skip, and what a process then has."""

    def page(content: dict[str, Any]) -> str:
        settings = content["settings"]
        sent = markdown(settings["sent"], {**COUNTED, "what": "gathered"})
        rows = [
            {key: row[key] if key == "processes" else f"{row[key]:.0f}" for key in row} for row in settings["shards"]
        ]
        heads = {
            "processes": "processes", "whole": "the weights", "kept": "an objective keeps", "jump": "a jump, at most",
            "without shards": "the same jump without shards", "skip": "a skip, at most",
        }  # fmt: skip
        return (
            f"{settings['broad']:,} parameters in float32, each layer and the model in `fully_shard`.\n\n"
            f"{sent}\n\nMiB on the first process, beside its shards and their optimizer's "
            f"state:\n\n{markdown(rows, heads)}"
        )

    return told("distributed", page)
