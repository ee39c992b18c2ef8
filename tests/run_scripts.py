"""Runs scripts in forks of one process that has imported torch already.

Reads a line of JSON [script, folder] each, runs the script in the folder, its output in
the folder's stdout and stderr, and answers with its exit status. An import of torch and
of its optimizers takes 3 seconds, which 40 scripts would pay for one by one.
"""

import json
import os
import runpy
import sys

import torch._dynamo  # with which torch's first optimizer begins


def become(script, folder):
    """Make this process look like `python script` in the folder."""
    os.chdir(folder)
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [script]
    sys.path[0] = os.path.dirname(script)


torch.set_num_threads(1)
for line in sys.stdin:
    script, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        become(script, folder)
        runpy.run_path(script, run_name="__main__")
        break  # to the end of this script, as a Python that has run its own
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
