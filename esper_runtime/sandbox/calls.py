"""Numbers of Linux system calls by architecture, and the lists that the filters are made of."""

import platform
import sys
from typing import Final

from esper_runtime.contracts.errors import SandboxError

# From the kernel's unistd.h: x86-64 / the generic table (aarch64); "-": not there.
_TABLE: Final = """
accept=43/202 accept4=288/242 access=21/- acct=163/89 add_key=248/217 adjtimex=159/171 alarm=37/-
arch_prctl=158/- bind=49/200 bpf=321/280 brk=12/214 capset=126/91 chdir=80/49 chmod=90/- chown=92/-
chroot=161/51 clock_adjtime=305/266 clock_getres=229/114 clock_gettime=228/113 clock_nanosleep=230/115
clock_settime=227/112 clone=56/220 clone3=435/435 close=3/57 connect=42/203 copy_file_range=326/285
creat=85/- delete_module=176/106 dup=32/23 dup2=33/- dup3=292/24 epoll_create1=291/20 epoll_pwait=281/22
epoll_wait=232/- eventfd2=290/19 execve=59/221 execveat=322/281 exit=60/93 exit_group=231/94
faccessat=269/48 faccessat2=439/439 fadvise64=221/223 fallocate=285/47 fanotify_init=300/262 fchmodat=268/53
fchownat=260/54 fcntl=72/25 fdatasync=75/83 finit_module=313/273 flock=73/32 fork=57/- fsconfig=431/431
fsetxattr=190/7 fsmount=432/432 fsopen=430/430 fspick=433/433 fstat=5/80 fstatfs=138/44 fsync=74/82
ftruncate=77/46 futex=202/98 getcpu=309/168 getcwd=79/17 getdents64=217/61 getegid=108/177 geteuid=107/175
getgid=104/176 getgroups=115/158 getpgid=121/155 getpgrp=111/- getpid=39/172 getppid=110/173
getrandom=318/278 getresgid=120/150 getresuid=118/148 getrlimit=97/163 getrusage=98/165 getsid=124/156
gettid=186/178 gettimeofday=96/169 getuid=102/174 init_module=175/105 inotify_add_watch=254/27
inotify_init1=294/26 io_uring_enter=426/426 io_uring_register=427/427 io_uring_setup=425/425 ioctl=16/29
ioperm=173/- iopl=172/- kcmp=312/272 kexec_file_load=320/294 kexec_load=246/104 keyctl=250/219 kill=62/129
lchown=94/- link=86/- linkat=265/37 listen=50/201 lookup_dcookie=212/18 lseek=8/62 lsetxattr=189/6 lstat=6/-
madvise=28/233 mbind=237/235 membarrier=324/283 memfd_create=319/279 memfd_secret=447/447 mincore=27/232
mkdir=83/- mkdirat=258/34 mknod=133/- mknodat=259/33 mlock=149/228 mlockall=151/230 mmap=9/222 mount=165/40
mount_setattr=442/442 move_mount=429/429 mprotect=10/226 mq_open=240/180 mremap=25/216 msgget=68/186
msgsnd=69/189 munmap=11/215 name_to_handle_at=303/264 nanosleep=35/101 newfstatat=262/- nfsservctl=180/42
open=2/- open_by_handle_at=304/265 open_tree=428/428 openat=257/56 openat2=437/437 pause=34/-
perf_event_open=298/241 personality=135/92 pidfd_getfd=438/438 pidfd_open=434/434 pidfd_send_signal=424/424
pipe=22/- pipe2=293/59 pivot_root=155/41 poll=7/- ppoll=271/73 prctl=157/167 pread64=17/67 prlimit64=302/261
process_madvise=440/440 process_vm_readv=310/270 process_vm_writev=311/271 pselect6=270/72 ptrace=101/117
pwrite64=18/68 quotactl=179/60 read=0/63 readlink=89/- readlinkat=267/78 readv=19/65 reboot=169/142
recvfrom=45/207 recvmmsg=299/243 recvmsg=47/212 removexattr=197/14 rename=82/- renameat=264/38
renameat2=316/276 request_key=249/218 restart_syscall=219/128 rmdir=84/- rseq=334/293 rt_sigaction=13/134
rt_sigprocmask=14/135 rt_sigqueueinfo=129/138 rt_sigreturn=15/139 rt_tgsigqueueinfo=297/240
sched_getaffinity=204/123 sched_getparam=143/121 sched_getscheduler=145/120 sched_setaffinity=203/122
sched_setattr=314/274 sched_setscheduler=144/119 sched_yield=24/124 seccomp=317/277 select=23/-
semget=64/190 semop=65/193 sendfile=40/71 sendmmsg=307/269 sendmsg=46/211 sendto=44/206
set_mempolicy=238/237 set_robust_list=273/99 set_tid_address=218/96 setdomainname=171/162 setfsgid=123/152
setfsuid=122/151 setgid=106/144 setgroups=116/159 sethostname=170/161 setitimer=38/103 setns=308/268
setpgid=109/154 setpriority=141/140 setregid=114/143 setresgid=119/149 setresuid=117/147 setreuid=113/145
setrlimit=160/164 setsid=112/157 settimeofday=164/170 setuid=105/146 setxattr=188/5 shmat=30/196
shmctl=31/195 shmget=29/194 sigaltstack=131/132 signalfd4=289/74 socket=41/198 socketpair=53/199
splice=275/76 stat=4/- statfs=137/43 statx=332/291 swapoff=168/225 swapon=167/224 symlink=88/-
symlinkat=266/36 sync=162/81 syncfs=306/267 sysinfo=99/179 syslog=103/116 tee=276/77 tgkill=234/131
time=201/- timer_create=222/107 timerfd_create=283/85 times=100/153 tkill=200/130 truncate=76/45
umask=95/166 umount2=166/39 uname=63/160 unlink=87/- unlinkat=263/35 unshare=272/97 userfaultfd=323/282
utimensat=280/88 vfork=58/- vhangup=153/58 vmsplice=278/75 write=1/64 writev=20/66
"""
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What code that computes needs once everything is imported. All else is refused.
COMPUTING: Final = _words(
    """
    read write close fstat newfstatat stat lstat statx lseek mmap mprotect munmap mremap madvise brk
    pread64 pwrite64 readv writev rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
    restart_syscall futex sched_yield nanosleep clock_nanosleep clock_gettime clock_getres
    gettimeofday time getpid getppid gettid exit exit_group sched_getaffinity sched_getparam
    sched_getscheduler getrandom sysinfo uname getcwd getdents64 readlink readlinkat access
    faccessat faccessat2 statfs fstatfs getrlimit rseq set_robust_list set_tid_address getrusage
    times getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid fcntl
    dup dup2 dup3 poll ppoll select pselect6 arch_prctl fadvise64 membarrier getcpu mincore
    ftruncate
    """
)

# Calls that name a file: where the path stands (argument of the folder's descriptor or None, of the path).
OPENING: Final = {"open": (None, 0), "openat": (0, 1)}
CHANGING_FILES: Final[dict[str, tuple[tuple[int | None, int], ...]]] = {
    "mkdir": ((None, 0),),
    "mkdirat": ((0, 1),),
    "unlink": ((None, 0),),
    "unlinkat": ((0, 1),),
    "rmdir": ((None, 0),),
    "rename": ((None, 0), (None, 1)),
    "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)),
    "chmod": ((None, 0),),
    "fchmodat": ((0, 1),),
    "utimensat": ((0, 1),),
}

# What a compiler has no business with; it may fork, execute and open files where Landlock lets it.
NEVER: Final = _words(
    """
    ptrace process_vm_readv process_vm_writev process_madvise kcmp unshare setns mount umount2
    pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr bpf
    perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key
    keyctl reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff
    acct quotactl settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname iopl
    ioperm open_by_handle_at name_to_handle_at fanotify_init syslog vhangup lookup_dcookie
    nfsservctl mknod mknodat pidfd_getfd connect bind listen accept accept4 memfd_secret
    """
)


def architecture() -> tuple[int, int]:
    """Column of the table and AUDIT_ARCH value of this machine.

    Raises:
        SandboxError: where the sandbox knows no system call numbers for it.
    """
    if sys.platform != "linux":
        raise SandboxError(
            f"the sandbox needs Linux, whose system calls it can refuse; this is {sys.platform}"
        )
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxError(
            f"the sandbox has no system call table for {machine!r}; it runs on {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[machine]


def numbers() -> dict[str, int]:
    """Number of each known call on this machine."""
    column = architecture()[0]
    found = {}
    for entry in _TABLE.split():
        name, _, values = entry.partition("=")
        value = values.split("/")[column]
        if value != "-":
            found[name] = int(value)
    return found


def names() -> dict[int, str]:
    """Name of each known number on this machine."""
    return {number: name for name, number in numbers().items()}
