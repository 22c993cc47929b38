"""Trace the file operations of a child process with Linux's ptrace, as strace does.

`trace` can kill the child just before an operation, or in the middle of a write.
"""

import contextlib
import ctypes
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

# System call on x86-64: name, index of the argument with the path or the open file, kind.
CALLS = {
    1: ("write", 0, "file"),
    18: ("pwrite", 0, "file"),
    20: ("writev", 0, "file"),
    74: ("fsync", 0, "file"),
    75: ("fdatasync", 0, "file"),
    77: ("ftruncate", 0, "file"),
    82: ("rename", 0, "path"),
    83: ("mkdir", 0, "path"),
    84: ("rmdir", 0, "path"),
    87: ("unlink", 0, "path"),
    90: ("chmod", 0, "path"),
    257: ("open", 1, "path"),
    263: ("unlinkat", 1, "path"),
    264: ("rename", 1, "path"),
    268: ("chmod", 1, "path"),
    316: ("rename", 1, "path"),
}
# The third argument of these calls is the number of bytes.
HALVED = ("write", "pwrite")
PTRACE_TRACEME, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_SYSCALL = 0, 12, 13, 24
PTRACE_SETOPTIONS, TRACE_SYSGOOD, EXIT_KILL = 0x4200, 1, 0x100000
RDX, RSI, RDI, ORIG_RAX = 12, 13, 14, 15
# The child stops with this signal before and after a system call.
SYSTEM_CALL = signal.SIGTRAP | 0x80
libc = ctypes.CDLL(None, use_errno=True)


class Operation(NamedTuple):
    """One call that changes a file."""

    call: str
    # Relative to the traced folder, without process ids and random parts.
    path: str


class Trace(NamedTuple):
    """The operations of a child's main thread, and its exit code or minus its signal."""

    operations: list[Operation]
    code: int


def ptrace(request: int, pid: int, address: int = 0, content: object = 0) -> None:
    arguments = [ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address)]
    if libc.ptrace(*arguments, content if content else ctypes.c_void_p(0)) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def wait_for_tracer() -> None:
    """Stop this child until `trace` continues it."""
    ptrace(PTRACE_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def trace(pid: int, folder: Path, until: int | None = None, halfway: bool = False) -> Trace:
    """Trace a child to its end.

    Args:
        folder: the trace holds only operations on files in this folder.
        until: kill the child just before operation number `until`.
        halfway: first let the child write half of the bytes of operation `until`.
    """
    operations: list[Operation] = []
    entering, registers = True, (ctypes.c_ulonglong * 27)()
    _, status = os.waitpid(pid, 0)
    ptrace(PTRACE_SETOPTIONS, pid, 0, ctypes.c_void_p(TRACE_SYSGOOD | EXIT_KILL))
    while not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        stop = os.WSTOPSIG(status)
        forwarded_signal = 0 if stop in (SYSTEM_CALL, signal.SIGSTOP) else stop
        if stop == SYSTEM_CALL:
            if entering:
                ptrace(PTRACE_GETREGS, pid, 0, registers)
                if operation := operation_of(pid, registers, folder):
                    operations.append(operation)
                    if until == len(operations) - 1 and halfway:
                        registers[RDX] //= 2
                        ptrace(PTRACE_SETREGS, pid, 0, registers)
                    elif until == len(operations) - 1:
                        os.kill(pid, signal.SIGKILL)
            elif halfway and until == len(operations) - 1:
                os.kill(pid, signal.SIGKILL)
            entering = not entering
        # SIGKILL may have ended the child.
        with contextlib.suppress(ProcessLookupError):
            ptrace(PTRACE_SYSCALL, pid, 0, ctypes.c_void_p(forwarded_signal))
        _, status = os.waitpid(pid, 0)
    return Trace(operations, os.waitstatus_to_exitcode(status))


def operation_of(pid: int, registers: ctypes.Array, folder: Path) -> Operation | None:
    """The system call that a child is about to make, if the call changes a file in `folder`."""
    if registers[ORIG_RAX] not in CALLS:
        return None
    call, index, kind = CALLS[registers[ORIG_RAX]]
    arguments = [registers[RDI], registers[RSI], registers[RDX]]
    if call == "open" and not arguments[2] & (os.O_CREAT | os.O_TRUNC):
        return None
    if kind == "file":
        path = Path(f"/proc/{pid}/fd/{arguments[index]}").readlink()
    else:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(arguments[index])
            path = Path(os.fsdecode(memory.read(256).split(b"\0")[0]))
        # The path is relative to an open folder unless the first argument is AT_FDCWD, −100.
        if not path.is_absolute() and ctypes.c_int(arguments[0]).value >= 0 and index:
            path = Path(f"/proc/{pid}/fd/{arguments[0]}").readlink() / path
    if not path.is_relative_to(folder):
        return None
    name = re.sub(r"\.tmp\w+", ".tmp", str(path.relative_to(folder)))
    return Operation(call, re.sub(r"\.\d+(?=\.partial)", "", name))
