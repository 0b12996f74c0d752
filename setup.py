"""Builds the two extension modules of the one crate.

``mosaicbank._core`` links no libtorch and is always built. ``mosaicbank._engine`` links the
libtorch of the environment that mosaicbank is installed *into*, and is built when a torch of
the right version is found there. The rest of the metadata is in ``pyproject.toml``.

Environment:

``MOSAICBANK_ENGINE``
    ``auto`` (default): build ``_engine`` when torch is found; ``1``: fail when it is not;
    ``0``: never build it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools_rust import Binding, RustExtension, Strip

ROOT = Path(__file__).resolve().parent
# The only libtorch that tch 0.24 supports (its generated C++ follows one release's API).
TORCH = "2.11"

# Runs in the target environment's Python; its last line of output is JSON.
FIND_TORCH = """
import json
try:
    import torch
except Exception as error:
    found = {"error": f"{type(error).__name__}: {error}"}
else:
    found = {
        "version": torch.__version__,
        "dir": torch.__path__[0],
        "cxx11_abi": bool(torch._C._GLIBCXX_USE_CXX11_ABI),
    }
print(json.dumps(found))
"""


def crate_version() -> str:
    """The version in Cargo.toml: the only place where it is written."""
    manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', manifest, flags=re.MULTILINE)
    if found is None:
        raise SystemExit("Cargo.toml: expected a line 'version = \"...\"' in [package], got none")
    return found.group(1)


def find_torch() -> dict:
    """What torch is in the environment that we install into?

    Under pip's build isolation ``sys.executable`` is still the target environment's Python;
    what hides its packages is ``PYTHONPATH`` (and the hook that pip puts there), so a
    subprocess without it sees the torch that the installed package will run with.
    """
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", FIND_TORCH], env=env, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return {"error": done.stderr.strip() or f"exit status {done.returncode}"}
    return json.loads(lines[-1])


def why_no_engine(torch: dict) -> str | None:
    """Why ``_engine`` cannot be built with this torch; None when it can."""
    if "error" in torch:
        return f"torch cannot be imported by {sys.executable} ({torch['error']})"
    if not torch["version"].startswith(TORCH + "."):
        return f"expected torch {TORCH}.*, got torch {torch['version']}"
    if not Path(torch["dir"], "include", "torch", "csrc", "api", "include").is_dir():
        return f"{torch['dir']}: expected the C++ headers in include/, got none"
    return None


def libtorch_environment(torch: dict) -> dict[str, str]:
    """The variables from which the build script of torch-sys learns where libtorch is."""
    return {
        "LIBTORCH": torch["dir"],
        "LIBTORCH_INCLUDE": torch["dir"],
        "LIBTORCH_LIB": torch["dir"],
        "LIBTORCH_CXX11_ABI": "1" if torch["cxx11_abi"] else "0",
    }


def extension(name: str, features: list[str]) -> RustExtension:
    return RustExtension(
        f"mosaicbank.{name}",
        path="Cargo.toml",
        features=features,
        args=["--locked"],
        binding=Binding.PyO3,
        py_limited_api=True,
        debug=False,
        strip=Strip.Debug,
    )


def extensions() -> list[RustExtension]:
    wanted = os.environ.get("MOSAICBANK_ENGINE", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"MOSAICBANK_ENGINE: expected auto, 0 or 1, got {wanted!r}")
    built = [extension("_core", ["python"])]
    if wanted == "0":
        print("mosaicbank: MOSAICBANK_ENGINE=0, so _core only", file=sys.stderr)
        return built
    torch = find_torch()
    reason = why_no_engine(torch)
    if reason is None:
        # It would make torch-sys ask the Python on PATH, which has no torch under isolation.
        os.environ.pop("LIBTORCH_USE_PYTORCH", None)
        os.environ.update(libtorch_environment(torch))
        print(f"mosaicbank: _core, and _engine on torch {torch['version']}", file=sys.stderr)
        built.append(extension("_engine", ["python", "engine"]))
    elif wanted == "1":
        raise SystemExit(
            f"MOSAICBANK_ENGINE=1, but {reason}\n"
            f"  install it first: pip install 'torch=={TORCH}.*'; a build tool that makes an "
            "environment of its own needs --no-build-isolation"
        )
    else:
        print(
            f"mosaicbank: _core only: {reason}\n"
            f"  for the diffusion engine: pip install 'torch=={TORCH}.*', then install "
            "mosaicbank again",
            file=sys.stderr,
        )
    return built


# setup.py also runs for metadata alone; then looking for torch (an import) is a waste.
BUILDS = {"build", "build_ext", "build_rust", "bdist_wheel", "editable_wheel", "develop", "install"}

setup(
    version=crate_version(),
    rust_extensions=extensions() if BUILDS.intersection(sys.argv) else [extension("_core", [])],
    # abi3: one wheel for every Python from 3.9 on.
    options={"bdist_wheel": {"py_limited_api": "cp39"}},
)
