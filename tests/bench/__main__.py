"""`make bench`: runs all benchmarks, or those named, and prints them as JSON on stdout."""

import argparse
import json
import sys

from tests.bench import backlog, load, query, receive, write

BENCHMARKS = {
    "receive": receive.run,
    "write": write.run,
    "load": load.run,
    "backlog": backlog.run,
    "query": query.run,
}


def main() -> int:
    """Run the benchmarks that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: does it run at all?")
    args = parser.parse_args()
    if unknown := set(args.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    results = {}
    for name in args.names or BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = BENCHMARKS[name](0.1 if args.quick else 1.0)
    json.dump(results, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
