"""The KDA kernels of this repository against public ones, in one run on one GPU.

PYTHONPATH=. python benchmarks/kernels.py --out results.json [--only fwd,bwd,decode] [--peers fla,deltarl] [--quick]
PYTHONPATH=. python benchmarks/kernels.py --check-only        # correctness of this repository's kernels alone

Measures the copy bandwidth and the matrix product rate of the device, then forward, backward and decoding of every
peer (`kernels_peers.py`) on the same inputs. Each peer runs in a process of its own, so that one that corrupts the
device takes nobody with it; the results file is complete after every measurement, and `--resume` goes on with it.
Every result is also compared with an fp64 recurrence on a small problem with the same heads, gate and packing, and,
at full size, with fla's on sampled rows; errors are norm of the difference over norm of the reference.

Stages: "layer" starts from what a layer has (post-convolution q, k, v; raw gate; β logits), "core" from normalised q
and k, log decay and β. "decode core" is the recurrence with norm and gate, "decode layer" adds convolution and gated
norm.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from kernels_measure import (
    backward,
    backward_errors,
    copy_bandwidth,
    decode,
    decode_errors,
    forward,
    free,
    matmul_rate,
)
from kernels_peers import PEERS, Deltarl, Peer
from kernels_report import BY_NAME, HEADS, TOLERANCE, Record, Results, derive, judge, table, tables
from kernels_workload import BATCHES, PREFILL, TRAIN, Workload, rel_error

SECTIONS = ("fwd", "bwd", "prefill", "decode", "core")
QUICK_BATCHES = (1, 32, 256)
SHARDS = {"fla": 9, "attn_gym": 2}
RESTARTS = 3
CRASHED = 3  # exit code of a child that lost the device


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=names(SECTIONS), default=SECTIONS, help=f"of {','.join(SECTIONS)}; default: all")
    parser.add_argument("--peers", type=names(PEERS), default=tuple(PEERS), help=f"of {','.join(PEERS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"), help="results (default %(default)s)")
    parser.add_argument(
        "--budget-seconds", type=float, default=470, help="skip what is left then (default %(default)s)"
    )
    parser.add_argument("--commit", help="of this repository, where git is not there to ask")
    parser.add_argument("--quick", action="store_true", help="fewer workloads and repetitions")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds already")
    parser.add_argument("--no-warm", action="store_true", help="do not compile in parallel first")
    parser.add_argument("--check-only", action="store_true", help="correctness of this repository's kernels, no times")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=float("inf"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def names(known: Any) -> Any:
    """Type of an argument that is a list of names."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(known)}")
        return chosen

    return parse


def plan(args: argparse.Namespace, peer: Peer) -> Iterator[tuple[str, str, str]]:
    """Section, workload and stage of everything that a peer is to be measured on, the most wanted first."""
    stages = [stage for stage in ("layer", "core") if stage == "layer" or "core" in args.only]
    for stage in stages:
        for w in TRAIN:
            for section in ("fwd", "bwd"):
                if section in args.only:
                    yield section, w.name, stage
        if stage == "layer" and "prefill" in args.only:
            yield from (("fwd", w.name, stage) for w in (PREFILL[1:2] if args.quick else PREFILL))
        if stage == "layer" and "decode" in args.only:
            for form in peer.forms:
                for level in ("layer", "core"):
                    for batch in QUICK_BATCHES if args.quick else BATCHES:
                        yield "decode", str(batch), f"{level} {form}"


def run_child(args: argparse.Namespace) -> None:
    """Measures one peer; exits with `CRASHED` if the device is lost."""
    peer, results, device = PEERS[args.child](), Results(args.out), torch.device("cuda")
    reason = peer.available()
    found = {name: found_version(name) for name in peer.packages}
    status = "available" if reason is None else f"not available: {reason}"
    note = "" if reason else peer.note()
    about = {"status": status, "versions": found, "note": note, "lacks": []}
    results.data["peers"][peer.name] = about
    results.save()
    if reason is not None:
        return
    errors: dict[str, Record] = {}
    for section, workload, stage in plan(args, peer):
        key = f"{section}/{workload}/{stage}/{peer.name}"
        w = BY_NAME.get(workload)
        lacks = peer.lacks(stage == "layer", w.lower_bound, section == "bwd") if w else None
        if lacks and lacks not in about["lacks"]:
            about["lacks"].append(lacks)
            results.save()
        if lacks or key in results.records or errors.get(stage) == {}:
            continue
        if time.time() > args.deadline:
            results.put(key, {"status": "skipped: out of time"})
            continue
        results.put(key, {"status": "running"})
        start = time.perf_counter()
        try:
            record = measure(peer, key, errors, device, args)
        except Exception as error:
            record = {"status": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        record["took_s"] = time.perf_counter() - start
        results.put(key, record)
        print(f"{key}: {record.get('ms', float('nan')):.3f} ms, {record['status']}", flush=True)
        try:
            torch.cuda.synchronize()
            free()
        except Exception as error:
            print(f"{peer.name}: device lost after {key}: {error}", flush=True)
            os._exit(CRASHED)


def measure(peer: Peer, key: str, errors: dict[str, Record], device: torch.device, args: argparse.Namespace) -> Record:
    """One measurement with all that follows from it."""
    section, workload, stage, _ = key.split("/")
    rep = 60 if args.quick else 200
    if section == "decode":
        level, form = stage.split()
        if stage not in errors:
            errors[stage] = {}  # stays so, and all batch sizes are left out, if this fails
            errors[stage] = decode_errors(peer, level == "layer", form, HEADS, device)
        record = decode(peer, int(workload), level == "layer", form, HEADS, device, rep // peer.forms[form] + 10)
        record["errors"] = errors[stage]
    else:
        run = forward if section == "fwd" else backward
        record = run(peer, BY_NAME[workload], stage == "layer", device, rep)
        record |= compare_rows(record.pop("rows"), key, args.rows)
    return derive(key, judge(record), Results(args.out).data["machine"])


def compare_rows(rows: dict[str, torch.Tensor], key: str, folder: Path | None) -> Record:
    """Differences from fla at full size; fla's own rows are kept for the others."""
    if folder is None:
        return {}
    where, peer = key.rsplit("/", 1)
    path = folder / f"{where.replace('/', '-')}.pt"
    if peer == "fla":
        torch.save(rows, path)
        return {}
    if not path.exists():
        return {}
    other = torch.load(path)
    return {"vs_fla": {name: rel_error(x, other[name]) for name, x in rows.items() if name in other}}


def found_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def machine(args: argparse.Namespace) -> Record:
    """Date, commit, versions and, with a GPU, what it reaches."""
    about: Record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": args.commit or git_commit()}
    about |= {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": found_version("triton")}
    about["gpu"] = None
    if torch.cuda.is_available():
        device = torch.device("cuda")
        about["gpu"] = torch.cuda.get_device_name()
        about["copy_bytes_per_s"], about["matmul_flop_per_s"] = copy_bandwidth(device), matmul_rate(device)
        free()
    return about


def warm(args: argparse.Namespace, deadline: float) -> None:
    """Compiles in parallel, one process per share of a peer's kernels."""
    script = Path(__file__).with_name("kernels_warm.py")
    jobs = []
    for name in args.peers:
        shards = SHARDS.get(name, 1)
        for shard in range(shards):
            command = [sys.executable, str(script), name, str(shard), str(shards)]
            jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said: set[str] = set()
    for job in jobs:
        try:
            output, _ = job.communicate(timeout=max(1.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            job.kill()
            output, _ = job.communicate()
        said.update(line for line in output.splitlines() if line.strip())
    for line in sorted(said)[:40]:
        print(f"  warm: {line[:200]}")


def run_all(args: argparse.Namespace) -> None:
    start = time.time()
    deadline = start + args.budget_seconds
    if args.out.exists() and not args.resume:
        args.out.unlink()
    results = Results(args.out)
    results.data["machine"] = machine(args)
    results.save()
    gpu = torch.cuda.is_available()
    if gpu and not args.no_warm:
        warm(args, start + args.budget_seconds / 3)
        print(f"warm after {time.time() - start:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as rows:
        for name in args.peers:
            if gpu:
                run_peer(args, name, deadline, rows)
            else:
                results.data["peers"][name] = {"status": f"not available: {PEERS[name]().available()}"}
                results.save()
            print(f"{name} done after {time.time() - start:.0f} s", flush=True)
    print("\n" + tables(Results(args.out)))


def run_peer(args: argparse.Namespace, name: str, deadline: float, rows: str) -> None:
    """Runs a peer's process, again if it crashed, without what it crashed on."""
    command = [sys.executable, __file__, "--child", name, "--rows", rows, "--deadline", str(deadline)]
    command += ["--out", str(args.out), "--only", ",".join(args.only)] + ["--quick"] * args.quick
    for _ in range(RESTARTS):
        try:
            code = subprocess.run(command, timeout=max(30.0, deadline + 30 - time.time())).returncode
        except subprocess.TimeoutExpired:
            code = -1
        results = Results(args.out)
        for key, record in results.records.items():
            if record["status"] == "running":
                results.put(key, {"status": "stopped: out of time" if code == -1 else f"crashed: exit code {code}"})
        if code in (0, -1) or time.time() > deadline:
            return


def check_only() -> int:
    """Errors of this repository's kernels on small workloads; the exit code."""
    peer = Deltarl()
    if reason := peer.available():
        print(f"{peer.name} not available: {reason}")
        return 1
    rows, failed = [], False
    for bound in (None, -5.0):
        for batch, length, heads, lengths in (
            (1, 1, 4, ()), (2, 15, 4, ()), (3, 65, 4, ()), (1, 300, 32, ()), (1, 337, 8, (1, 16, 17, 64, 239)),
        ):  # fmt: skip
            w = Workload(f"B{batch} T{length} H{heads} {lengths or ''}", batch, length, heads, bound, lengths)
            for raw in (True, False):
                row = [w.name, "softplus" if bound is None else "safe", "layer" if raw else "core"]
                try:
                    record = judge(backward_errors(peer, w, raw, torch.device("cuda")))
                except Exception as error:
                    record = {"status": f"failed: {type(error).__name__}: {str(error)[:200]}"}
                failed |= record["status"] != "ok"
                errors = record.get("errors", {})
                rows.append([*row, " ".join(f"{n} {e:.0e}" for n, e in errors.items()), record["status"]])
    print(table(["workload", "gate", "stage", f"relative errors, at most {TOLERANCE:.0e}", "status"], rows))
    return int(failed)


def main() -> None:
    args = parse_args()
    if args.check_only:
        sys.exit(check_only())
    if args.child:
        run_child(args)
    else:
        run_all(args)


if __name__ == "__main__":
    main()
