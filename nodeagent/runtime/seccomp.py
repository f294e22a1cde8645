"""The system call filter of every sandbox: what Linux knows, without what a tenant has no use for.

An allow list: a call that a later kernel adds stays shut until it is put on KNOWN by hand. It
refuses all that the engine's default profile refuses to a container without CAP_SYS_ADMIN, and
more: io_uring, userfaultfd, kernel keys, eBPF, performance counters, every way to make or join a
namespace, socket families but UNIX, IP and netlink, and 32-bit programs.
"""

from __future__ import annotations

import functools
import json
from typing import Any

# Linux 6.1 on x86-64 and arm64 (asm/unistd_64.h, asm-generic/unistd.h), the refused ones left out.
KNOWN = [
    "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl", "bind", "brk", "capget",
    "capset", "chdir", "chmod", "chown", "chroot", "clock_adjtime", "clock_getres",
    "clock_gettime", "clock_nanosleep", "clone", "close", "close_range", "connect",
    "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1",
    "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old",
    "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat",
    "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork",
    "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futex",
    "futex_waitv", "futimesat", "get_robust_list", "get_thread_area", "getcpu", "getcwd",
    "getdents", "getdents64", "getegid", "geteuid", "getgid", "getgroups", "getitimer",
    "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom",
    "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "getsockname", "getsockopt",
    "gettid", "gettimeofday", "getuid", "getxattr", "inotify_add_watch", "inotify_init",
    "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents",
    "io_pgetevents", "io_setup", "io_submit", "ioctl", "ioprio_get", "ioprio_set", "kill",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown",
    "lgetxattr", "link", "linkat", "listen", "listxattr", "llistxattr", "lremovexattr", "lseek",
    "lsetxattr", "lstat", "madvise", "membarrier", "memfd_create", "memfd_secret", "mincore",
    "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2", "mlockall", "mmap", "modify_ldt",
    "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend",
    "mq_unlink", "mremap", "msgctl", "msgget", "msgrcv", "msgsnd", "msync", "munlock",
    "munlockall", "munmap", "name_to_handle_at", "nanosleep", "newfstatat", "open", "openat",
    "openat2", "pause", "personality", "pidfd_open", "pidfd_send_signal", "pipe", "pipe2",
    "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl", "pread64", "preadv",
    "preadv2", "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev",
    "pselect6", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink",
    "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "remap_file_pages", "removexattr",
    "rename", "renameat", "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
    "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop",
    "semtimedop", "sendfile", "sendmmsg", "sendmsg", "sendto", "set_robust_list",
    "set_thread_area", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups",
    "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid",
    "setrlimit", "setsid", "setsockopt", "setuid", "setxattr", "shmat", "shmctl", "shmdt",
    "shmget", "shutdown", "sigaltstack", "signalfd", "signalfd4", "socket", "socketpair",
    "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync", "sync_file_range",
    "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete",
    "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime", "times", "tkill", "truncate", "umask", "uname", "unlink", "unlinkat",
    "utime", "utimensat", "utimes", "vfork", "vmsplice", "wait4", "waitid", "write", "writev",
]  # fmt: skip

# By what they would open. Kept as a list so that a test can try each of them.
REFUSED = {
    "namespaces": [
        "unshare", "setns", "clone3",
    ],
    "mounts": [
        "mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr",
        "fsopen", "fsconfig", "fsmount", "fspick", "swapon", "swapoff", "quotactl",
        "quotactl_fd", "sysfs", "ustat", "uselib",
    ],
    "kernel attack surface with a long record of escapes": [
        "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
        "io_uring_register", "add_key", "request_key", "keyctl", "kcmp", "lookup_dcookie",
        "fanotify_init",
    ],
    "the machine": [
        "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module",
        "delete_module", "create_module", "query_module", "get_kernel_syms", "settimeofday",
        "clock_settime", "acct", "iopl", "ioperm", "syslog", "sethostname", "setdomainname",
        "vhangup", "nfsservctl", "_sysctl", "afs_syscall", "getpmsg", "putpmsg", "security",
        "tuxcall", "vserver",
    ],
    "memory policy of the host": [
        "mbind", "set_mempolicy", "set_mempolicy_home_node", "get_mempolicy",
        "migrate_pages", "move_pages",
    ],
    "handles that skip path checks": [
        "open_by_handle_at", "pidfd_getfd", "process_madvise",
    ],
}  # fmt: skip

_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone(2) takes
_ENOSYS = 38
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_FAMILIES = (1, 2, 10, 16)  # UNIX, INET, INET6, NETLINK


@functools.cache
def profile() -> str:
    """The filter as the engine's JSON."""
    conditional = {"clone", "personality", "socket"}
    rules: list[dict[str, Any]] = [
        {"names": [name for name in KNOWN if name not in conditional], "action": "SCMP_ACT_ALLOW"},
        _when("clone", 0, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ", value_two=0),
        # The C library falls back to clone(2), whose flags can be looked at, when clone3 is "not
        # there".
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        *(_when("personality", 0, value, "SCMP_CMP_EQ") for value in _PERSONALITIES),
        *(_when("socket", 0, family, "SCMP_CMP_EQ") for family in _FAMILIES),
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": None},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
            ],
            "syscalls": rules,
        }
    )


def _when(
    name: str, index: int, value: int, operator: str, *, value_two: int = 0
) -> dict[str, Any]:
    condition = {"index": index, "value": value, "valueTwo": value_two, "op": operator}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition]}
