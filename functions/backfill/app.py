"""The task of a heavy backfill: reads what it is to do, does it, ends by SIGTERM in time. See ``backfill_task``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from schemahub.backfill_task import do, read_spec
from schemahub.errors import SchemaHubError
from schemahub.runtime import deps_from_env, logger, metrics


def main() -> int:
    """The task's exit code: 0 for all that was wanted, 143 when it was stopped, 1 for what another attempt may do."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    deps = deps_from_env()
    try:
        spec = read_spec(deps, os.environ["SCHEMAHUB_TASK"])
        logger.append_keys(run=spec.run, stream=str(spec.stream))
        logger.info("task begins", extra={"kind": spec.kind})
        work_dir = Path(os.environ["SCHEMAHUB_WORK_DIR"])
        result = do(deps, spec, stop, work_dir)
    except SchemaHubError as error:
        logger.error("task failed", extra={"error": type(error).__name__, "reason": str(error)[:500]})
        return 1
    finally:
        metrics.flush_metrics()
    logger.info("task ends", extra={"result": result.to_json()})
    return result.exit_code


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # At once: a request that nobody waits for must not hold up the end.
    os._exit(code)
