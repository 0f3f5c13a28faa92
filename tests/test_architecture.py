"""The floors of the house: what each module may import, and that it says what its public names are for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

# What each module of the library may import of it. A new module needs a row.
MAY_IMPORT: dict[str, set[str]] = {
    "documents": set(),
    "errors": set(),
    "hexadecimal": set(),
    "identifiers": {"documents"},
    "signing": {"errors", "hexadecimal"},
    "pieces": set(),
    "sse": {"identifiers", "pieces"},
    "quote": {"documents", "errors", "hexadecimal"},
    "spki": {"errors"},
    "text": {"errors"},
    "exchange": {"errors", "identifiers", "pieces", "signing", "sse", "text"},
    "cache": {"errors", "signing"},
    "attestation": {"errors", "signing"},
    "verify": {"verify.answer", "verify.exchange"},
    "verify.signatures": {"documents", "errors", "signing"},
    "verify.exchange": {"attestation", "errors", "quote", "signing", "text", "verify.signatures"},
    "verify.answer": {"errors", "signing", "text", "verify.exchange", "verify.signatures", "verify.steps"},
    "verify.policy": {"documents", "errors", "hexadecimal"},
    "verify.steps": {"errors"},
    "verify.gpu": {"errors"},
    "verify.tdx": {"errors", "verify.policy"},
    "verify.report": {
        "attestation",
        "documents",
        "errors",
        "hexadecimal",
        "quote",
        "signing",
        "verify.gpu",
        "verify.policy",
        "verify.steps",
        "verify.tdx",
    },
    "verify.bundle": {
        "documents",
        "errors",
        "hexadecimal",
        "verify.answer",
        "verify.policy",
        "verify.report",
        "verify.steps",
    },
    "testing": {"attestation", "signing", "sources.simulated"},
    "sources": {"attestation", "errors"},
    "sources.simulated": {"attestation", "errors", "quote"},
    "sources.dstack": {"attestation", "documents", "errors", "hexadecimal", "quote", "sources"},
    "sources.process": {"errors"},
    "sources.evidence_protocol": {"documents", "errors"},
    "sources.nvidia": {"attestation", "errors", "sources", "sources.evidence_protocol", "sources.process"},
    # Runs under another interpreter, beside NVIDIA's library and without this one.
    "sources.nvidia_worker": set(),
    "client": {
        "client.collateral",
        "client.flow",
        "client.http",
        "client.observed",
        "client.roundtrip",
        "client.server",
        "client.transport",
    },
    "client.flow": {"documents", "errors"},
    "client.tls": {"client.flow", "errors", "spki"},
    "client.http": {"client.flow", "client.tls", "errors"},
    "client.collateral": {"client.flow", "documents", "errors", "hexadecimal"},
    "client.server": {
        "attestation",
        "client.collateral",
        "client.flow",
        "errors",
        "identifiers",
        "signing",
        "verify.policy",
        "verify.report",
        "verify.steps",
    },
    "client.observed": {"client.flow", "client.server", "errors", "identifiers", "sse", "text", "verify.answer"},
    "client.verifier": {
        "client.bodies",
        "client.flow",
        "client.observed",
        "client.server",
        "client.tls",
        "errors",
        "signing",
        "text",
    },
    "client.roundtrip": {
        "client.flow",
        "client.server",
        "errors",
        "identifiers",
        "verify.answer",
        "verify.bundle",
        "verify.steps",
    },
    "client.bodies": {"client.observed", "client.tls"},
    "client.underlying": {"client.flow", "client.http", "errors"},
    "client.transport": {
        "client.bodies",
        "client.flow",
        "client.http",
        "client.observed",
        "client.server",
        "client.underlying",
        "client.verifier",
        "errors",
        "signing",
        "verify.policy",
    },
    "": {"attestation", "cache", "errors", "exchange", "quote", "signing", "sse", "text", "verify"},
}

RIMS = ("sources", "client")
OUTSIDE_WORLD = {
    "asyncio",
    "datetime",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
}
PUBLIC_MODULES = (
    "teesign",
    "teesign.documents",
    "teesign.errors",
    "teesign.quote",
    "teesign.spki",
    "teesign.verify",
    "teesign.verify.answer",
    "teesign.verify.bundle",
    "teesign.verify.policy",
    "teesign.verify.report",
    "teesign.verify.steps",
    "teesign.testing",
    "teesign.client",
)


def modules(package: str) -> dict[str, ast.Module]:
    """Return the modules of a package by their full names, parsed."""
    paths = sorted((SRC / package).rglob("*.py"))
    return {module_name(path): ast.parse(path.read_bytes(), str(path)) for path in paths}


def module_name(path: Path) -> str:
    """Return the name that a file under `src` is imported by."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


LIBRARY, PROXY = modules("teesign"), modules("teesign_asgi")
READS_ENVIRONMENT = {"teesign_asgi.cli.serve", "teesign_asgi.settings", "teesign_asgi.cli.verify"}
COMMAND_LINE = {"teesign_asgi.cli.serve", "teesign_asgi.cli.demo", "teesign_asgi.cli.signals"}


def imports(module: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each import in a module, wherever it stands: the absolute module, and the names taken from it."""
    tree = {**LIBRARY, **PROXY}[module]
    package = module if is_package(module) else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            names = tuple(alias.name for alias in node.names)
            submodules = [name for name in names if f"{source}.{name}" in {**LIBRARY, **PROXY}]
            yield from ((f"{source}.{name}", ()) for name in submodules)
            if rest := tuple(name for name in names if name not in submodules):
                yield source, rest


def is_package(module: str) -> bool:
    """Tell a package from a module."""
    return (SRC / module.replace(".", "/")).is_dir()


def public_names(tree: ast.Module) -> set[str]:
    """Return what a module lists in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def undocumented(tree: ast.Module) -> set[str]:
    """Return the public names that a module defines without a docstring, or without a string after the assignment."""
    missing = set()
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names, documented = {node.name}, ast.get_docstring(node) is not None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {ast.unparse(target) for target in targets}
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        else:
            continue
        missing |= set() if documented else names
    return (missing & public_names(tree)) - {"__version__"}


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_imports_downwards(module: str) -> None:
    """A module uses what lies below it, and nothing else of this package."""
    used = {name for name, _ in imports(module) if f"{name}.".startswith("teesign.")}
    allowed = {f"teesign.{name}" for name in MAY_IMPORT[module.removeprefix("teesign").removeprefix(".")]}
    assert used <= allowed


def test_the_table_has_no_circles() -> None:
    """Down means down: there is an order in which each module comes after all that it may import."""
    TopologicalSorter(MAY_IMPORT).prepare()


def floors() -> dict[str, int]:
    """Return the floor of each module in the table of the architecture page, counted from the top."""
    page = (SRC.parent / "docs" / "ARCHITECTURE.md").read_text()
    table = page.partition("| Floor | Modules | What is there |\n|---|---|---|\n")[2].partition("\n\n")[0]
    found, floor = dict[str, int](), 0
    for line in table.splitlines():
        begins, modules_of_row, _ = line.strip("|").split("|")
        floor += begins.strip() != ""
        for name in re.findall(r"`([\w.]+)`", modules_of_row):
            full = name if name.startswith("teesign.") else f"teesign_asgi.{name}"
            assert found.setdefault(full, floor) == floor, full
    return found


def test_every_module_has_a_floor() -> None:
    """No module of either package is missing from the table, and none in it is gone."""
    packages = {"teesign", "teesign_asgi", "teesign_asgi.__main__"}
    assert floors().keys() == {*LIBRARY, *PROXY} - packages


@pytest.mark.parametrize("module", floors())
def test_imports_stay_on_a_floor_or_lead_down(module: str) -> None:
    """As the table has it, in both packages."""
    table = floors()
    assert not [name for name, _ in imports(module) if table.get(name, table[module]) < table[module]]


@pytest.mark.parametrize("command", ["verify", "verdict", "meanings"])
def test_the_far_ends_command_needs_none_of_the_proxy(command: str) -> None:
    """It runs where nothing of the server is installed."""
    used = {name for name, _ in imports(f"teesign_asgi.cli.{command}") if name.startswith("teesign_asgi")}
    assert all(f"{name}.".startswith("teesign_asgi.cli.") for name in used)


def test_the_proxy_has_no_circles() -> None:
    """Nor are there any within a floor."""
    TopologicalSorter({module: {name for name, _ in imports(module) if name in PROXY} for module in PROXY}).prepare()


@pytest.mark.parametrize("module", [name for name in LIBRARY if not name.removeprefix("teesign.").startswith(RIMS)])
def test_the_core_does_not_touch_the_outside_world(module: str) -> None:
    """No sockets, no event loop, no environment, no clock, no randomness, no logging: the caller brings them."""
    assert {name.partition(".")[0] for name, _ in imports(module)}.isdisjoint(OUTSIDE_WORLD)


def test_the_sources_need_nothing_of_the_proxy() -> None:
    """What they import when they are loaded comes with the core or with the extra `dstack`, which brings no more."""
    project = tomllib.loads((SRC.parent / "pyproject.toml").read_text())["project"]
    brought = [*project["dependencies"], *project["optional-dependencies"]["dstack"]]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in brought}
    used = {
        name.partition(".")[0]
        for module in LIBRARY
        if module.startswith("teesign.sources")
        for name, _ in imports(module)
    }
    others = used - sys.stdlib_module_names - {"teesign"}
    assert others - {"dstack_sdk", "httpx"} <= names  # the SDK has another name here, and brings httpx
    assert "dstack-sdk" in names
    assert "teesign" not in names


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_does_not_know_the_proxy(module: str) -> None:
    """It can be embedded into any other gateway."""
    assert not [name for name, _ in imports(module) if name.startswith("teesign_asgi")]


@pytest.mark.parametrize("module", PROXY)
def test_the_proxy_uses_public_names_of_the_library_only(module: str) -> None:
    """What it needs, everyone who embeds the library can have."""
    for source, names in imports(module):
        if f"{source}.".startswith("teesign."):
            assert source in PUBLIC_MODULES or source.startswith("teesign.sources")
            assert names, f"import names from {source}, so that this test can see them"
            assert set(names) <= public_names(LIBRARY[source])


@pytest.mark.parametrize("module", sorted(PROXY.keys() - COMMAND_LINE))
def test_only_the_command_line_imports_the_server(module: str) -> None:
    """The app runs under any ASGI server."""
    assert "granian" not in {name.partition(".")[0] for name, _ in imports(module)}


@pytest.mark.parametrize(
    "module",
    [name for name in PROXY if name not in READS_ENVIRONMENT],
)
def test_only_settings_and_commands_read_the_environment(module: str) -> None:
    """Everything else is given what it needs."""
    attributes = {ast.unparse(node) for node in ast.walk(PROXY[module]) if isinstance(node, ast.Attribute)}
    assert attributes.isdisjoint({"os.environ", "os.environb", "os.getenv"})
    assert {"environ", "environb", "getenv"}.isdisjoint(name for source, names in imports(module) for name in names)


@pytest.mark.parametrize("module", [*LIBRARY, *PROXY])
def test_every_public_name_is_documented(module: str) -> None:
    """What is listed in `__all__` says what it is for, where it is defined."""
    assert not undocumented({**LIBRARY, **PROXY}[module])


def test_importing_the_library_is_cheap() -> None:
    """Neither an event loop, nor TLS, nor what only keys and verification need are loaded with it."""
    event_loop_and_tls = {"asyncio", "ssl", "http.client", "anyio", "httpcore", "httpx"}
    for_keys_and_verification = {"Crypto", "cryptography", "dcap_qvl", "eth_hash", "eth_keys", "pycparser"}
    heavy = event_loop_and_tls | for_keys_and_verification
    program = f"import sys, teesign; print(*sorted(sys.modules.keys() & {heavy!r}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
