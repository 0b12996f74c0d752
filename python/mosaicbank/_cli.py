"""The console command ``mosaicbank``.

The commands are written in Rust (``src/cli``). This module only chooses the extension module:
commands that run the diffusion model are in ``_engine``, which needs torch in the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Optional

from mosaicbank import _loader

# The subcommands that need libtorch; every other one runs without torch being imported.
ENGINE_COMMANDS = frozenset({"bench", "engine", "generate", "prewarm", "reproduce"})

EXIT_NO_ENGINE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _command(argv: Sequence[str]) -> Optional[str]:
    """The subcommand's name: the first argument that is not an option."""
    return next((word for word in argv if not word.startswith("-")), None)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments without the program's name; None: those of this process.

    Returns:
        The status of the Rust command; 2 if a command needs the diffusion engine and it is not
        installed; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if _command(arguments) in ENGINE_COMMANDS:
            # `bench` starts an engine beside itself, with the Python that it runs in.
            os.environ["MOSAICBANK_PYTHON"] = sys.executable
            try:
                module = _loader.engine()
            except ImportError as error:
                print(f"mosaicbank: {error}", file=sys.stderr)
                return EXIT_NO_ENGINE
        else:
            module = _loader.core()
        return int(module.main(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
