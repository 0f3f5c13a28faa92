"""Everything that is checked before a change lands: plain `nox` runs the sessions that `nox --list` marks with a star.

Sessions install teesign as a user would, from the built wheel, so that what is tested is what is shipped.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests", "lint", "types", "demo", "engine", "gpu", "javascript", "corpora"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
OLDEST_MINOR, NEWEST_MINOR = 11, 13  # coincurve has no wheels for newer ones
MINIMUM_COVERAGE = 95
IN_PARALLEL = ["--numprocesses=4", "--dist=worksteal"]
"""For all tests: most of them wait, so two cores take four processes. An idle one takes over what others have left."""
SERVERS = ("hypercorn", "uvicorn")
"""Those that are not dependencies, and that users install themselves."""
MUTATED = [
    "teesign.exchange.*",
    "teesign.pieces.*",
    "teesign.signing.*",
    "teesign.sse.*",
    "teesign.text.*",
    *(
        f"teesign_asgi.observe.x_{name}__*"
        for name in ("backend_error_fields", "redact", "read_error", "_members", "_string")
    ),
]
"""What `nox -s mutation` changes."""


def interpreters() -> list[str]:
    """Return the CPythons of this machine that teesign supports; a name on the path may be a shim that cannot run."""
    found = []
    for minor in range(OLDEST_MINOR, NEWEST_MINOR + 1):
        name = f"python3.{minor}"
        path = shutil.which(name)
        if path is None:
            continue
        question = "import sys; raise SystemExit(sys.implementation.name != 'cpython')"
        if subprocess.run([path, "-c", question], capture_output=True, check=False).returncode == 0:  # noqa: S603 - a fixed question to an interpreter of this machine
            found.append(name)
    return found


INTERPRETERS = interpreters()


def install(session: nox.Session, *groups: str, extras: str = "all") -> None:
    """Install teesign with these extras, and what these dependency groups name."""
    session.install(f".[{extras}]", *(item for group in groups for item in dependency_group(group)))


def dependency_group(name: str) -> tuple[str, ...]:
    """Return what a dependency group of pyproject.toml names."""
    return tuple(nox.project.dependency_groups(PYPROJECT, name))


def oldest_dependencies() -> list[str]:
    """Return the lower bound of each dependency of the proxy's own environment, and of the servers that may run it."""
    project = PYPROJECT["project"]
    named = [*project["dependencies"], *(each for each in dependency_group("test") if each.startswith(SERVERS))]
    for extra, requirements in project["optional-dependencies"].items():
        if extra != "gpu":
            named += requirements
    return [
        f"{requirement.name}=={bound.version}"
        for requirement in map(Requirement, named)
        for bound in requirement.specifier
        if bound.operator == ">="
    ]


@nox.session(python=INTERPRETERS)
def tests(session: nox.Session) -> None:
    """Run the tests, on asyncio and trio, and measure what they cover; or some: `nox -s tests -- tests/test_sse.py`."""
    # The smoke run of the benchmarks asks for these, and is done where they are: once is enough.
    install(session, "test", *(("bench", "plot") if session.python == INTERPRETERS[0] else ()))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or IN_PARALLEL))
    session.run("coverage", "combine", "--quiet")
    if not session.posargs:
        session.run("coverage", "report", f"--fail-under={MINIMUM_COVERAGE}")


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest version of each dependency that pyproject.toml allows."""
    install(session, "test")
    # Afterwards, since what the tests bring asks for newer ones here and there.
    session.install(*oldest_dependencies())
    session.run("pytest", *(session.posargs or IN_PARALLEL))


@nox.session
def uvloop(session: nox.Session) -> None:
    """Run the tests with granian and uvicorn on uvloop, which both use where it is installed."""
    install(session, "test")
    session.install("uvloop")
    session.run("pytest", *(session.posargs or IN_PARALLEL))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*dependency_group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, of the sources and of the tests."""
    install(session, "test", "bench", "plot", "engine", "types")
    session.run("mypy")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo as a newcomer would."""
    install(session, extras="server")
    session.run("teesign", "demo", "--once")


@nox.session
def engine(session: nox.Session) -> None:
    """Put `teesign serve` in front of llama.cpp, and drive it with the official client."""
    install(session, "test", "engine")
    session.run("pytest", "tests/test_engine.py", "tests/test_engine_verified.py", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Let the worker collect NVIDIA's canned evidence with NVIDIA's own library, under an interpreter of its own."""
    install(session, "test")
    home = Path(session.create_tmp()) / "nvidia"
    python = str(home / "bin" / "python")
    session.run("python", "-m", "venv", "--clear", str(home))
    requirements = PYPROJECT["project"]["optional-dependencies"]["gpu"]
    session.run(python, "-m", "pip", "install", "--quiet", *requirements, external=True)
    session.run("pytest", "tests/test_gpu.py", *session.posargs, env={"TEESIGN_TEST_GPU_PYTHON": python})


@nox.session
def javascript(session: nox.Session) -> None:
    """Stand at the far end: verify answers in JavaScript, and a bundle with `teesign[verify]` and nothing else."""
    session.install(".[verify]", *dependency_group("javascript"))
    home = session.create_tmp()
    session.run("npm", "install", "--silent", "--no-save", "--no-audit", "--no-fund", "--prefix", home, "ethers@6")
    environment = {"TEESIGN_TEST_NODE_MODULES": str(Path(home) / "node_modules"), "TEESIGN_TEST_ALONE": "1"}
    # Without what other tests share, which would need all of their servers.
    command = ("pytest", "--noconftest", "tests/test_javascript.py", "tests/test_recorded_bundle.py")
    session.run(*command, *session.posargs, env=environment)


@nox.session
def corpora(session: nox.Session) -> None:
    """Replay the malformed requests of other programs' tests, read from their source distributions."""
    install(session, "test")
    # What those are built with: pip builds their metadata before it lets one have them.
    session.install("setuptools>=77", "pkgconfig")
    folder = str(Path(session.create_tmp()) / "distributions")
    pins = ("gunicorn==27.0.1", "aiohttp==3.14.5")
    session.run(
        "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary=:all:", "-d", folder, *pins
    )
    session.run("pytest", "tests/test_corpora.py", *session.posargs, env={"TEESIGN_TEST_CORPORA": folder})


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz each parser for a minute; or some, with libFuzzer's options: `nox -s fuzz -- quote -max_total_time=3600`.

    What was found worth keeping is in `.fuzz`, and the next run goes on from there.
    """
    install(session)
    session.install("atheris>=2.3")
    options = [argument for argument in session.posargs if argument.startswith("-")]
    named = [argument for argument in session.posargs if not argument.startswith("-")]
    for target in named or sorted(path.stem for path in Path("fuzz").glob("*.py") if path.stem != "run"):
        session.run("python", "fuzz/run.py", target, *(options or ["-max_total_time=60"]))


@nox.session
def sabotage(session: nox.Session) -> None:
    """Take each protection away, and see its tests fail; or those of a row: `nox -s sabotage -- 'head broken'`."""
    install(session, "test")
    session.run("python", "tests/faults/sabotage.py", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the code that decides about signatures and redaction in small ways, and see whether the tests notice.

    Takes about a quarter of an hour on two cores. What has survived is shown by `mutmut show NAME` and `mutmut browse`.
    """
    install(session, "test")
    session.install("mutmut>=3.8,<4")
    session.run("mutmut", "run", "--max-children", "2", *MUTATED, env={"TEESIGN_TEST_FEW_EXAMPLES": "1"})
    session.run("mutmut", "export-cicd-stats")
    session.run("python", "-c", "import json; print(json.load(open('mutants/mutmut-cicd-stats.json')))")


@nox.session
def soak(session: nox.Session) -> None:
    """Run mixed load and faults for half an hour, or reach one of the figures: `nox -s soak -- --figure NAME`."""
    install(session, "engine", "plot")
    session.run("python", "-m", "soak", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what the proxy costs; options after two dashes: `nox -s bench -- --rows json --json results.json`."""
    install(session, "bench", "plot", extras="server")
    session.run("python", "-m", "benchmarks", *session.posargs)
