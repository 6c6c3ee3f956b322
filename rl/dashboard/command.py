"""The runs in a folder as a page that follows them.

deltarl-dashboard runs
"""

import argparse
import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from deltarl.rl.dashboard.app import Dashboard, is_address

PROGRAM = "deltarl-dashboard"


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-dashboard`. 0: ended by a signal, 2: the folder cannot be served."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs_dir", type=Path, metavar="RUNS_DIR", help="searched for folders with a metrics.jsonl")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8050, help="(%(default)s; 0: any that is free)")
    args = parser.parse_args(argv)
    if not args.runs_dir.is_dir():
        print(f"{PROGRAM}: error: {args.runs_dir} is not a folder; give the one that runs write into", file=sys.stderr)
        return 2
    if not _is_loopback(args.host):
        print(f"{PROGRAM}: warning: whoever reaches {args.host} can read these runs", file=sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    hosts = frozenset({"localhost"} if is_address(args.host) else {"localhost", args.host})
    try:
        web.run_app(Dashboard(args.runs_dir, hosts).app(), host=args.host, port=args.port, print=_flushed)
    except OSError as error:  # the port is taken, no such address
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"


def _flushed(*lines: object) -> None:
    """What a supervisor waits for must not sit in a buffer."""
    print(*lines, flush=True)


if __name__ == "__main__":
    sys.exit(main())
