"""SGLang's launcher in forks of a process that has imported it: a start without its imports.

What ``python -m sglang.launch_server FLAGS`` does behind its imports is done anew in each fork:
loading plugins, reading flags, starting the other processes, which import everything themselves.
What depends on the environment during those imports needs a process of its own.

    python -P launcher.py

Reads a request a line from stdin and answers with a line of JSON. ``{"flags": […], "stdout": PATH,
"stderr": PATH}``: the id of the new process, which leads a session of its own. ``{"poll": ID}``:
its exit code, or null while it runs. Ends with its stdin, and so with whoever has started it.
"""

import json
import os
import runpy
import sys

_MODULE = "sglang.launch_server"
# Not the module itself, which runs as `__main__`.
_IMPORTS = (
    "sglang.srt.arg_groups.overrides",
    "sglang.srt.plugins",
    "sglang.srt.server_args",
    "sglang.srt.entrypoints.http_server",
)


def _become(flags: list[str], stdout: str, stderr: str) -> None:
    """Be the command: a session, output and arguments of its own."""
    os.setsid()
    for number, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        mode = os.O_RDWR | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        descriptor = os.open(path, mode, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = [_MODULE, *flags]
    runpy.run_module(_MODULE, run_name="__main__", alter_sys=True)


def _polled(child: int) -> int | None:
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever an import says is no answer
    for name in _IMPORTS:
        __import__(name)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            answers.write(f"{json.dumps(_polled(request['poll']))}\n")
            continue
        child = os.fork()
        if not child:
            answers.close()
            _become(**request)
            return
        answers.write(f"{child}\n")


if __name__ == "__main__":
    _serve()
