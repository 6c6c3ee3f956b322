"""math-verify on pairs from standard input, in a process of its own; started by `verifier.py`, never imported.

Its antlr pin must not enter the project's environment, so it is imported from the folder given as argument. One JSON
line `[gold, pred]` in, one `[accepted, seconds]` out, at once, so that a pair that kills the process is known.
"""

import json
import logging
import sys
import time


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    logging.disable()  # it logs every timeout and parse failure, with the answer
    from math_verify import parse, verify

    for line in sys.stdin:
        gold, pred = json.loads(line)
        started = time.perf_counter()
        accepted = verify(parse(gold), parse(pred))  # raises nothing unless told to
        print(json.dumps([bool(accepted), time.perf_counter() - started]), flush=True)


if __name__ == "__main__":
    main()
