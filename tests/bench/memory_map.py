"""Training on a 4 GB file in 1 GB of memory, and the speed beside a tensor in memory.

    python tests/bench/memory_map.py [FOLDER]

The array, float32 (8,000,000, 128), is written to FOLDER (else where temporary files go)
and deleted at the end. The limit is a memory cgroup's: it counts the pages of the file that
are in memory too, so it is reached, and they make room for others. RssAnon is all but those
pages. With a limit, none are there at the start. Needs root, Linux and cgroups version 1.
"""

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tabulate import tabulate

import kit

ROWS, COLUMNS, LIMIT = 8_000_000, 128, 2**30
CGROUP = Path(f"/sys/fs/cgroup/memory/kit-{os.getpid()}")


def write(path):
    if not os.access(CGROUP.parent, os.W_OK):
        sys.exit(f"{CGROUP.parent} must be there, and root here: cgroups version 1")
    piece = np.random.default_rng(0).random((ROWS // 64, COLUMNS), np.float32)
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (ROWS, COLUMNS)}
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(piece for _ in range(64))
        os.fsync(file.fileno())


def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def measure(path, load):
    """In the child: rows a second of 1000 batches of 256 or of an epoch; RssAnon, MB."""
    m = torch.nn.Linear(COLUMNS, 1)
    state = kit.make_state(m, torch.optim.SGD(m.parameters(), lr=1e-3))
    loss_fn = torch.nn.functional.mse_loss
    found, peak = {"RssAnon before": anonymous()}, 0.0
    X = kit.memory_map(path) if load == "mapped" else torch.from_numpy(np.load(path))
    y = torch.zeros(len(X), 1)
    for way in ("shuffled, no training", "shuffled", "in order, an epoch"):
        shuffle = way.startswith("shuffled")
        loader = kit.make_loader((X, y), batch_size=256, shuffle=shuffle)
        batches = islice(loader, 1001 if shuffle else None)
        next(batches)  # once it is there, the order of the epoch is too
        start, rows = time.perf_counter(), 0
        for i, batch in enumerate(batches):
            if way != "shuffled, no training":
                state, _ = kit.train_step(state, batch, loss_fn=loss_fn)
            rows += len(batch[0])
            peak = max(peak, anonymous() if i % 100 == 0 else 0)
        found[f"rows/s, {way}"] = rows / (time.perf_counter() - start)
    return found | {"RssAnon at most": peak}


def child(path, load, limit=0):
    """What another process measures, or what became of it."""
    command = [sys.executable, __file__, "measure", path, load]
    if limit:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        CGROUP.mkdir()
        (CGROUP / "memory.limit_in_bytes").write_text(str(limit))
        enter = f'echo $$ > {CGROUP}/cgroup.procs; exec "$@"'
        command = ["sh", "-c", enter, "", *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    found = {"exit code": done.returncode, **json.loads(done.stdout or "{}")}
    for name in ("limit", "max_usage") if limit else ():
        found[name] = int((CGROUP / f"memory.{name}_in_bytes").read_text()) / 1e6
    if limit:
        CGROUP.rmdir()
    return found


if __name__ == "__main__" and sys.argv[1:2] == ["measure"]:
    print(json.dumps(measure(*sys.argv[2:])))
elif __name__ == "__main__":
    with TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        write(path := f"{folder}/X.npy")
        ways = [(load, limit) for limit in (0, LIMIT) for load in ("loaded", "mapped")]
        runs = [child(path, *way) for way in ways]
    table = [[name, *(run.get(name) for run in runs)] for name in max(runs, key=len)]
    print(f"a file of {4e-6 * ROWS * COLUMNS:,.0f} MB; memory in MB")
    heads = [f"{load}, {'limit' if limit else 'cached'}" for load, limit in ways]
    print(tabulate(table, ["", *heads], floatfmt=",.0f"))
