"""The JavaScript of docs/verifying.md, under Node: it accepts what our own check accepts, and refuses what it refuses.

TEESIGN_TEST_NODE_MODULES names the folder that has `ethers`; `nox -s javascript` sets it once both are installed.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from teesign import SigningAlgorithm, SigningPair, VerificationError, signed_text, verify_answer
from teesign.testing import fixed_pair

NODE, MODULES = shutil.which("node") or "", os.environ.get("TEESIGN_TEST_NODE_MODULES", "")
pytestmark = pytest.mark.skipif(
    not (NODE and MODULES), reason="Node and ethers are not installed; run `nox -s javascript`"
)

PAGE = (Path(__file__).parents[1] / "docs" / "verifying.md").read_text()
SCRIPTS = dict(re.findall(r"```js\n// (\S+)\n(.*?)```", PAGE, re.DOTALL))
JUDGE = """
import { text } from "node:stream/consumers";
import { verifyAnswer } from "./verify-answer.mjs";

const verdicts = [];
for (const [request, response, answer, address] of JSON.parse(await text(process.stdin))) {
  const bodies = [request, response].map((body) => Buffer.from(body, "base64"));
  verdicts.push(await verifyAnswer(...bodies, answer, address).then(() => "verified", (error) => error.message));
}
console.log(JSON.stringify(verdicts));
"""

REQUEST, RESPONSE = b'{"stream": true}', b'data: {"id": "a"}\n\ndata: [DONE]\n\n'
DIGESTS = sha256(REQUEST).hexdigest(), sha256(RESPONSE).hexdigest()
PAIR, OTHER = fixed_pair(), SigningPair.from_secrets(b"\1" * 32, b"\2" * 32)
ADDRESSES = {"ecdsa": PAIR.identity("ecdsa").address, "ed25519": PAIR.identity("ed25519").address}
SHORT = ("signature", "signing_address", "signing_algo")
EXTRAS = ("signature_ecdsa", "signing_address_ecdsa", "signature_ed25519", "signing_address_ed25519")
HIGHEST = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

Case = tuple[bytes, bytes, dict[str, Any], str]


def answer_of(pair: SigningPair, text: str, algorithm: SigningAlgorithm = "ecdsa") -> dict[str, Any]:
    """Return what the signature endpoint answers."""
    return {**pair.sign(text).answer(algorithm)}


def without_extras(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of a server that has only the members that all have."""
    return {name: answer[name] for name in ("text", *SHORT)}


def extras(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the text and the members that only newer servers have."""
    return {name: answer[name] for name in answer if name not in SHORT}


V1, V2 = signed_text(*DIGESTS), signed_text(*DIGESTS, version="v2", model="org/model:8b")
FULL, ED25519 = answer_of(PAIR, V1), answer_of(PAIR, V1, "ed25519")
LOW_S = int(FULL["signature"][66:130], 16)
HIGH_S = f"{FULL['signature'][:66]}{HIGHEST - LOW_S:064x}{'1c' if FULL['signature'][-2:] == '1b' else '1b'}"

GOOD: dict[str, tuple[dict[str, Any], str]] = {
    "full": (FULL, ADDRESSES["ecdsa"]),
    "three parts": (answer_of(PAIR, V2), ADDRESSES["ecdsa"]),
    "without extras": (without_extras(FULL), ADDRESSES["ecdsa"]),
    "three parts, without extras": (without_extras(answer_of(PAIR, V2)), ADDRESSES["ecdsa"]),
    "lower-case addresses": (FULL | {"signing_address": ADDRESSES["ecdsa"].lower()}, ADDRESSES["ecdsa"].lower()),
    "address without 0x": (FULL | {"signing_address": ADDRESSES["ecdsa"][2:]}, ADDRESSES["ecdsa"]),
    "signature without 0x": (FULL | {"signature": FULL["signature"][2:]}, ADDRESSES["ecdsa"]),
    "v of 0 or 1": (
        FULL | {"signature": f"{FULL['signature'][:-2]}{int(FULL['signature'][-2:], 16) - 27:02x}"},
        ADDRESSES["ecdsa"],
    ),
    "extras alone": (extras(FULL), ADDRESSES["ecdsa"]),
    "null beside the extras": (extras(FULL) | dict.fromkeys(SHORT), ADDRESSES["ecdsa"]),
    "extras are null": (without_extras(FULL) | dict.fromkeys(EXTRAS), ADDRESSES["ecdsa"]),
    "the algorithm is null": (FULL | {"signing_algo": None}, ADDRESSES["ecdsa"]),
    "unknown members": (FULL | {"version": "2"}, ADDRESSES["ecdsa"]),
    "Ed25519": (ED25519, ADDRESSES["ed25519"]),
    "Ed25519 without extras": (without_extras(ED25519), ADDRESSES["ed25519"]),
    "Ed25519 of an answer for ECDSA": (FULL, ADDRESSES["ed25519"]),
}

MARKED = signed_text(*DIGESTS, version="v2", model="\ufffd")
TAMPERED: dict[str, Case] = {
    "request": (REQUEST + b"\n", RESPONSE, FULL, ADDRESSES["ecdsa"]),
    "response": (REQUEST, RESPONSE[:-1], FULL, ADDRESSES["ecdsa"]),
    "bodies swapped": (RESPONSE, REQUEST, FULL, ADDRESSES["ecdsa"]),
    "address": (REQUEST, RESPONSE, FULL, OTHER.identity("ecdsa").address),
    "Ed25519 address": (REQUEST, RESPONSE, FULL, OTHER.identity("ed25519").address),
    "empty address": (REQUEST, RESPONSE, FULL, ""),
    "half a pair, whose bytes would be those of a replacement": (
        REQUEST,
        RESPONSE,
        without_extras(answer_of(PAIR, MARKED, "ed25519")) | {"text": MARKED.replace("\ufffd", "\ud800")},
        ADDRESSES["ed25519"],
    ),
    **{
        name: (REQUEST, RESPONSE, answer, ADDRESSES["ecdsa"])
        for name, answer in {
            "empty answer": {},
            "no signature": {"text": V1},
            "no text": {name: FULL[name] for name in FULL if name != "text"},
            "text is a list": FULL | {"text": [V1]},
            "a model put in front": FULL | {"text": f"m:{V1}"},
            "upper-case digests": answer_of(PAIR, V1.upper()),
            "a third digest": answer_of(PAIR, f"{V1}:{DIGESTS[0]}"),
            "a line break behind": answer_of(PAIR, f"{V1}\n"),
            "another's answer": answer_of(OTHER, V1),
            "another's extras": FULL | extras(answer_of(OTHER, V1)),
            "another's signature": FULL | {"signature": OTHER.sign(V1).signature_ecdsa},
            "another's Ed25519 signature": FULL | {"signature_ed25519": OTHER.sign(V1).signature_ed25519},
            "only the other algorithm": without_extras(ED25519),
            "another algorithm's name": FULL | {"signing_algo": "ed25519"},
            "unknown algorithm": FULL | {"signing_algo": "rsa"},
            "Ed25519 under an unknown name": FULL
            | {
                "signing_algo": "rsa",
                "signature": FULL["signature_ed25519"],
                "signing_address": FULL["signing_address_ed25519"],
            },
            "empty signature": FULL | {"signature": ""},
            "signature too short": FULL | {"signature": FULL["signature"][:-2]},
            "s in the upper half": FULL | {"signature": HIGH_S},
            "v of another chain": FULL | {"signature": f"{FULL['signature'][:-2]}26"},
            "signature of zeros": FULL | {"signature": "0x" + "00" * 64 + "1b"},
            "Ed25519 signature too short": FULL | {"signature_ed25519": "11"},
            "Ed25519 address too short": FULL | {"signing_address_ed25519": "11"},
            **{f"an empty {name} beside the extras": extras(FULL) | {name: ""} for name in SHORT},
            "signature and address are empty": FULL | {"signature": "", "signing_address": ""},
            "unknown algorithm beside the extras": extras(FULL) | {"signing_algo": "rsa"},
            "signatures are null": {name: None if "signature" in name else FULL[name] for name in FULL},
            "Ed25519 address left out": {name: FULL[name] for name in FULL if name != "signing_address_ed25519"},
        }.items()
    },
}


def mutations(count: int) -> Iterator[Case]:
    """Yield good answers with one letter changed or one value spelled in another way, always the same ones."""
    source = random.Random(7)
    for _ in range(count):
        answer, address = source.choice(list(GOOD.values()))
        name = source.choice([name for name in answer if name != "version" and answer[name] is not None])
        place = source.randrange(len(answer[name]))
        changed = answer[name][:place] + source.choice("0123456789abcdefABCDEFx:") + answer[name][place + 1 :]
        yield REQUEST, RESPONSE, answer | {name: changed}, address
        for spelling in (answer[name].upper(), answer[name].removeprefix("0x"), f"0x{answer[name]}", "", None):
            yield REQUEST, RESPONSE, answer | {name: spelling}, address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's scripts, where Node finds `ethers`."""
    path = tmp_path_factory.mktemp("javascript")
    (path / "node_modules").symlink_to(MODULES, target_is_directory=True)
    for name, script in SCRIPTS.items():
        (path / name).write_text(script)
    (path / "judge.mjs").write_text(JUDGE)
    return path


def node(folder: Path, script: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script."""
    command = [NODE, str(folder / script), *arguments]
    return subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True, check=False, timeout=60)


def verdicts(folder: Path, cases: list[Case]) -> list[str]:
    """Return what the page's function makes of each case: "verified", or the message it throws."""
    encoded = [
        [*(base64.b64encode(body).decode() for body in (request, response)), answer, address]
        for request, response, answer, address in cases
    ]
    run = node(folder, "judge.mjs", given=json.dumps(encoded))
    assert (run.returncode, run.stderr) == (0, "")
    found: list[str] = json.loads(run.stdout)
    assert len(found) == len(cases)
    return found


def ours(case: Case) -> bool:
    """Tell whether our own check accepts a case."""
    request, response, answer, address = case
    algorithm: SigningAlgorithm = "ecdsa" if len(address.removeprefix("0x")) == 40 else "ed25519"
    try:
        verify_answer(request, response, answer, algorithm=algorithm, address=address)
    except VerificationError:
        return False
    return True


def test_good_answers_verify(folder: Path) -> None:
    """In every form that servers of this family answer with."""
    cases = [(REQUEST, RESPONSE, answer, address) for answer, address in GOOD.values()]
    assert all(map(ours, cases))
    assert dict(zip(GOOD, verdicts(folder, cases), strict=True)) == dict.fromkeys(GOOD, "verified")


def test_recorded_answers_verify(folder: Path) -> None:
    """Those that other libraries signed."""
    recorded = json.loads(Path(__file__).with_name("recorded_answers.json").read_text("utf-8"))
    cases = [(one["request"].encode(), one["response"].encode(), one["answer"], one["address"]) for one in recorded]
    assert verdicts(folder, cases) == ["verified"] * len(cases)


def test_tampered_answers_do_not(folder: Path) -> None:
    """Each is refused by both."""
    cases = list(TAMPERED.values())
    assert not any(map(ours, cases))
    found = dict(zip(TAMPERED, verdicts(folder, cases), strict=True))
    assert [name for name, verdict in found.items() if verdict == "verified"] == []


def test_both_agree_on_any_edit(folder: Path) -> None:
    """Whatever is changed, and into what: some remain good, such as addresses in another case."""
    cases = list(mutations(300))
    judged = [verdict == "verified" for verdict in verdicts(folder, cases)]
    assert judged == list(map(ours, cases))
    assert 0 < sum(judged) < len(cases)


def test_the_script_is_run_from_files(folder: Path, tmp_path: Path) -> None:
    """It says that all is well and exits with 0, or fails with what is wrong."""
    names = [tmp_path / name for name in ("request.bin", "response.bin", "signature.json")]
    for name, content in zip(names, (REQUEST, RESPONSE, json.dumps(FULL).encode()), strict=True):
        name.write_bytes(content)
    arguments = [*map(str, names), ADDRESSES["ecdsa"]]
    good = node(folder, "check.mjs", *arguments)
    assert (good.returncode, good.stdout, good.stderr) == (0, "verified\n", "")
    names[1].write_bytes(RESPONSE + b" ")
    bad = node(folder, "check.mjs", *arguments)
    assert bad.returncode != 0
    assert "the response is not the one that was signed" in bad.stderr
    assert node(folder, "check.mjs", *arguments[:-1]).returncode != 0
