"""What is released: dependencies in ranges, a lock that fits them, licences, the checks of artefacts."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from release import contents, third_party
from release.audit import verdict
from release.lock import read_lock
from release.outcome import Failed, NotRun, Outcomes
from release.project import LOCK, ROOT, VERSIONS, declared, required
from release.pythons import find_python

LOCKED = {package.name: package for package in read_lock(LOCK.read_text())}


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.mark.parametrize("extra", [None, "worker", "embedded"])
def test_what_is_needed_to_run_has_a_lower_and_an_upper_bound(extra: str | None) -> None:
    for requirement in required(extra):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, requirement


def test_the_lock_has_what_every_range_allows() -> None:
    for requirement in required("dev"):
        package = LOCKED[canonicalize_name(requirement.name)]
        assert package.version in requirement.specifier, f"{requirement}: run `make lock`"


def test_the_lock_is_complete() -> None:
    """From what is asked for through what that asks for, as it is installed here."""
    waiting, seen = required("dev"), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = ("", *requirement.extras)
        if not any(applies(requirement, extra) for extra in extras) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        package = LOCKED[name]
        assert package.marker is None or package.marker.evaluate(), name
        assert package.version in requirement.specifier, requirement
        if importlib.metadata.version(name) == str(package.version):
            found = map(Requirement, importlib.metadata.requires(name) or ())
            waiting += [r for r in found if any(applies(r, extra) for extra in extras)]
    assert len(seen) > 30


def test_each_locked_package_has_hashes_and_the_lock_names_no_server() -> None:
    for package in LOCKED.values():
        assert package.hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in package.hashes), package.name
    assert "://" not in LOCK.read_text()
    assert "--index" not in LOCK.read_text()


def test_a_lock_is_read_and_what_is_not_pinned_is_refused() -> None:
    text = "# said\na-b==1.0 ; os_name == 'nt' \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n    # via c\n"
    (package,) = read_lock(text)
    assert (package.name, str(package.version), package.hashes) == ("a-b", "1.0", ("sha256:1", "sha256:2"))
    assert package.marker is not None
    with pytest.raises(ValueError, match="make lock"):
        read_lock("a>=1.0\n")


def test_the_promised_pythons_are_those_of_the_classifiers() -> None:
    named = [c.rpartition(" ")[2] for c in declared()["classifiers"] if "Python :: 3." in c]
    assert tuple(named) == VERSIONS
    assert declared()["requires-python"] == f">={VERSIONS[0]}"


# Licences.


def test_third_party_is_what_the_packages_say() -> None:
    found = third_party.parts()
    for part in found:
        assert third_party.compatible(part.licence), part
    said = third_party.PATH.read_text()
    installed = {
        part.name: importlib.metadata.version(part.name) for part in found if _is_installed(part.name)
    }
    if all(LOCKED[canonicalize_name(n)].version == Version(v) for n, v in installed.items()):
        assert said == third_party.text(found), "run `make third-party`"
    for part in found:
        assert f"| {part.name} | {part.version} |" in said, "run `make third-party`"


def test_the_programs_inside_wheels_are_named() -> None:
    """Each shared library that psycopg's wheel brings is one that the document speaks of."""
    known = {"ecpg": "libpq", "pq": "libpq", "pgtypes": "libpq", "ssl": "OpenSSL", "crypto": "OpenSSL"}
    known |= dict.fromkeys(("gssapi_krb5", "k5crypto", "krb5", "krb5support"), "MIT Kerberos")
    known |= {"com_err": "libcom_err", "ldap": "OpenLDAP", "lber": "OpenLDAP", "sasl2": "Cyrus SASL"}
    known |= {"keyutils": "libkeyutils", "crypt": "libcrypt"}
    said = third_party.PATH.read_text()
    files = importlib.metadata.files("psycopg-binary") or []
    names = {m[1] for file in files if (m := re.match(r"lib(\w+?)(-[0-9a-f]{8})?\.so", file.name))}
    assert sys.platform != "linux" or names
    for name in names:
        assert known[name] in said


@pytest.mark.parametrize(
    ("expression", "good"),
    [
        ("MIT", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-only", False),
        ("unknown", False),
    ],
)
def test_which_licences_will_do(expression: str, good: bool) -> None:
    assert third_party.compatible(expression) is good


# The checks of a release.


WHEEL = {
    "writebehind/__init__.py": b"",
    "writebehind/py.typed": b"",
    "writebehind_worker/lua/claim.lua": b"",
    "writebehind_worker/schema.sql": b"",
    "writebehind-0.1.0.dist-info/licenses/LICENSE": b"",
    "writebehind-0.1.0.dist-info/licenses/THIRD_PARTY.md": b"",
}
REPOSITORY = [
    "producer/writebehind/__init__.py",
    "producer/writebehind/py.typed",
    "worker/writebehind_worker/lua/claim.lua",
    "tests/test_x.py",
    *contents.SDIST_FILES,
]
BUILT_IN = Path("/somewhere/source")


def test_a_good_wheel(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in WHEEL.items():
            wheel.writestr(name, content)
    assert contents.wheel_faults(contents.read_wheel(path), REPOSITORY, BUILT_IN) == []


@pytest.mark.parametrize(
    ("left_out", "added", "said"),
    [
        ("writebehind/py.typed", {}, "lacks writebehind/py.typed"),
        ("writebehind_worker/lua/claim.lua", {}, "lacks writebehind_worker/lua/claim.lua"),
        ("writebehind_worker/schema.sql", {}, "lacks writebehind_worker/schema.sql"),
        ("writebehind-0.1.0.dist-info/licenses/LICENSE", {}, "lacks LICENSE"),
        ("", {"tests/test_x.py": b""}, "has tests/test_x.py"),
        ("", {"writebehind/__pycache__/a.pyc": b""}, "__pycache__"),
        ("", {"writebehind/__init__.py": b"# /somewhere/source/x"}, "the path /somewhere/source"),
    ],
)
def test_a_bad_wheel(left_out: str, added: dict[str, bytes], said: str) -> None:
    wheel = {name: content for name, content in WHEEL.items() if name != left_out} | added
    faults = contents.wheel_faults(wheel, REPOSITORY, BUILT_IN)
    assert faults
    assert any(said in fault for fault in faults)


def test_a_good_and_a_bad_sdist(tmp_path: Path) -> None:
    def sdist(names: list[str]) -> dict[str, bytes]:
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
            for name in names:
                file.addfile(tarfile.TarInfo(f"writebehind-0.1.0/{name}"), io.BytesIO())
        return contents.read_sdist(tmp_path / "a.tar.gz")

    assert contents.sdist_faults(sdist([*REPOSITORY, "PKG-INFO"]), REPOSITORY, BUILT_IN) == []
    (lacks,) = contents.sdist_faults(sdist(REPOSITORY[1:]), REPOSITORY, BUILT_IN)
    assert "lacks producer/writebehind/__init__.py" in lacks
    (has,) = contents.sdist_faults(sdist([*REPOSITORY, "tests/core.1"]), REPOSITORY, BUILT_IN)
    assert "tests/core.1" in has


def test_each_of_the_repository_s_folders_is_in_the_sdist_or_left_out_on_purpose() -> None:
    included = set(_toml_list("include"))
    assert included == {*contents.SDIST_FOLDERS, *contents.SDIST_FILES} - {"pyproject.toml"}


def test_an_audit_tells_flaws_from_silence() -> None:
    good = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
    unknown = {"name": "c", "skip_reason": "not found on PyPI"}

    def report(*packages: object) -> str:
        return json.dumps({"dependencies": packages, "fixes": []})

    assert verdict(report(good)) == "no known vulnerability in 1 packages"
    assert "not known to the service: c" in verdict(report(good, unknown))
    with pytest.raises(Failed, match=r"b 2: PYSEC-1, mended in 2\.1"):
        verdict(report(good, bad, unknown))
    with pytest.raises(NotRun):
        verdict(report(unknown))


def test_the_table_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> str:
        raise Failed("line one\nline two")

    def cannot() -> str:
        raise NotRun("no network")

    outcomes = Outcomes()
    assert outcomes.check("a", lambda: "fine")
    assert outcomes.check("b", cannot)
    assert outcomes.is_good
    assert not outcomes.check("c", fails)
    assert not outcomes.is_good
    assert "line two" in capsys.readouterr().out
    table = outcomes.table().splitlines()
    assert [line.split()[1] for line in table[1:]] == ["ok", "not", "FAILED"]
    assert table[-1].endswith("line one")


def test_this_python_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / f"python{version}").symlink_to(sys.executable)
    (tmp_path / "python3.99").symlink_to(sys.executable)  # as a shim that starts another
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert find_python(version, tmp_path) == tmp_path / f"python{version}"
    assert find_python("3.99", tmp_path) is None


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _toml_list(key: str) -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[str] = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["sdist"][key]
    return found
