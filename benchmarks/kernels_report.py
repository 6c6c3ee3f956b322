"""The results of `kernels.py`: a JSON file that is complete after every measurement, and Markdown tables."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kernels_workload import (
    PREFILL,
    TRAIN,
    Workload,
    backward_bytes,
    backward_flops,
    decode_bytes,
    forward_bytes,
    forward_flops,
)

Record = dict[str, Any]
TOLERANCE = 5e-2
BY_NAME: dict[str, Workload] = {w.name: w for w in (*TRAIN, *PREFILL)}
HEADS = 32  # of the decoding workloads


class Results:
    """Measurements by key `section/workload/stage/peer`, with the machine's description; on disk after every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: Record = {"machine": {}, "peers": {}, "records": {}}
        if path.exists():
            self.data = json.loads(path.read_text())

    @property
    def records(self) -> dict[str, Record]:
        return self.data["records"]

    def put(self, key: str, record: Record) -> None:
        self.records[key] = record
        self.save()

    def save(self) -> None:
        new = self.path.with_suffix(".tmp")
        new.write_text(json.dumps(self.data, indent=1, allow_nan=True) + "\n")
        os.replace(new, self.path)


def judge(record: Record) -> Record:
    """Sets the status of a measurement from its errors, at full size too."""
    errors = record.get("errors", {}) | {f"full {name}": e for name, e in record.get("vs_fla", {}).items()}
    bad = {name: e for name, e in errors.items() if not e <= TOLERANCE}  # NaN is bad too
    record["status"] = "ok"
    if bad:
        record["status"] = "inaccurate: " + ", ".join(f"{name} {e:.1e}" for name, e in bad.items())
    return record


def derive(key: str, record: Record, machine: Record) -> Record:
    """Adds what follows from the time: bytes, operations, rates, and the share of the measured copy bandwidth."""
    section, workload, stage, _ = key.split("/")
    seconds = record["ms"] / 1e3
    flops: float | None = None
    if section == "decode":
        moved = decode_bytes(int(workload), HEADS, stage.startswith("layer"), stage.split()[1])
    else:
        w = BY_NAME[workload]
        moved, flops = forward_bytes(w), forward_flops(w)
        if section == "bwd":
            moved, flops = backward_bytes(w), backward_flops(w)
    record |= {"bytes": moved, "gb_per_s": moved / seconds / 1e9}
    if machine.get("copy_bytes_per_s"):
        record["of_copy_bandwidth"] = moved / seconds / machine["copy_bytes_per_s"]
    if flops is not None:
        record |= {"flops": flops, "tflop_per_s": flops / seconds / 1e12}
    return record


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(cells) for cells in (head, ["-"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def number(record: Record, name: str, spec: str = ".3f", factor: float = 1.0) -> str:
    value = record.get(name)
    return "" if value is None or not math.isfinite(value) else format(value * factor, spec)


def worst(errors: dict[str, float] | None) -> str:
    """The largest error with its name."""
    if not errors:
        return ""
    name = max(errors, key=lambda n: math.inf if math.isnan(errors[n]) else errors[n])
    return f"{errors[name]:.1e}" + (f" {name}" if len(errors) > 1 else "")


def ratio(results: Results, key: str, name: str = "ms") -> str:
    """How many times as fast as fla on the same workload and stage; fla's recurrent form for all decoding forms."""
    section, workload, stage, _ = key.split("/")
    stage = stage.replace("replay", "recurrent")
    base = results.records.get(f"{section}/{workload}/{stage}/fla", {}).get(name)
    own = results.records[key].get(name)
    return f"{base / own:.2f}x" if base and own else ""


def tables(results: Results) -> str:
    """Everything measured, as Markdown."""
    parts = [f"Machine: {json.dumps(results.data['machine'])}", ""]
    for name, peer in results.data["peers"].items():
        parts.append(f"- {name}: {peer['status']}; {peer.get('versions', {})}" + note(peer))
    for section, title in (("fwd", "Forward"), ("bwd", "Backward"), ("decode", "Decode, one step of one layer, H32")):
        keys = [key for key in results.records if key.startswith(section + "/")]
        if keys:
            parts += ["", f"### {title}", "", section_table(results, section, sorted(keys, key=order))]
    return "\n".join(parts)


def note(peer: Record) -> str:
    return "".join(f"; {text}" for text in (peer.get("note"), *peer.get("lacks", [])) if text)


def order(key: str) -> tuple[Any, ...]:
    """Workloads in the order of their definition, then stages, peers as they ran."""
    section, workload, stage, _ = key.split("/")
    place = int(workload) if section == "decode" else list(BY_NAME).index(workload)
    return (stage.split()[0], place) if section == "decode" else (place, stage != "layer")


def section_table(results: Results, section: str, keys: Sequence[str]) -> str:
    head = ["workload", "stage", "peer", "ms", "vs fla", "of copy bw", "TFLOP/s", "peak MiB", "error", "full vs fla"]
    if section == "bwd":
        head[4:5] = ["vs fla", "fwd+bwd ms", "vs fla", "saved MiB"]
    if section == "decode":
        head = ["batch", "stage", "peer", "µs", "vs fla", "GB/s", "of copy bw", "error"]
    rows = []
    for key in keys:
        record = results.records[key]
        _, workload, stage, peer = key.split("/")
        row = [workload, stage, peer]
        if section == "decode":
            row += [number(record, "ms", ".1f", 1e3), ratio(results, key), number(record, "gb_per_s", ".0f")]
            row += [number(record, "of_copy_bandwidth", ".0%"), worst(record.get("errors"))]
        else:
            row += [number(record, "ms"), ratio(results, key)]
            if section == "bwd":
                row += [number(record, "ms_both"), ratio(results, key, "ms_both"), number(record, "saved_mib", ".0f")]
            row += [number(record, "of_copy_bandwidth", ".0%"), number(record, "tflop_per_s", ".0f")]
            row += [number(record, "peak_mib", ".0f"), worst(record.get("errors")), worst(record.get("vs_fla"))]
        status = record.get("status", "")
        rows.append([*row, "" if status == "ok" else status[:120]])
    return table([*head, "status"], rows)
