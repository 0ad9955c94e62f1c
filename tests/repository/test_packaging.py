"""Wheel and sdist hold the whole tree, also when it was checked out without symlinks, as Windows does."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

NOT_PACKAGED = ("__pycache__", "*.pyc", "*.egg-info")
MAX_INSTALLED = 15


def settings(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def package_folders(root: Path) -> dict[str, Path]:
    """{package: folder} of every directory with an __init__.py, read off the tree alone."""
    result: dict[str, Path] = {}
    tops = {"palaestra": root / "src" / "palaestra"}
    tops |= {
        f"palaestra.{link.name}": root / link.name
        for link in tops["palaestra"].iterdir()
        if (root / link.name).is_dir()
    }
    for name, top in tops.items():
        for folder, subfolders, files in os.walk(top):  # follows no symlinks
            subfolders[:] = [sub for sub in subfolders if sub != "__pycache__"]
            if "__init__.py" in files:
                result[".".join([name, *Path(folder).relative_to(top).parts])] = Path(folder)
    return result


def packaged_files(root: Path) -> set[str]:
    """What a wheel must hold, as paths inside it: every file of every package folder but what stands for a link."""
    return {
        f"{package.replace('.', '/')}/{file.name}"
        for package, folder in package_folders(root).items()
        for file in folder.iterdir()
        if file.is_file() and file.suffix != ".pyc" and not (package == "palaestra" and (root / file.name).is_dir())
    }


def modules_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def build(kind: str, tree: Path, target: Path) -> Path:
    code = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(target)!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def windows_tree(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which each symlink is a text file that holds its target."""
    tree = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, tree / name)
    shutil.copytree(repository / "src", tree / "src", symlinks=True, ignore=shutil.ignore_patterns(*NOT_PACKAGED))
    for link in [path for path in (tree / "src" / "palaestra").iterdir() if path.is_symlink()]:
        target = os.readlink(link)
        assert target == f"../../{link.name}", "links are relative, one per root folder"
        link.unlink()
        link.write_text(target)
        shutil.copytree(repository / link.name, tree / link.name, ignore=shutil.ignore_patterns(*NOT_PACKAGED))
    return tree


@pytest.fixture(scope="module")
def wheel(windows_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", windows_tree, tmp_path_factory.mktemp("wheel"))


def test_the_explicit_package_list_equals_the_tree(repository: Path) -> None:
    listed = settings(repository)["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(package_folders(repository))


def test_every_root_package_has_its_link_and_its_line(repository: Path) -> None:
    mapping = settings(repository)["tool"]["setuptools"]["package-dir"]
    roots = {path.parent.name for path in repository.glob("*/__init__.py")}
    assert {name.partition(".")[2]: folder for name, folder in mapping.items()} == {
        "": "src/palaestra",
        **{name: name for name in roots},
    }
    for name in roots:
        link = repository / "src" / "palaestra" / name
        assert link.resolve() == (repository / name).resolve()


def test_a_wheel_holds_exactly_the_files_of_the_tree(windows_tree: Path, wheel: Path) -> None:
    assert modules_of(wheel) == packaged_files(windows_tree)


def test_data_files_are_in_the_wheel(repository: Path, wheel: Path) -> None:
    names = modules_of(wheel)
    recipes = {f"palaestra/learners/recipes/{path.name}" for path in repository.glob("learners/recipes/*.toml")}
    templates = {f"palaestra/cli/{path.name}" for path in repository.glob("src/palaestra/cli/*.html.j2")}
    assert "palaestra/learners/recipes/quickstart.toml" in recipes
    assert templates
    assert recipes | templates | {"palaestra/py.typed"} <= names
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, windows_tree: Path, tmp_path: Path) -> None:
    sdist = build("sdist", windows_tree, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    rebuilt = build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    assert modules_of(rebuilt) == modules_of(wheel)


def test_an_unpacked_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import palaestra, palaestra.core.errors, palaestra.learners.recipes as r, importlib.resources as i\n"
        "import gymnasium; gymnasium.make('CodeSandbox-v0').close()\n"
        "print(palaestra.core.errors.__file__, (i.files(r) / 'quickstart.toml').is_file(), sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "site" / "palaestra" / "core" / "errors.py"), "True"]


def test_the_core_install_stays_light(repository: Path) -> None:
    pending = [Requirement(text) for text in settings(repository)["project"]["dependencies"]]
    installed = {"palaestra"}
    while pending:
        requirement = pending.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in installed or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        installed.add(name)
        assert not requirement.extras, "count the packages of an extra before asking for it"
        pending += [Requirement(text) for text in metadata.requires(name) or []]
    assert len(installed) <= MAX_INSTALLED, sorted(installed)


def test_versions_are_pinned_in_one_place(repository: Path) -> None:
    project = settings(repository)["project"]
    requirements = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    assert [text for text in requirements if "==" in text] == []
    assert "torch==2.13.0" in (repository / "constraints.txt").read_text().splitlines()
    makefile = (repository / "Makefile").read_text()
    assert makefile.count("==") == makefile.count("'^torch==' constraints.txt"), "a version in the Makefile"


def test_the_version_is_stated_alike(repository: Path) -> None:
    import palaestra

    version = settings(repository)["project"]["version"]
    assert palaestra.__version__ == version == metadata.version("palaestra")
    assert f"## {version}" in (repository / "CHANGELOG.md").read_text()


def test_pyright_is_told_every_folder_because_it_follows_no_links(repository: Path) -> None:
    pyright = settings(repository)["tool"]["pyright"]
    roots = sorted(path.parent.name for path in repository.glob("*/__init__.py"))
    assert pyright["include"] == ["src/palaestra", *(f"src/palaestra/{name}" for name in roots)]
    assert {Path(name).name for name in pyright["strict"]} == {"core", "sandboxes", "rewards", "envs"}
