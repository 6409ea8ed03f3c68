"""One boundary for errors: every kind that files, networks and machines cause becomes one line for the user.

What is left are omma's own mistakes, which keep their traceback.
"""

import contextlib
import errno
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from omma.core.caches import cache_folder
from omma.core.errors import install_command, message

DAMAGED = "a file is damaged or not what its name says: make or download it again"
MEMORY = (
    "out of memory: choose a smaller --batch-size, --model or --image-size, fewer --workers, or a machine "
    "with more"
)
FILES = "too many open files: raise the limit (ulimit -n 4096), or use fewer --workers"
PROCESSES = "no more threads or processes can be started: raise the limit (ulimit -u), or use fewer --workers"
WORKER = (
    "a process that loads data has ended, killed by the system if it ran out of memory: the same command "
    "resumes; use fewer --workers"
)
GPU = "the GPU failed: the same command resumes; --device cpu does without it"
REMOTE = "a remote store or the network failed: check address, access and connection, then repeat the command"
GROUP = "the processes cannot talk to each other: check MASTER_ADDR, MASTER_PORT and the network between them"
NESTED = "a file is nested too deeply: make or download it again"

# Packages whose errors are about the network or the store at the other end
_NETWORK = frozenset(
    {"adlfs", "aiobotocore", "aiohttp", "azure", "boto3", "botocore", "fsspec", "gcsfs", "google", "http"}
    | {"httpcore", "httpx", "huggingface_hub", "paramiko", "requests", "s3fs", "ssl", "urllib3"}
)
# Errors about the bytes of a file, by package, or by their full names
_DATA = frozenset(
    {
        "PIL",
        "binascii",
        "json",
        "lzma",
        "pickle",
        "pyarrow",
        "safetensors",
        "tarfile",
        "tifffile",
        "zipfile",
        "zlib",
    }
    | {"_pickle", "_lzma", "safetensors_rust"}
)
_DATA_NAMES = frozenset({"EOFError", "struct.error", "gzip.BadGzipFile"})
# RuntimeErrors and the like differ in their messages alone
_MESSAGES: tuple[tuple[str, str], ...] = (
    (r"out of memory|can't allocate memory|std::bad_alloc|Unable to allocate|ALLOC_FAILED", MEMORY),
    (r"[Cc]annot allocate memory|failed to map segment", MEMORY),
    (r"DataLoader worker .*(exited|killed)|process pool was terminated|ProcessExited", WORKER),
    (r"Too many open files|ancdata", FILES),
    (r"can't start new thread|Resource temporarily unavailable", PROCESSES),
    (r"CUDA error|CUDNN|CUBLAS|cuBLAS|NCCL|no kernel image|HIP error", GPU),
    (r"not (currently )?implemented for", "this device lacks an operation: use --device cpu"),
    (r"PytorchStreamReader|unexpected pos|[Ii]nvalid magic number|[Cc]orrupt|unpickl", DAMAGED),
)
MOST_TEXT = 1000  # characters of a message
_FULL = re.compile(
    r"No space left on device|os error 28|inline_container\.cc|PytorchStreamWriter failed|[Dd]isk quota"
)
_REMEDIES = {
    errno.EACCES: "give a path that you may read, or write to",
    errno.EPERM: "give a path that you may read, or write to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file",
    errno.EEXIST: "choose another path",
    errno.EROFS: "choose a folder that can be written",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose a disk that holds files so large",
    errno.EIO: "the disk or its connection failed: check it, then repeat the command",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "a link leads to itself: remove it",
    getattr(errno, "ESTALE", errno.EIO): "the file was replaced or its server restarted: repeat the command",
    errno.ETIMEDOUT: "check the connection, then repeat the command",
    errno.ECONNREFUSED: "check the connection, then repeat the command",
    errno.ECONNRESET: "check the connection, then repeat the command",
    errno.EAGAIN: PROCESSES,
}


@contextlib.contextmanager
def translated(where: str = "") -> Iterator[None]:
    """Raise errors of every expected kind as ValueError or OSError in one line; others are left as they are.

    Names from files cannot break the line, nor steer a terminal, nor fill it.
    where: the file or source at work, which begins the line of errors that name none.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and error.args == (str(error),):
            error.args = (message(error)[:MOST_TEXT],)
        # `dist.process_group` knows what became of the other processes
        text = None if _says_where(error) or _of_processes(error) else explain(error)
        if text is None:
            raise
        raise ValueError(f"{where}: {text}" if where else text) from error


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the disk in errors for want of space while `path` is written; libraries raise them as anything."""
    try:
        yield
    except Exception as error:
        if _too_large(error):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path)) from error
        if not _disk_full(error):
            raise
        free = _free(str(Path(path).parent))  # torch does not say why a write has failed
        full = isinstance(error, OSError) or "space" in str(error) or free is None or free < 64 << 20
        number = errno.ENOSPC if full else errno.EFBIG if _limited() else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def explain(error: BaseException) -> str | None:
    """The line that the user reads: what, where, remedy. None for what only a mistake of omma's can cause."""
    if (
        isinstance(error, (OSError, ImportError))
        and getattr(error, "errno", None) is None
        and _no_memory(error)
    ):
        return MEMORY
    if isinstance(error, OSError):
        return _of_the_system(error)
    names = [f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.") for cls in type(error).__mro__]
    packages = {name.partition(".")[0] for name in names[:-1]}
    if _of_processes(error):
        return _with_reason(GROUP, error)
    known: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: isinstance(error, MemoryError) or "torch.OutOfMemoryError" in names, MEMORY),
        (lambda: isinstance(error, RecursionError) and not _is_own(error), NESTED),
        (lambda: bool(packages & _NETWORK), REMOTE),
        (lambda: bool(packages & _DATA or _DATA_NAMES & {*names}) or _within(error, "pyarrow"), DAMAGED),
    )
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        name = message(ValueError(str(error.object)))[:100]
        return (
            f"a name is not valid UTF-8 ({name}): rename it, or set PYTHONUTF8=1 if the locale is not UTF-8"
        )
    if isinstance(error, UnicodeError):
        return f"text is not UTF-8 ({message(error)}): save the file as UTF-8"
    for holds, text in known:
        if holds():
            return _with_reason(text, error)
    if isinstance(error, ValueError):
        return message(error)
    if isinstance(error, ImportError):
        return _of_an_import(error)
    if isinstance(error, (RuntimeError, NotImplementedError, MemoryError)) or "ProcessException" in str(
        names
    ):
        return _by_message(error)
    return None


def _with_reason(text: str, error: BaseException) -> str:
    """The line with the library's own words, shortened, between what happened and the remedy."""
    what, _, remedy = text.partition(": ")
    own = message(error)[:200]
    return text if own == type(error).__name__ or not remedy else f"{what} ({own}): {remedy}"


def _by_message(error: BaseException) -> str | None:
    text = str(error)
    if _disk_full(error):
        if "shm" in text or "shared memory" in text:
            shared = _space("/dev/shm")
            return f"shared memory is full ({shared}): enlarge it (docker --shm-size), or give --workers 0"
        return f"no space left on a disk ({_disks()}): make room, then repeat the command"
    for pattern, explained in _MESSAGES:
        if re.search(pattern, text):
            return _with_reason(explained, error)
    return None


def _of_the_system(error: OSError) -> str:
    """An OSError: its file, the system's words, the remedy."""
    if _disk_full(error):
        where = f"{error.filename}: no space left, {_space(error.filename)}" if error.filename else (
            f"no space left on a disk ({_disks()})"
        )  # fmt: skip
        return f"{where}: make room or choose another folder, then repeat the command"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return FILES
    if error.errno == errno.ENOMEM:
        return MEMORY
    if error.errno is None or error.strerror is None:
        return message(error)
    files = " to ".join(str(name) for name in (error.filename, error.filename2) if name)
    what = f"{files}: {error.strerror.lower()}" if files else error.strerror.lower()
    remedy = _REMEDIES.get(error.errno)
    return f"{what}; {remedy}" if remedy else what


def _no_memory(error: BaseException | None) -> bool:
    """Whether memory was what a library could not be loaded for; that may stand in the error's cause."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search(_MESSAGES[1][0], str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_where(error: BaseException) -> bool:
    """Whether it is a ValueError of omma's or an OSError of Python's; those of libraries name no file."""
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    foreign = isinstance(error, UnicodeError) or packages & (_DATA | _NETWORK)
    return isinstance(error, (ValueError, OSError)) and not foreign


def _of_processes(error: BaseException) -> bool:
    """Whether it is about the connection between the processes of a run."""
    is_group = any(cls.__name__ == "DistError" for cls in type(error).__mro__)
    return is_group or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _of_an_import(error: ImportError) -> str | None:
    package = (error.name or "").partition(".")[0]
    if package == "omma":
        return None
    how = f": {install_command(package=package)}" if package else ""
    return f"{package or 'a package'} is missing or too old ({message(error)}){how}"


def _too_large(error: BaseException) -> bool:
    """Whether a file would exceed the largest size; libraries say so in their own ways."""
    return getattr(error, "errno", None) == errno.EFBIG or "(os error 27)" in str(error)


def _disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    text = str(error)
    return not isinstance(error, ValueError) and "StreamReader" not in text and bool(_FULL.search(text))


def _space(path: str | os.PathLike[str]) -> str:
    """How much is free on the disk that holds `path`, which may not exist."""
    folder = Path(path).absolute()
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(place).free / 1e6:,.1f} MB are free on its disk"
    return "its disk cannot be read"


def _disks() -> str:
    """The folders that a command writes to and whose disks are nearly full; all of them if none is."""
    import tempfile

    folders: list[str] = [os.getcwd(), str(cache_folder())]
    with contextlib.suppress(OSError):  # no folder for temporary files can be written
        folders.append(tempfile.gettempdir())
    full = [folder for folder in folders if (free := _free(folder)) is not None and free < 64 << 20]
    return "; ".join(f"{folder}: {_space(folder)}" for folder in full or folders)


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _limited() -> bool:
    """Whether files may have a certain size at most (ulimit -f)."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _within(error: BaseException, package: str) -> bool:
    """Whether the error was raised in this package's code; compiled parts have .pxi files."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and (f"{package}/" in frames[-1].filename or frames[-1].filename.endswith(".pxi"))


def _is_own(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or str(Path(__file__).parents[1]) in frames[-1].filename
