"""The first half of a process of `sandbox`: gives up what a program may not do, then becomes `sandbox_child`.

Run as `python sandbox_walls.py PARENT MEMORY SECONDS UNSAFE WITHOUT`, with the report as stdout. None of it needs a
privilege, and all of it outlives `execve`. On the other side of it there is no ctypes left by which a program could
look into its own process. Sources: setrlimit(2), seccomp(2), landlock(7), PR_SET_PDEATHSIG(2const).
"""

import contextlib
import ctypes
import errno
import math
import os
import platform
import resource
import signal
import struct
import sys

FILES, FILE_BYTES, STACK = 64, 8 << 20, 8 << 20  # open files; bytes of the largest one; bytes of a stack
SHARED_NUMBERS = 424  # from here on a call has one number on all machines
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Calls by their numbers on x86_64 and aarch64, -1 where there is none. All others are refused: among them each that
# makes a process, a socket to others, what outlives the process, or memory that RLIMIT_AS does not count; that changes
# modes, owners and times (of which Landlock does not ask), links or folders; and that reaches other processes.
CALLS = """
access 21 -1, alarm 37 -1, arch_prctl 158 -1, brk 12 214, chdir 80 49, clock_getres 229 114, clock_gettime 228 113,
clock_nanosleep 230 115, clone 56 220, close 3 57, close_range 436 436, dup 32 23, dup2 33 -1, dup3 292 24,
epoll_create1 291 20, epoll_ctl 233 21, epoll_pwait 281 22, epoll_wait 232 -1, eventfd2 290 19, execve 59 221,
exit 60 93, exit_group 231 94, faccessat 269 48, faccessat2 439 439, fadvise64 221 223, fchdir 81 50, fcntl 72 25,
fdatasync 75 83, fstat 5 80, fstatfs 138 44, fsync 74 82, ftruncate 77 46, futex 202 98, getcpu 309 168, getcwd 79 17,
getdents64 217 61, getegid 108 177, geteuid 107 175, getgid 104 176, getgroups 115 158, getitimer 36 102,
getpeername 52 205, getpgid 121 155, getpgrp 111 -1, getpid 39 172, getppid 110 173, getrandom 318 278,
getresgid 120 150, getresuid 118 148, getrlimit 97 163, getrusage 98 165, getsid 124 156, getsockname 51 204,
getsockopt 55 209, gettid 186 178, gettimeofday 96 169, getuid 102 174, ioctl 16 29, kill 62 129, lseek 8 62,
lstat 6 -1, madvise 28 233, mmap 9 222, mprotect 10 226, mremap 25 216, munmap 11 215, nanosleep 35 101,
newfstatat 262 79, open 2 -1, openat 257 56, pause 34 -1, pipe 22 -1, pipe2 293 59, poll 7 -1, ppoll 271 73,
pread64 17 67, prlimit64 302 261, pselect6 270 72, pwrite64 18 68, read 0 63, readlink 89 -1, readlinkat 267 78,
readv 19 65, recvfrom 45 207, rename 82 -1, renameat 264 38, renameat2 316 276, restart_syscall 219 128, rseq 334 293,
rt_sigaction 13 134, rt_sigpending 127 136, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, sched_getaffinity 204 123, sched_yield 24 124, select 23 -1, sendfile 40 71, sendto 44 206,
set_robust_list 273 99, set_tid_address 218 96, setitimer 38 103, shutdown 48 210, sigaltstack 131 132,
socketpair 53 199, stat 4 -1, statfs 137 43, statx 332 291, sysinfo 99 179, tgkill 234 131, times 100 153,
umask 95 166, uname 63 160, unlink 87 -1, unlinkat 263 35, write 1 64, writev 20 66
"""
_CHANGES = ("rename", "renameat", "renameat2", "unlink", "unlinkat")  # where Landlock does not say which files

_ACCESS, _CREATE, _TRUNCATE, _NAMELESS = 0o3, 0o100, 0o1000, 0o20000000  # flags of open(2), equal on both machines
_CLONE_THREAD = 0x10000
_DUPLICATE, _GET, _SET = (0, 1030), (1, 3, 1032), (2, 4)  # of fcntl(2); not F_SETOWN and F_SETSIG, which send signals
_TERMINAL, _UNREAD, _BLOCKING, _INHERIT = 0x5401, 0x541B, 0x5421, (0x5450, 0x5451)  # of ioctl(2): what Python asks


def conditions(pid: int, writes: bool) -> dict[str, list[tuple[int, int, tuple[int, ...]]]]:
    """Returns what the arguments of a call must be: of each of these words, the masked value is one of those.

    Argument i has the words 2 i, the lower, and 2 i + 1.
    """
    # Landlock asks for the right to write before Linux 6.2 only if a file is opened to write: not to shorten it.
    mask, flags = _ACCESS | _TRUNCATE, (0, 1, 2, _TRUNCATE | 1, _TRUNCATE | 2)
    if not writes:
        mask, flags = _ACCESS | _CREATE | _TRUNCATE | _NAMELESS, (0,)
    return {
        "clone": [(0, _CLONE_THREAD, (_CLONE_THREAD,))],
        "kill": [(0, 0xFFFFFFFF, (pid,))],
        "tgkill": [(0, 0xFFFFFFFF, (pid,))],
        "fcntl": [(2, 0xFFFFFFFF, (*_DUPLICATE, *_GET, *_SET))],
        "ioctl": [(2, 0xFFFFFFFF, (_TERMINAL, _UNREAD, _BLOCKING, *_INHERIT))],
        "open": [(2, mask, flags)],
        "openat": [(4, mask, flags)],
        "prlimit64": [(4, 0xFFFFFFFF, (0,)), (5, 0xFFFFFFFF, (0,))],  # to read, not to set: root may raise its own
        "socketpair": [(0, 0xFFFFFFFF, (1,))],  # AF_UNIX: asyncio wakes itself by one
        "sendto": [(8, 0xFFFFFFFF, (0,)), (9, 0xFFFFFFFF, (0,))],  # to the other end of a pair, not to an address
    }


def numbers(machine: str) -> dict[str, int]:
    """Returns the numbers of the calls there."""
    column = 1 + list(_AUDIT).index(machine)
    rows = (row.split() for row in CALLS.split(","))
    return {row[0]: int(row[column]) for row in rows if row[column] != "-1"}


def program(machine: str, pid: int, writes: bool) -> bytes:
    """Returns the BPF program that refuses what is not allowed with EPERM, or ENOSYS if the call is a new one.

    On ENOSYS the C library takes the call that the new one replaces, such as clone for clone3, whose arguments lie in
    memory, where no filter can read them.
    """
    load, equal, least, both, give = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, kill, deny = 0x7FFF0000, 0x80000000, 0x00050000

    def step(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    asked = conditions(pid, writes)
    steps = [step(load, 4), step(equal, _AUDIT[machine], 1), step(give, kill), step(load, 0)]
    for name, number in numbers(machine).items():
        if name in _CHANGES and not writes:
            continue
        block = []
        for word, mask, values in asked.get(name, []):
            block += [step(load, 16 + 4 * word), step(both, mask)]
            block += [step(equal, value, len(values) - place) for place, value in enumerate(values)]
            block.append(step(give, deny | errno.EPERM))
        block.append(step(give, allow))
        steps += [step(equal, number, 0, len(block)), *block]
    steps += [step(least, SHARED_NUMBERS, 0, 1), step(give, deny | errno.ENOSYS), step(give, deny | errno.EPERM)]
    return b"".join(steps)


def unprivileged(libc: ctypes.CDLL) -> None:
    """Gives up the privileges of root but to read Python in a folder of another user, and all ways to get some."""
    number, version, read = {"x86_64": 126, "aarch64": 91}.get(platform.machine()), 0x20080522, 1 << 2
    if number is not None:
        head, held = struct.pack("=Ii", version, 0), ctypes.create_string_buffer(24)
        libc.syscall(number - 1, head, held)
        kept = struct.unpack("=6I", held.raw)[1] & read
        libc.syscall(number, head, struct.pack("=6I", kept, kept, 0, 0, 0, 0))
    no_new_privileges = 38
    libc.prctl(no_new_privileges, 1, 0, 0, 0)


def filtered(libc: ctypes.CDLL, writes: bool) -> bool:
    """Has the kernel refuse calls from now on; returns whether it does."""
    if platform.machine() not in _AUDIT or sys.maxsize < 1 << 32:
        return False
    steps = program(platform.machine(), os.getpid(), writes)
    buffer = ctypes.create_string_buffer(steps, len(steps))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(steps) // 8, ctypes.addressof(buffer)))
    set_seccomp, mode_filter = 22, 2
    return libc.prctl(set_seccomp, mode_filter, ctypes.addressof(head), 0, 0) == 0


def fenced(libc: ctypes.CDLL, folder: str, child: str) -> bool:
    """Has the kernel refuse files but Python's own, to read, and those in the folder; returns whether it does."""
    execute, write, read, list_, remove, make, truncate = (1 << bit for bit in (0, 1, 2, 3, 5, 8, 14))
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    # Where it can, it also refuses TCP, and signals and abstract sockets to other processes.
    rules = struct.pack("=QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    fence = libc.syscall(444, rules, ctypes.c_size_t(len(rules)), 0)
    if fence < 0:
        return False
    with open("/proc/self/maps") as maps:  # where Python finds its libraries, and they each other
        libraries = {os.path.dirname(line.split(maxsplit=5)[-1]) for line in maps if ".so" in line}
    rights = dict.fromkeys([*libraries, os.path.dirname(os.__file__)], execute | read | list_)
    rights |= dict.fromkeys([child, "/dev/urandom", "/dev/zero", "/etc/ld.so.cache", "/etc/localtime"], read)
    rights |= {os.path.realpath(sys.executable): execute | read, "/usr/share/zoneinfo": read | list_}
    rights |= {"/dev/null": read | write, folder: read | write | list_ | remove | make | truncate}
    for path, right in rights.items():
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        right &= files if os.path.isdir(path) else files & (execute | write | read | truncate)
        libc.syscall(445, fence, 1, struct.pack("=Qi", right, beneath), 0)
        os.close(beneath)
    return libc.syscall(446, fence, 0) == 0


def limited(memory: int, seconds: float) -> None:
    """Sets limits to what one process takes. RLIMIT_NPROC would count all of a user's, and none of root's."""
    cpu = math.ceil(seconds) + 1
    for kind, most, more in (
        (resource.RLIMIT_CPU, cpu, 1),  # SIGXCPU comes at the first, SIGKILL at the second
        (resource.RLIMIT_AS, memory, 0),
        (resource.RLIMIT_STACK, STACK, 0),  # of each thread
        (resource.RLIMIT_FSIZE, FILE_BYTES, 0),
        (resource.RLIMIT_NOFILE, FILES, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most, last = (each if hard == resource.RLIM_INFINITY else min(each, hard) for each in (most, most + more))
        with contextlib.suppress(ValueError, OSError):  # macOS knows some that it does not set
            resource.setrlimit(kind, (most, last))


def main(parent: int, memory: int, seconds: float, unsafe: bool, without: str) -> None:
    """Gives up, says in a line what holds, and becomes the program unless too little does."""
    means, missing = ["limits"], without.split(",")
    child = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_child.py")
    limited(memory, seconds)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.syscall.restype, libc.prctl.argtypes = ctypes.c_long, [ctypes.c_int, *[ctypes.c_ulong] * 4]
        unprivileged(libc)
        die_with_parent = 1
        libc.prctl(die_with_parent, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was gone before; what counts is the thread that made this one, and waits for it
            os._exit(1)
        if "landlock" not in missing and fenced(libc, os.getcwd(), child):
            means.append("landlock")
        if "seccomp" not in missing and filtered(libc, "landlock" in means):
            means.append("seccomp")
    if "audit" not in missing:
        means.append("audit")
    os.write(1, f"{' '.join(means)}\n".encode())
    if "seccomp" in means or unsafe:
        flags = ["-s", "-S", "-P", "-B"]
        os.execve(sys.executable, [sys.executable, *flags, child, *means], dict(os.environ))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1", sys.argv[5])
