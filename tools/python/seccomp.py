"""The system calls that a sandbox refuses, as a BPF program for seccomp: those that escapes are made of, and those that evade limits."""

import platform
import struct

from arm_rl.core.errors import UserError

# System call: number on x86-64, number on aarch64.
REFUSED = {
    # other processes, the guarding init among them
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    # mounts and namespaces; `clone` is looked at below
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "fanotify_init": (300, 262),
    # large attack surfaces
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # memory that belongs to no process and to no file system whose size is limited
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # sockets beyond pairs, and buffers that grow: what waits in them belongs to no process
    "bind": (49, 200),
    "listen": (50, 201),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "setsockopt": (54, 208),
    "inotify_init1": (294, 26),
    "vmsplice": (278, 75),  # keeps a huge page for each buffer of a pipe
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "personality": (135, 92),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
}
OLD_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154, "inotify_init": 253}
CLONE, CLONE3, IOCTL, FCNTL = (56, 220), (435, 435), (16, 29), (72, 25)
SOCKET, SOCKETPAIR, PRLIMIT, SETPRIORITY = (41, 198), (53, 199), (302, 261), (141, 140)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW*
AF_UNIX, TIOCSTI, TIOCLINUX, F_SETPIPE_SZ = 1, 0x5412, 0x541C, 1031

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF operations on 32-bit words
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
NUMBER, ARCHITECTURE, FIRST, SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data; low words of the arguments


def build_filter(machine: str | None = None) -> bytes:
    """Return the filter for a machine as an array of struct sock_filter.

    Raises:
        UserError: an architecture whose system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise UserError(f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)}, not of {machine}")
    column, audit = ARCHITECTURES[machine]
    code = [
        _instruction(LOAD, ARCHITECTURE),
        _instruction(EQUAL, audit, 1, 0),
        _instruction(RETURN, KILL),
        _instruction(LOAD, NUMBER),
    ]  # no 32-bit calls
    if machine == "x86_64":
        code += _refuse_when(AT_LEAST, 0x40000000, EPERM)  # x32, a second set of numbers
        for number in OLD_X86.values():
            code += _refuse_when(EQUAL, number, EPERM)
    for numbers in REFUSED.values():
        code += _refuse_when(EQUAL, numbers[column], EPERM)
    # its flags lie in memory, where a filter cannot look; the C library falls back on clone
    code += _refuse_when(EQUAL, CLONE3[column], ENOSYS)
    code += _check_argument(CLONE[column], FIRST, [*_refuse_when(ANY_BIT, NEW_NAMESPACES, EPERM)])
    # only one's own limits
    code += _check_argument(PRLIMIT[column], FIRST, [_instruction(EQUAL, 0, 1, 0), _instruction(RETURN, ERRNO | EPERM)])
    # and only one's own priority
    code += _check_argument(
        SETPRIORITY[column], SECOND, [_instruction(EQUAL, 0, 1, 0), _instruction(RETURN, ERRNO | EPERM)]
    )
    code += _check_argument(
        IOCTL[column], SECOND, [*_refuse_when(EQUAL, TIOCSTI, EPERM), *_refuse_when(EQUAL, TIOCLINUX, EPERM)]
    )
    # pipes keep their size: the guest counts each as one of the usual size
    code += _check_argument(FCNTL[column], SECOND, [*_refuse_when(EQUAL, F_SETPIPE_SZ, EPERM)])
    for call in (SOCKET, SOCKETPAIR):  # vsock, for one, is bound to no network namespace
        code += _check_argument(
            call[column], FIRST, [_instruction(EQUAL, AF_UNIX, 1, 0), _instruction(RETURN, ERRNO | EAFNOSUPPORT)]
        )
    return b"".join([*code, _instruction(RETURN, ALLOW)])


def _instruction(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, value)


def _refuse_when(test: int, value: int, errno: int) -> list[bytes]:
    """Return instructions that refuse the call if the loaded word passes the test."""
    return [_instruction(test, value, 0, 1), _instruction(RETURN, ERRNO | errno)]


def _check_argument(call: int, offset: int, checks: list[bytes]) -> list[bytes]:
    """Return instructions that check an argument of one call and allow the call if no check refuses it."""
    return [
        _instruction(EQUAL, call, 0, len(checks) + 2),
        _instruction(LOAD, offset),
        *checks,
        _instruction(RETURN, ALLOW),
    ]
