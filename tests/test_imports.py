"""What importing the packages costs, and which way the arrows between them run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "torchvision", "av", "decord", "moviepy", "numpy")


def _imports(path: Path) -> set[str]:
    """Dotted names of every module that `path` imports, at any depth of the code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", ["shots", "seedance", "unitime", "cli"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["shots", "seedance", "unitime"])
def test_every_public_name_resolves(package: str) -> None:
    module = __import__(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("shots", {"seedance", "unitime"}), ("seedance", {"unitime"}), ("unitime", {"seedance"})],
)
def test_arrows_run_one_way(package: str, forbidden: set[str]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in _imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert wrong == []


def test_only_the_guard_imports_torchvision_and_transformers() -> None:
    guard = ROOT / "shots" / "runtime" / "vision.py"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("shots", "seedance", "unitime")
        for path in (ROOT / package).rglob("*.py")
        if path != guard
        for name in _imports(path)
        if name.split(".")[0] in {"torchvision", "transformers"}
    ]
    assert wrong == []


def test_training_needs_no_video_library() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in ("seedance/training", "shots/runtime")
        for path in (ROOT / folder).rglob("*.py")
        for name in _imports(path)
        if name.split(".")[0] in {"av", "decord", "moviepy", "gradio"}
    ]
    assert wrong == []
