"""Makes what is published, checks it, and tries it: `make release`, or `python -m tests.release`.

The sdist, and the wheel from it, are built into `dist/`. The wheel has the files of the package as they are in this
tree, byte for byte, so what the whole suite shows of the tree goes for the wheel. It is installed for each Python that
it is for, with the newest allowed versions of what it depends on, and once with the oldest; and a short suite imports
it from there.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from tests.serving import ROOT, environment

BIN = Path(sys.executable).parent
DIST = ROOT / "dist"

SETS = [("3.11", "lowest-direct"), ("3.12", "highest"), ("3.13", "highest")]
"""Each Python with the versions of the dependencies that it is tried with, in the words of `uv`."""

SUITE = [
    "tests/test_aio.py",
    "tests/test_cluster.py::test_a_node_far_behind_gets_a_snapshot",
    "tests/test_http_serve.py::test_one_node",
]
"""Nodes that are alone, in a cluster, used by coroutines, and served over HTTP by the command."""


def main() -> int:
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    wheel, sdist = next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))
    run(BIN / "twine", "check", "--strict", wheel, sdist)
    check_wheel(wheel)
    check_sdist(sdist)
    print(f"{wheel.name}, {sdist.name}: contents and metadata are right")
    return max([attempt(version, resolution, wheel) for version, resolution in SETS])


def run(*command: str | Path) -> None:
    """Run a command to its end; if it fails, print what it said."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"{' '.join(map(str, command))} failed with {done.returncode}")


def sources() -> dict[str, bytes]:
    """The files of the package in this tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "replidict"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name: (ROOT / name).read_bytes() for name in listed.stdout.split("\0") if name}


def check_wheel(wheel: Path) -> None:
    """The wheel has the package as it is here, nothing else, and says what it is."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    package = {name: data for name, data in held.items() if not name.split("/")[0].endswith(".dist-info")}
    expected = sources()
    assert package.keys() == expected.keys(), sorted(package.keys() ^ expected.keys())
    assert package == expected, [name for name in package if package[name] != expected[name]]
    assert "replidict/py.typed" in package
    info = {name.split("/", 1)[1]: data for name, data in held.items() if name not in package}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"} == set(info), sorted(info)
    assert b"replidict = replidict.command.main:main" in info["entry_points.txt"]
    assert b"Root-Is-Purelib: true" in info["WHEEL"]
    check_metadata(BytesParser().parsebytes(info["METADATA"]))


def check_metadata(said: Message) -> None:
    """Name, version, license, Python and dependencies are told."""
    version: dict[str, str] = {}
    exec((ROOT / "replidict" / "release.py").read_text(), version)
    assert (said["Name"], said["Version"]) == ("replidict", version["__version__"])
    assert (said["License-Expression"], said["Requires-Python"]) == ("MIT", ">=3.11")
    assert said["Description-Content-Type"] == "text/markdown"
    classifiers = said.get_all("Classifier", [])
    assert [f"Programming Language :: Python :: {each}" for each, _ in SETS] == [
        each for each in classifiers if "Python :: 3." in each
    ]
    needed = [each for each in said.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert all(any(bound in each for bound in (">=", "==")) for each in needed), needed


def check_sdist(sdist: Path) -> None:
    """The sdist has what is needed to build, test and read the project, and nothing that git does not know."""
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    known = set(listed.stdout.split("\0")) - {""}
    assert held - known == {"PKG-INFO"}, sorted(held - known)
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "pyproject.toml", "mkdocs.yml", *sources()}
    assert wanted <= held, sorted(wanted - held)


def attempt(version: str, resolution: str, wheel: Path) -> int:
    """Install the wheel for a Python, with such versions, and run the short suite; its exit status."""
    python = find_python(version)
    if python is None:
        print(f"skipped: Python {version} is not on this machine")
        return 0
    with tempfile.TemporaryDirectory(prefix="replidict-release-") as folder:
        there = Path(folder, "venv")
        pip: list[str | Path] = ["pip", "install", "--quiet", "--python", there]
        uv("venv", "--quiet", "--no-python-downloads", "--python", python, there)
        uv(*pip, "--resolution", resolution, "--requirement", ROOT / "pyproject.toml", "--extra", "serve")
        uv(*pip, "--no-deps", wheel)
        uv(*pip, "--group", f"{ROOT / 'pyproject.toml'}:smoke")
        tree = Path(folder, "tree")
        tree.mkdir()
        for name in ("tests", "examples", "docs"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree)
        settings = environment({}) | {"PYTHONPATH": str(tree)}
        where = "import replidict, sysconfig; assert replidict.__file__.startswith(sysconfig.get_path('purelib'))"
        subprocess.run([there / "bin" / "python", "-c", where], cwd=tree, env=settings, check=True)
        suite: list[str | Path] = [there / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", *SUITE]
        done = subprocess.run(suite, cwd=tree, env=settings, capture_output=True, text=True, check=False)
        print(f"Python {version}, {resolution} versions:\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode


def uv(*arguments: str | Path) -> None:
    run(BIN / "uv", *arguments)


def find_python(version: str) -> Path | None:
    """A Python of this version: this one, one on the path, or one of pyenv's."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    candidates = [
        sys.executable,
        shutil.which(f"python{version}"),
        *glob.glob(f"{pyenv}/versions/{version}.*/bin/python"),
    ]
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return Path(candidate)
    return None


if __name__ == "__main__":
    sys.exit(main())
