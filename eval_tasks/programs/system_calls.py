# SPDX-License-Identifier: Apache-2.0
"""The system calls that a program in the sandbox may not make, as a filter of the kernel (seccomp).

No process and no thread can be made, so that limits of one process are limits of the whole program: it can
leave nothing behind, and `RLIMIT_AS` bounds its memory (a limit on processes alone, `RLIMIT_NPROC`, is not
applied to root). What keeps memory outside a process (shared memory, message queues, memory files, key
rings, extended attributes, locks of byte ranges, rules of Landlock) is refused too, as are sockets of every
family (those of virtual machines know no network namespace), tracing, mounts and namespaces. Anonymous
memory may be mapped privately only: pages of a shared mapping belong to a file of the kernel's, and stay
when a part of the mapping is given back.

The numbers are those of Linux's tables for the two machines below; a filter for another machine is not
guessed.
"""

from __future__ import annotations

import platform
import struct

from megatron.neox_arguments.errors import UserError

# name: (x86_64, aarch64), None where the machine has no such call.
# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.12.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes and threads
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "clone3": (435, 435),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # sockets
    "socket": (41, 198), "socketpair": (53, 199),
    # memory that outlives or lies beside a process
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # a pipe that holds one small page of a huge one keeps all of it, 2 MiB
    "vmsplice": (278, 75),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    # attributes of a file in tmpfs: up to 64 KiB each, any number, which its size does not count
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    # rules that the kernel keeps for a process, any number
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # wide doors into the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_setup": (206, 0),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "personality": (135, 92), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "setpriority": (141, 140), "sched_setattr": (314, 274),
}  # fmt: skip

FCNTL = (72, 25)
# Commands of fcntl by name; <linux/fcntl.h> and <asm-generic/fcntl.h>. A lock of one byte costs the kernel
# about 200 bytes, and there can be one for every other byte; a pipe can be grown to 1 MiB.
REFUSED_COMMANDS = {
    "F_SETLK": 6, "F_SETLKW": 7, "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38, "F_SETLEASE": 1024, "F_NOTIFY": 1026,
    "F_SETPIPE_SZ": 1031,
}  # fmt: skip

MMAP = (9, 222)
# <linux/mman.h> and <asm-generic/mman-common.h>: MAP_ANONYMOUS with MAP_SHARED (1) or MAP_SHARED_VALIDATE
# (3), which have this bit in common, and MAP_PRIVATE (2) has not.
_ANONYMOUS, _SHARED = 0x20, 0x01

# AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of <linux/audit.h>
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# <linux/bpf_common.h>: load a word, jump if equal, jump if greater or equal, combine bits, return
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
# <linux/seccomp.h>
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# Of an argument the lower half: both machines are little-endian, a command is an int, no flag is beyond it.
_OFFSET_OF_NUMBER, _OFFSET_OF_MACHINE, _OFFSET_OF_SECOND_ARGUMENT, _OFFSET_OF_FOURTH_ARGUMENT = 0, 4, 24, 40
# The calls of x86_64's 32-bit variant have this bit.
_X32_BIT = 0x40000000
_EPERM = 1


def system_call_filter(machine: str | None = None) -> bytes:
    """The filter as the kernel reads it (classic BPF, 8 bytes an instruction), for `machine` as `uname -m`
    names it.

    A refused call returns EPERM to the program; a call of another machine's table ends it.

    Raises:
        UserError: no table for this machine.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise UserError(
            f"machine={machine}: programs are isolated on {' and '.join(_MACHINES)} only; score them on such "
            "a machine (samples are files), or use --unsafe-programs on one that you can afford to lose"
        )
    column, audit_number = _MACHINES[machine]
    numbers = sorted(row[column] for row in REFUSED.values() if row[column] is not None)  # type: ignore[type-var]
    program = [
        (_LOAD, 0, 0, _OFFSET_OF_MACHINE),
        (_JUMP_EQUAL, 1, 0, audit_number),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _OFFSET_OF_NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in numbers:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE | _EPERM)]  # type: ignore[list-item]
    program += [
        (_JUMP_EQUAL, 0, 5, MMAP[column]),
        (_LOAD, 0, 0, _OFFSET_OF_FOURTH_ARGUMENT),
        (_AND, 0, 0, _ANONYMOUS | _SHARED),
        (_JUMP_EQUAL, 0, 1, _ANONYMOUS | _SHARED),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program += [(_JUMP_EQUAL, 1, 0, FCNTL[column]), (_RETURN, 0, 0, _ALLOW)]
    program.append((_LOAD, 0, 0, _OFFSET_OF_SECOND_ARGUMENT))
    for command in REFUSED_COMMANDS.values():
        program += [(_JUMP_EQUAL, 0, 1, command), (_RETURN, 0, 0, _REFUSE | _EPERM)]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
