"""The package as a user gets it: what importing it does, its command, its wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Put in front of a script: what an environment without torch, or with another one, looks like.
NO_TORCH = "import sys; sys.modules['torch'] = None\n"
OLD_TORCH = (
    "import sys, types; t = types.ModuleType('torch'); t.__version__ = '2.10.1+cpu'\n"
    "sys.modules['torch'] = t\n"
)
NO_ENGINE = "import sys; sys.modules['mosaicbank._engine'] = None\n"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parent,
        check=False,
    )


def run(script: str) -> str:
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli(before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(
        "-c", f"{before}import sys\nfrom mosaicbank._cli import main\nsys.exit(main({arguments!r}))"
    )


# --- importing ---------------------------------------------------------------------------------


def test_importing_imports_neither_torch_nor_detectron2_nor_the_engine():
    script = (
        "import sys, mosaicbank, mosaicbank.masks; mosaicbank.Recipe(steps=3); mosaicbank.Region\n"
        "print(mosaicbank.__version__, [m for m in ('torch', 'detectron2', 'mosaicbank._engine')"
        " if m in sys.modules])"
    )
    assert run(script).split(maxsplit=1)[1].strip() == "[]"
    assert run(NO_TORCH + script)


def test_the_engine_comes_when_it_is_used():
    out = run(
        "import sys, mosaicbank; print(mosaicbank.Generator.__name__, 'torch' in sys.modules)"
    )
    assert out.split() == ["Generator", "True"]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (NO_TORCH, ["torch 2.11", "pip install 'torch==2.11.*'"]),
        (OLD_TORCH, ["expected torch 2.11.*, got torch 2.10.1+cpu", "pip install"]),
        (NO_ENGINE, ["installed without its diffusion engine", "pip install"]),
    ],
    ids=["no torch", "another torch", "no engine"],
)
def test_without_the_engine_the_message_says_how_to_get_it(before, words):
    script = (
        "import mosaicbank\ntry:\n    mosaicbank.Generator\n"
        "except ImportError as error:\n    print(error)\nelse:\n    raise SystemExit('no error')"
    )
    out = run(before + script)
    for word in words:
        assert word in out
    done = cli(before, "generate", "--out", "somewhere")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_names():
    import mosaicbank

    assert set(mosaicbank.__all__) <= set(dir(mosaicbank))
    for name in mosaicbank.__all__:
        assert getattr(mosaicbank, name) is not None
    with pytest.raises(AttributeError, match="generater"):
        mosaicbank.generater  # noqa: B018


def test_one_version():
    import mosaicbank

    cargo = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert cargo is not None
    assert mosaicbank.__version__ == metadata.version("mosaicbank") == cargo.group(1)


def test_a_recipe_holds_what_it_is_given():
    import copy
    import pickle

    from mosaicbank import Recipe

    window = {"kind": "gaussian", "variance": 0.02}
    recipe = Recipe(steps=20, refine=None, window=window)
    window["variance"] = 0.5
    assert recipe["window"]["variance"] == 0.02
    recipe["window"]["variance"] = 0.5
    assert recipe["window"]["variance"] == 0.02
    assert dict(recipe) == {
        "steps": 20,
        "refine": None,
        "window": {"kind": "gaussian", "variance": 0.02},
    }
    assert recipe.replace(steps=21)["steps"] == 21
    assert recipe["steps"] == 20
    assert recipe != recipe.replace(steps=21)
    assert recipe == Recipe(window=recipe["window"], refine=None, steps=20)
    assert hash(recipe) == hash(Recipe(window=recipe["window"], refine=None, steps=20))
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe
    with pytest.raises(AttributeError):
        recipe.steps = 3
    with pytest.raises(TypeError):
        Recipe(steps=object())
    # A path into a list, and a key of version 0.1.
    assert dict(Recipe(**{"checks.size.min_area": 0.1})) == {"checks.size.min_area": 0.1}
    assert Recipe(filter={"min_area": 0.1}).to_json() == '{"filter": {"min_area": 0.1}}'
    with pytest.raises(ValueError, match=r"masks, refine, checks, keep.*'check\.size'"):
        Recipe(**{"check.size": {}})


# --- the command -------------------------------------------------------------------------------


def test_help_needs_no_torch():
    done = cli(NO_TORCH, "--help")
    assert done.returncode == 0, done.stderr
    for command in ("generate", "export", "merge"):
        assert command in done.stdout
    again = python("-m", "mosaicbank", "--help")
    assert again.returncode == 0
    assert again.stdout == done.stdout


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("mosaicbank")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert metadata.version("mosaicbank") in done.stdout


def test_wrong_usage_is_status_2():
    for arguments in (["nonsense"], ["export", "--nonsense"], []):
        done = cli("", *arguments)
        assert done.returncode == 2, (arguments, done)
        assert "Traceback" not in done.stderr
        assert done.stderr


def test_ctrl_c_is_status_130_without_a_traceback():
    interrupted = (
        "import types, mosaicbank._loader as loader\n"
        "def interrupted(argv): raise KeyboardInterrupt\n"
        "loader.core = lambda: types.SimpleNamespace(main=interrupted)\n"
    )
    done = cli(interrupted, "export")
    assert done.returncode == 130
    assert done.stderr == ""


def test_every_command_is_sent_to_the_module_that_has_it():
    """Both modules list the same commands; those that need the engine are sent to `_engine`."""
    from mosaicbank import _cli, _loader

    def listed(module: str) -> set[str]:
        script = f"import sys\nfrom mosaicbank import _loader\n_loader.{module}().main(['--help'])"
        return set(re.findall(r"^  ([a-z][a-z-]+) ", run(script), re.MULTILINE)) - {"help"}

    commands = listed("core")
    assert commands == listed("engine")
    assert commands >= {"generate", "export", "merge"}
    assert commands >= _cli.ENGINE_COMMANDS
    script = (
        f"{NO_TORCH}import json\nfrom mosaicbank._cli import main\n"
        f"status = {{c: main([c, '--help']) for c in {sorted(commands)}}}\n"
        "print(json.dumps(status), file=sys.stderr)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stderr.splitlines()[-1])
    for command in commands:
        # In this process: a new one for each would only wait for torch.
        needs_engine = command in _cli.ENGINE_COMMANDS
        assert status[command] == (2 if needs_engine else 0), command
        assert (_loader.engine() if needs_engine else _loader.core()).main([command, "--help"]) == 0


# --- wheels ------------------------------------------------------------------------------------


def build_wheel(target: Path, *options: str, **environment: str) -> zipfile.ZipFile:
    done = python(
        *("-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(target), *options, str(ROOT)),
        **environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    version = metadata.version("mosaicbank")
    assert wheel.name.startswith(f"mosaicbank-{version}-cp39-abi3-")
    return zipfile.ZipFile(wheel)


def modules(wheel: zipfile.ZipFile) -> set[str]:
    return {Path(name).name for name in wheel.namelist() if name.endswith(".so")}


@pytest.mark.skipif(
    os.environ.get("MOSAICBANK_TEST_OFFLINE") == "1", reason="fetches setuptools for the build"
)
def test_the_wheel_under_build_isolation(tmp_path):
    """As `pip install .` builds it; `make install` builds without isolation."""
    wheel = build_wheel(tmp_path, MOSAICBANK_ENGINE="1")
    assert modules(wheel) == {"_core.abi3.so", "_engine.abi3.so"}
    names = set(wheel.namelist())
    package = ROOT / "python" / "mosaicbank"
    for source in [*package.rglob("*.pyi"), package / "py.typed"]:
        assert source.relative_to(package.parent).as_posix() in names
    # The sources of the package and no others: no tests, examples or benchmarks.
    sources = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mosaicbank"}
    for model in (package / "models").rglob("*.*"):
        assert model.is_dir() or model.relative_to(package.parent).as_posix() in names


def built_modules(answer: str, engine: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py up to the build, where the environment's Python answers so about torch."""
    script = (
        "import runpy, subprocess, sys, setuptools\n"
        f"class Done: returncode = 0; stderr = ''; stdout = {answer!r}\n"
        "subprocess.run = lambda *a, **k: Done\n"
        "setuptools.setup = lambda **k: print(*(e.name for e in k['rust_extensions']))\n"
        "sys.argv = ['setup.py', 'bdist_wheel']\n"
        f"runpy.run_path({str(ROOT / 'setup.py')!r})"
    )
    return python("-c", script, MOSAICBANK_ENGINE=engine)


def test_what_is_built_where():
    import torch

    found = {"version": torch.__version__, "dir": torch.__path__[0], "cxx11_abi": True}
    right, old = json.dumps(found), json.dumps({**found, "version": "2.10.0"})
    none = json.dumps({"error": "No module named 'torch'"})
    both, core = "mosaicbank._core mosaicbank._engine", "mosaicbank._core"
    for answer, engine, expected in [
        (right, "auto", both),
        (right, "1", both),
        (right, "0", core),
        (old, "auto", core),
        (none, "auto", core),
    ]:
        done = built_modules(answer, engine)
        assert done.stdout.strip() == expected, (answer, engine, done)
    assert "expected torch 2.11.*, got torch 2.10.0" in built_modules(old, "auto").stderr
    for answer, engine, message in [
        (none, "1", "MOSAICBANK_ENGINE=1, but torch cannot be imported"),
        (old, "1", "MOSAICBANK_ENGINE=1, but expected torch 2.11.*, got torch 2.10.0"),
        (right, "maybe", "expected auto, 0 or 1, got 'maybe'"),
    ]:
        done = built_modules(answer, engine)
        assert done.returncode != 0
        assert message in done.stderr


def test_the_source_distribution_has_what_cargo_needs(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    manifest = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version=1"],
        capture_output=True,
        text=True,
        cwd=unpacked,
        check=False,
    )
    assert manifest.returncode == 0, manifest.stderr
    for source in (ROOT / "src").rglob("*.rs"):
        assert (unpacked / source.relative_to(ROOT)).is_file(), source
