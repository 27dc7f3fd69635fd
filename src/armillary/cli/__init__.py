"""The command line: one thin file per verb.

A refusal is one line on stderr and exit status 2; a run that stopped on its own is 1; an interruption is 130.
"""

from __future__ import annotations

import errno
import sys
import warnings

from armillary import allocator
from armillary.refusal import ArmillaryWarning, Refusal

DISK_SAYS_NO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def _one_line(message: Warning | str, category: type[Warning], *where: object) -> None:
    """Our own warnings as a person reads them; those of libraries with where they came from."""
    origin = "" if issubclass(category, ArmillaryWarning) else f" ({category.__name__}, {where[0]}:{where[1]})"
    print(f"armillary: warning: {message}{origin}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """The entry of `armillary` and `python -m armillary`."""
    from armillary.cli.app import app
    from armillary.cli.screen import is_main

    allocator.keep_memory()
    warnings.showwarning = _one_line
    try:
        app(args=arguments)
    except Refusal as refusal:
        if is_main():
            print(f"armillary: {' '.join(str(refusal).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("armillary: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone: `armillary ... | head`
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno not in DISK_SAYS_NO:
            raise
        print(f"armillary: {error.filename}: {error.strerror}; what was saved is whole", file=sys.stderr)
        sys.exit(1)
