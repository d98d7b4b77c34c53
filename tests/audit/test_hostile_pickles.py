import argparse
import collections
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import _weights_only_unpickler

from qtool.formats.containers.pickle_globals import TENSOR_GLOBALS, Meaning, meaning
from qtool.formats.errors import FormatError
from qtool.formats.torch.torch_checkpoint import TorchCheckpoint

FORMS = (
    "global",
    "stack global",
    "names from the memo",
    "inst",
    "obj",
    "reduce chain",
    "nested",
    "broken behind",
    "dotted",
    "python 2",
)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_pickle_would_run_is_told_and_not_run(
    tmp_path: Path, audited: Any, form: str, payload: Any, checkpoint: Any
) -> None:
    witness = tmp_path / "ran"
    content = payload(form, witness)
    path = tmp_path / "m.pth"
    path.write_bytes(checkpoint(content))
    report = audited(path)
    assert not witness.exists()
    assert any(finding["risk"] == "runs code" for finding in report["findings"])
    if form != "names from the memo":
        assert any("mkdir" in call or "loads" in call for call in report["calls"]), report
    with pytest.raises(FormatError, match="as an attack does"):
        TorchCheckpoint().read(path)
    assert not witness.exists()
    _open_as_anyone_would(content)
    assert witness.exists(), "the attack is a real one"


@pytest.mark.parametrize("form", FORMS)
def test_a_bare_pickle_and_an_old_checkpoint_are_followed_too(
    tmp_path: Path, audited: Any, form: str, payload: Any
) -> None:
    content = payload(form, tmp_path / "ran")
    (tmp_path / "bare.pkl").write_bytes(content)
    assert audited(tmp_path / "bare.pkl")["findings"]
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    (tmp_path / "old.pth").write_bytes(head + content + pickle.dumps([], 2))
    found = audited(tmp_path / "old.pth")["findings"]
    assert {finding["where"] for finding in found if finding["risk"] == "runs code"} == {"pickle 4"}
    assert not (tmp_path / "ran").exists()


def test_weights_are_safe_in_every_way_to_store_them(tmp_path: Path, audited: Any) -> None:
    state = {
        "w": torch.nn.Parameter(torch.ones(3, 4)),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "n": torch.tensor(3),
        "sparse": torch.eye(3).to_sparse(),
        "empty": torch.empty(0),
        "bits": torch.ones(3, dtype=torch.uint16),
    }
    for name, options in {
        "new": {},
        "old": {"_use_new_zipfile_serialization": False},
        "protocol": {"pickle_protocol": 4},
    }.items():
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / f"{name}.pth", **options)
        assert audited(tmp_path / f"{name}.pth")["findings"] == []


def test_every_import_that_passes_for_tensors_is_one_that_torch_itself_lets_pass() -> None:
    assert set(_weights_only_unpickler._get_allowed_globals()) >= TENSOR_GLOBALS


def test_other_classes_are_told_from_attacks(tmp_path: Path, audited: Any) -> None:
    torch.save({"w": torch.ones(1), "args": argparse.Namespace(lr=1)}, tmp_path / "m.pth")
    (finding,) = audited(tmp_path / "m.pth")["findings"]
    assert finding["what"] == "imports argparse.Namespace, which runs the code of a class"
    assert finding["where"] == "m/data.pkl"


def test_types_that_only_hold_values_are_no_attack(tmp_path: Path, audited: Any) -> None:
    hparams = collections.defaultdict(dict, {"save_dir": pathlib.PurePosixPath("runs/1")})
    torch.save({"w": torch.ones(1), "hparams": hparams}, tmp_path / "m.pth")
    said = {finding["what"] for finding in audited(tmp_path / "m.pth")["findings"]}
    assert said == {
        f"imports {name}, which runs the code of a class"
        for name in ("builtins.dict", "collections.defaultdict", f"{pathlib.PurePosixPath.__module__}.PurePosixPath")
    }


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_every_python_only_hold_values(module: str) -> None:
    assert meaning(f"{module}.PurePosixPath") is Meaning.OBJECT
    assert meaning(f"{module}.os.system") is Meaning.ATTACK


def test_a_pickle_that_is_cut_anywhere_is_damaged(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as archive:
        whole = archive.read("whole/data.pkl")
    for length in range(2, len(whole) - 1, 7):
        (tmp_path / "cut.pth").write_bytes(checkpoint(whole[:length], {"data/0": bytes(12)}))
        assert any("damaged" in finding["what"] for finding in audited(tmp_path / "cut.pth")["findings"]), length
        with pytest.raises(FormatError, match="damaged"):
            TorchCheckpoint().read(tmp_path / "cut.pth")


def test_lengths_beyond_the_end_take_no_memory(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    for claim in (b"\x8e" + (1 << 62).to_bytes(8, "little"), b"\x8d" + b"\xff" * 8, b"T\xff\xff\xff\x7f"):
        (tmp_path / "m.pth").write_bytes(checkpoint(b"\x80\x04" + claim + b"abc."))
        assert "more than there are" in audited(tmp_path / "m.pth")["findings"][0]["what"]


def test_pickles_in_pickles_in_pickles_end_somewhere(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    content = b"\x80\x03cos\nsystem\n."
    for _ in range(3):
        content = b"\x80\x03B" + len(content).to_bytes(4, "little") + content + b"."
    (tmp_path / "m.pth").write_bytes(checkpoint(content))
    assert "os.system" in audited(tmp_path / "m.pth")["imports"]
    for _ in range(30):
        content = b"\x80\x03B" + len(content).to_bytes(4, "little") + content + b"."
    (tmp_path / "m.pth").write_bytes(checkpoint(content))
    assert "os.system" not in audited(tmp_path / "m.pth")["imports"]


def test_operations_without_operands_are_damage(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    for operation in (b"R", b"\x93", b"t", b"s", b"u", b"o", b"\x81", b"\x92", b"b", b"q\x00", b"2", b"0"):
        (tmp_path / "m.pth").write_bytes(checkpoint(b"\x80\x04" + operation + b"."))
        assert "lacks its operands" in audited(tmp_path / "m.pth")["findings"][0]["what"], operation


@pytest.fixture
def read_claim(tmp_path: Path, checkpoint: Any) -> Callable[[int, int], Path]:
    """Writes a checkpoint whose pickle says that its data has so many elements."""

    def write(claimed: int, held: int) -> Path:
        torch.save({"w": torch.ones(2)}, tmp_path / "true.pth")
        with zipfile.ZipFile(tmp_path / "true.pth") as archive:
            stored = archive.read("true/data.pkl")
        lying = re.sub(rb"(cpuq.K)\x02", rb"\g<1>" + bytes([claimed]), stored, flags=re.DOTALL)
        assert claimed == 2 or lying != stored
        (tmp_path / "m.pth").write_bytes(checkpoint(lying, {"data/0": bytes(held)}))
        return tmp_path / "m.pth"

    return write


def test_data_that_is_shorter_than_its_tensor_is_found(audited: Any, read_claim: Any) -> None:
    assert audited(read_claim(2, 8))["findings"] == []
    (finding,) = audited(read_claim(200, 8))["findings"]
    assert finding["what"] == "takes 800 bytes from 'data/0', which has 8"
    with pytest.raises(FormatError, match="takes 800 bytes"):
        TorchCheckpoint().read(read_claim(200, 8))


def _open_as_anyone_would(content: bytes) -> None:
    try:
        pickle.loads(content)
    except pickle.UnpicklingError:
        return
