"""The house rules that a machine can hold: every module has its tests, and folder names are never imported."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "sdk": ROOT / "sdk/python/haltwire",
    "proxy": ROOT / "proxy/haltwire_proxy",
    "control": ROOT / "control/haltwire_control",
    "cli": ROOT / "cli/haltwire_cli",
}
EXCEPTED = {"__init__", "__main__"}
MODULES = [
    pytest.param(folder, module, id=f"{folder}/{module.relative_to(package)}")
    for folder, package in PACKAGES.items()
    for module in sorted(package.rglob("*.py"))
    if module.stem not in EXCEPTED
]
MAX_LINES = 400


@pytest.mark.parametrize(("folder", "module"), MODULES)
def test_every_module_has_its_test_file(folder, module):
    assert (ROOT / "tests" / folder / f"test_{module.stem}.py").is_file()


@pytest.mark.parametrize(("folder", "module"), MODULES)
def test_a_module_says_what_it_is_for_and_stays_small(folder, module):
    text = module.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_test_file_is_about_a_module(folder):
    modules = {m.values[1].stem for m in MODULES if m.values[0] == folder}
    tests = {t.stem.removeprefix("test_") for t in (ROOT / "tests" / folder).glob("test_*.py")}
    assert tests <= modules


def test_a_source_root_holds_its_package_and_nothing_beside_it():
    for package in PACKAGES.values():
        beside = {p.name for p in package.parent.iterdir() if p.name != "__pycache__"}
        assert beside == {package.name}


def test_pins_are_exact_and_of_other_peoples_packages():
    """A path or one of our own in constraints.txt would fail on every machine but the one it was made on."""
    lines = [
        x for x in (ROOT / "constraints.txt").read_text().splitlines() if x[:1] not in ("", "#")
    ]
    for line in lines:
        name, pinned, version = line.partition("==")
        assert pinned
        assert version
        assert "haltwire" not in name
        assert "/" not in line


def test_make_knows_what_the_readme_promises():
    for target in ("demo", "test", "check"):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
