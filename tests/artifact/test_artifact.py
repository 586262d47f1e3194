import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from esper_runtime.artifact import (
    KeyRing,
    artifact_files,
    decode_signed,
    encode_archive,
    encode_signed,
    open_artifact,
)
from esper_runtime.contracts import ArtifactError, CompileFailed, Role, Ruling, Signed, canonical_json
from tests.artifact.kernels import Made, blueprint_of, made, spec_of, verdict_of


@pytest.fixture
def kernel(ring: KeyRing) -> Made:
    return made(ring)


@pytest.fixture
def path(kernel: Made, tmp_path: Path) -> Path:
    return kernel.at(tmp_path / "k.kernel")


def test_what_was_made_and_signed_opens(kernel: Made, ring: KeyRing, path: Path) -> None:
    found = open_artifact(path, kernel.compiled, kernel.verdict, ring.trust)
    assert found.compiled == kernel.statement
    assert found.verdict == kernel.said
    assert found.blueprint == blueprint_of()
    assert set(found.files) == {"blueprint.json"}


def test_compiled_parts_come_with_it(ring: KeyRing, tmp_path: Path) -> None:
    kernel = made(ring, parts={"parts/forward.pt2": b"\x7fELF"})
    found = open_artifact(kernel.at(tmp_path / "k"), kernel.compiled, kernel.verdict, ring.trust)
    assert found.files["parts/forward.pt2"] == b"\x7fELF"


def test_without_a_verdict_it_opens_only_to_be_tested(kernel: Made, ring: KeyRing, path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no verdict of urabrask"):
        open_artifact(path, kernel.compiled, None, ring.trust)
    assert open_artifact(path, kernel.compiled, None, ring.trust, validated=False).verdict is None


def test_a_rejected_one_is_refused_with_the_reason(ring: KeyRing, tmp_path: Path) -> None:
    kernel = made(ring, passed=False)
    with pytest.raises(ArtifactError, match=r"was rejected by urabrask: shape: wrong shape"):
        open_artifact(kernel.at(tmp_path / "k"), kernel.compiled, kernel.verdict, ring.trust)


def test_a_changed_archive_is_refused_before_it_is_parsed(kernel: Made, ring: KeyRing, path: Path) -> None:
    for data in (b"rubbish", kernel.data + b"\0", kernel.data[:-1], made(ring, "conv-pair-bn").data):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="the file was changed or belongs to another kernel"):
            open_artifact(path, kernel.compiled, kernel.verdict, ring.trust)


def test_another_kernels_verdict_does_not_count(kernel: Made, ring: KeyRing, path: Path) -> None:
    other = made(ring, "conv-pair-bn")
    with pytest.raises(ArtifactError, match=f"the verdict is about {other.statement.kernel}"):
        open_artifact(path, kernel.compiled, other.verdict, ring.trust)


def test_a_verdict_about_other_bytes_of_the_same_kernel_does_not_count(
    kernel: Made, ring: KeyRing, path: Path
) -> None:
    said = verdict_of(kernel.statement.model_copy(update={"digest": "0" * 64}))
    with pytest.raises(ArtifactError, match="the verdict is about"):
        open_artifact(path, kernel.compiled, ring.sign(Role.URABRASK, said), ring.trust)


def test_words_of_the_wrong_kind_are_refused(kernel: Made, ring: KeyRing, path: Path) -> None:
    failed = CompileFailed(spec=kernel.statement.spec, kernel=kernel.statement.kernel, reason="no")
    with pytest.raises(ArtifactError, match="CompileFailed is no word about an artifact"):
        open_artifact(path, ring.sign(Role.TEZZERET, failed), kernel.verdict, ring.trust)
    with pytest.raises(ArtifactError, match="of tezzeret; urabrask must have signed"):
        open_artifact(path, kernel.compiled, kernel.compiled, ring.trust)
    with pytest.raises(ArtifactError, match="of urabrask; tezzeret must have signed"):
        open_artifact(path, kernel.verdict, kernel.verdict, ring.trust)


def _other_part(files: dict[str, bytes]) -> None:
    files["parts/x"] = b"more"


def _other_graph(files: dict[str, bytes]) -> None:
    graph = blueprint_of("conv-pair-bn")
    files |= artifact_files(spec_of(blueprint_of()), graph, trains=True)


def _other_kernel(files: dict[str, bytes]) -> None:
    files |= artifact_files(spec_of(blueprint_of("conv-pair-bn")), blueprint_of("conv-pair-bn"), trains=True)


def _does_not_train(files: dict[str, bytes]) -> None:
    files |= artifact_files(spec_of(blueprint_of()), blueprint_of(), trains=False)


def _spaces(files: dict[str, bytes]) -> None:
    files["manifest.json"] = files["manifest.json"].replace(b'":', b'": ')


def _not_json(files: dict[str, bytes]) -> None:
    files["manifest.json"] = b"[" * 100_000


def _no_graph(files: dict[str, bytes]) -> None:
    data = b'{"name":"x"}'
    old = files["blueprint.json"]
    manifest = files["manifest.json"].replace(
        hashlib.sha256(old).hexdigest().encode(), hashlib.sha256(data).hexdigest().encode()
    )
    files["blueprint.json"] = data
    files["manifest.json"] = manifest.replace(f'"bytes":{len(old)}'.encode(), f'"bytes":{len(data)}'.encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_part, "do not agree: parts/x"),
        (lambda files: files.pop("manifest.json"), r"lacks manifest\.json"),
        (lambda files: files.pop("blueprint.json"), r"lacks blueprint\.json"),
        (lambda files: files.update({"blueprint.json": b"{}"}), r"do not agree: blueprint\.json"),
        (_other_graph, "the kernel is made of"),
        (_other_kernel, "signed was"),
        (_does_not_train, "do not agree on whether it trains"),
        (_spaces, "not in the one allowed form"),
        (_not_json, "not canonical JSON"),
        (_no_graph, "schema"),
    ],
)
def test_a_signed_archive_whose_contents_contradict_is_refused(
    ring: KeyRing, tmp_path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    blueprint = blueprint_of()
    files = artifact_files(spec_of(blueprint), blueprint, trains=True)
    change(files)
    kernel = made(ring, files=files)
    with pytest.raises(ArtifactError, match=said):
        open_artifact(kernel.at(tmp_path / "k"), kernel.compiled, kernel.verdict, ring.trust)


def test_archives_are_made_the_same_twice(ring: KeyRing) -> None:
    assert made(ring).data == made(ring).data
    spec, blueprint = spec_of(blueprint_of()), blueprint_of()
    with pytest.raises(ArtifactError, match="must not be called"):
        artifact_files(spec, blueprint, trains=True, parts={"manifest.json": b""})
    assert encode_archive(artifact_files(spec, blueprint, trains=True)) == made(ring).data


def resigned(signed: Signed, **change: str) -> Signed:
    return signed.model_copy(update={"signature": signed.signature.model_copy(update=change)})


def test_a_statement_is_believed_only_with_the_signature_of_its_role(kernel: Made, ring: KeyRing) -> None:
    trust = ring.trust
    assert trust.verify(kernel.verdict, Role.URABRASK) == kernel.said
    forged = kernel.verdict.model_copy(update={"statement": kernel.verdict.statement.replace("0.5", "0.6")})
    with pytest.raises(ArtifactError, match="does not belong to this statement"):
        trust.verify(forged, Role.URABRASK)
    with pytest.raises(ArtifactError, match="unknown key 0000"):
        trust.verify(resigned(kernel.verdict, key="0" * 16), Role.URABRASK)
    with pytest.raises(ArtifactError, match="does not belong"):
        trust.verify(resigned(kernel.verdict, value=kernel.compiled.signature.value), Role.URABRASK)
    with pytest.raises(ArtifactError, match="of urabrask; planner must"):
        trust.verify(kernel.verdict, Role.PLANNER)


def test_a_signature_with_other_spare_bits_is_refused(kernel: Made, ring: KeyRing) -> None:
    value = kernel.verdict.signature.value
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    spare = value[:85] + letters[letters.index(value[85]) ^ 1] + "=="
    assert base64.b64decode(spare) == base64.b64decode(value)
    with pytest.raises(ArtifactError, match="one allowed form"):
        ring.trust.verify(resigned(kernel.verdict, value=spare), Role.URABRASK)


def test_nobody_signs_what_is_not_his_to_say(kernel: Made, ring: KeyRing) -> None:
    with pytest.raises(ArtifactError, match="Verdict is not for tezzeret"):
        ring.sign(Role.TEZZERET, kernel.said)
    ruling = Ruling(kernel=kernel.statement.kernel, state="Quarantined", reason="it failed")
    with pytest.raises(ArtifactError, match="Ruling is not for urabrask"):
        ring.sign(Role.URABRASK, ruling)


def test_a_statement_that_contradicts_itself_is_refused(kernel: Made, ring: KeyRing) -> None:
    other = made(ring, "conv-pair-bn").statement
    mixed = kernel.statement.model_copy(update={"kernel": other.kernel})
    with pytest.raises(ArtifactError, match=f"names {other.kernel}, but its spec"):
        ring.trust.verify(ring.sign(Role.TEZZERET, mixed), Role.TEZZERET)
    said = kernel.said.model_copy(update={"kernel": other.kernel})
    with pytest.raises(ArtifactError, match="its report is about"):
        ring.trust.verify(ring.sign(Role.URABRASK, said), Role.URABRASK)


def test_a_signed_statement_has_one_form_as_a_file(kernel: Made) -> None:
    data = encode_signed(kernel.compiled)
    assert decode_signed(data) == kernel.compiled
    for other in (data + b"\n", data.replace(b'":', b'": ', 1), b"\xff", b"null", b'{"a":1}', b"9" * 5000):
        with pytest.raises(ArtifactError):
            decode_signed(other)
    number = canonical_json({"statement": 3, "signature": {"key": "0" * 16, "value": "A" * 86 + "=="}})
    with pytest.raises(ArtifactError, match="statement: Input should be a valid string"):
        decode_signed(number)
