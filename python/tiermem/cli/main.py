"""`tiermem VERB ...`: exit code 0 done, 1 failed, 2 wrong usage."""

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from tiermem.cli import (
    data,
    demo,
    device,
    doctor,
    export,
    loadgen,
    plan,
    report,
    serve,
    study,
    trace,
    train,
    tune,
)
from tiermem.errors import ConfigError, TiermemError

__all__ = ["main"]

_VERBS = (
    demo, data, device, trace, plan, study, train, export, serve, loadgen, tune, report, doctor,
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tiermem",
        description="Run, measure and plan recommendation models on memory that you do not have.",
        epilog="Example: tiermem demo --json",
    )
    parser.add_argument("--version", action="version", version=f"tiermem {metadata.version('tiermem')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors end in one sentence on standard error."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ConfigError as error:
        return _fail(str(error), 2)
    except (TiermemError, ImportError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:
        # The reader of a pipe went away; nobody is left to tell.
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(f"cannot write the output: {error.strerror}", 1)
    return code


def _fail(message: str, code: int) -> int:
    print(f"tiermem: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
