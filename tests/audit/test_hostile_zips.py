import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool.formats.detect import detect
from qtool.formats.errors import FormatError
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.torch.exported_program_file import ExportedProgramFile
from qtool.formats.torch.torchscript_file import TorchScriptFile


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """A good checkpoint."""
    torch.save({"w": torch.ones(300)}, tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()


def with_member(content: bytes, name: str, data: bytes, *, mode: int = 0, compressed: bool = False) -> bytes:
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    return stream.getvalue()


def refused(tmp_path: Path, audited: Any, content: bytes, risk: str, what: str) -> None:
    """Checks that both the audit and the load see it."""
    (tmp_path / "bad.pth").write_bytes(content)
    findings = audited(tmp_path / "bad.pth")["findings"]
    assert any(finding["risk"] == risk and what in finding["what"] for finding in findings), findings
    with pytest.raises(FormatError, match=what):
        detect(tmp_path / "bad.pth")


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/etc/passwd", "C:/windows/x", "..\\up", "\\\\host\\share"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, audited: Any, whole: bytes, name: str) -> None:
    refused(tmp_path, audited, with_member(whole, name, b"x"), "reaches outside", "outside of its folder")


def test_a_member_that_is_a_link_is_refused(tmp_path: Path, audited: Any, whole: bytes) -> None:
    content = with_member(whole, "whole/link", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)
    refused(tmp_path, audited, content, "reaches outside", "is a link")


def test_a_bomb_is_not_unpacked(tmp_path: Path, audited: Any, whole: bytes) -> None:
    content = with_member(whole, "whole/data/1", bytes(100 << 20), compressed=True)
    assert len(content) < 1 << 20
    refused(tmp_path, audited, content, "does not add up", "zip bomb")


def test_a_member_over_another_is_refused(tmp_path: Path, audited: Any, whole: bytes) -> None:
    # The second entry of the directory points at the bytes of the first, as overlapping bombs do.
    start = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", start + 4)
    first_offset = struct.unpack_from("<I", whole, start + 42)[0]
    content = bytearray(whole)
    struct.pack_into("<I", content, second + 42, first_offset)
    refused(tmp_path, audited, bytes(content), "does not add up", "over the member before it")


def test_a_name_that_differs_in_the_two_headers_is_refused(tmp_path: Path, audited: Any, whole: bytes) -> None:
    changed = whole.replace(b"whole/data.pkl", b"whole/dota.pkl", 1)
    assert changed != whole
    refused(tmp_path, audited, changed, "does not add up", "another name in its own header")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, audited: Any, whole: bytes) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        content = with_member(whole, "whole/data.pkl", b"\x80\x02}.")
    refused(tmp_path, audited, content, "does not add up", "twice")


def test_sizes_that_contradict_each_other_are_refused(tmp_path: Path, audited: Any, whole: bytes) -> None:
    start = whole.index(b"PK\x01\x02")
    content = bytearray(whole)
    struct.pack_into("<I", content, start + 24, 1 << 20)
    refused(tmp_path, audited, bytes(content), "does not add up", "two different sizes")


def test_a_file_in_a_file_in_a_file_is_looked_into(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    inner = checkpoint(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.")
    for _ in range(2):
        inner = checkpoint(b"\x80\x02}.", {"inner.pt": inner})
    (tmp_path / "m.pth").write_bytes(inner)
    (finding,) = audited(tmp_path / "m.pth")["findings"]
    assert finding["where"] == "m/inner.pt:m/inner.pt:m/data.pkl"


def test_machine_code_is_told(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    (tmp_path / "m.pt2").write_bytes(checkpoint(b"\x80\x02}.", {"data/aotinductor/model/x.so": b"\x7fELF"}))
    assert audited(tmp_path / "m.pt2")["findings"][0]["what"] == "is a library of machine code"


def test_torchscript_is_safe_unless_it_reaches_for_files(tmp_path: Path, audited: Any, rewritten: Any) -> None:
    with quiet_libraries():
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.ones(1, 3)), tmp_path / "good.pt")
    assert audited(tmp_path / "good.pt")["findings"] == []
    path = tmp_path / "bad.pt"
    code = rewritten(
        (tmp_path / "good.pt").read_bytes(), {"linear.py": lambda text: text + b'\n  torch.save(x, "/tmp/x")\n'}
    )
    path.write_bytes(code)
    (finding,) = audited(path)["findings"]
    assert (finding["risk"], finding["what"]) == ("reaches outside", "calls torch.save, which reads or writes files")
    with pytest.raises(FormatError, match="reads or writes files"):
        TorchScriptFile().read(path)


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        fields = json.loads(content)
        change(fields)
        return json.dumps(fields).encode()

    return edit


def node(fields: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = fields["graph_module"]["graph"]["nodes"][0]
    return first


def dims(fields: dict[str, Any]) -> dict[str, Any]:
    size: dict[str, Any] = fields["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"]
    return size


EVIL = "__import__('os').system('id')"


@pytest.mark.parametrize(
    ("ending", "change", "what"),
    [
        ("weights_config.json", lambda f: f["config"]["weight"].update(use_pickle=True), "pickle without checks"),
        ("weights_config.json", lambda f: f["config"]["weight"].update(path_name="../../x"), "or a file outside"),
        ("constants_config.json", lambda f: f["config"].update(c={"path_name": "opaque_obj_0"}), "as a pickle"),
        ("model.json", lambda f: dims(f).update(expr_str=EVIL), "as Python"),
        ("model.json", lambda f: dims(f).update(expr_str="lambda: 1"), "as Python"),
        ("model.json", lambda f: dims(f).update(expr_str="s0.__class__"), "as Python"),
        ("model.json", lambda f: f.update(guards_code=["L['x'].size()[0] < 9", EVIL]), "as Python"),
        ("model.json", lambda f: node(f).update(target="torch.hub.load"), "no operator of torch"),
        ("model.json", lambda f: node(f).update(target="torch.serialization.os.system"), "no operator of torch"),
        ("model.json", lambda f: node(f).update(target="_operator.methodcaller"), "no operator of torch"),
        (
            "model.json",
            lambda f: f.update(extra='{"type": "defaultdict", "default_factory_module": "os"}'),
            "makes torch import",
        ),
        ("model.json", lambda f: f.update(extra='{"__enum__": true, "fqn": "os:x"}'), "makes torch import"),
    ],
)
def test_whatever_an_exported_program_would_run_is_refused(
    tmp_path: Path,
    audited: Any,
    rewritten: Any,
    exported: Path,
    ending: str,
    change: Callable[[dict[str, Any]], None],
    what: str,
) -> None:
    assert audited(exported)["findings"] == []
    path = tmp_path / "bad.pt2"
    path.write_bytes(rewritten(exported.read_bytes(), {ending: edited(change)}))
    findings = audited(path)["findings"]
    assert [finding["risk"] for finding in findings] == ["runs code"]
    assert what in findings[0]["what"]
    with pytest.raises(FormatError, match="not safe to open"):
        ExportedProgramFile().read(path)


def test_sample_inputs_that_are_a_pickle_with_code_are_refused(
    tmp_path: Path, rewritten: Any, exported: Path, payload: Any, checkpoint: Any
) -> None:
    # torch falls back to opening them without any checks when its own careful reader refuses.
    evil = checkpoint(payload("global", tmp_path / "ran"))
    path = tmp_path / "bad.pt2"
    path.write_bytes(rewritten(exported.read_bytes(), {"sample_inputs/model.pt": lambda _: evil}))
    with pytest.raises(FormatError, match=r"would run os\.mkdir"):
        ExportedProgramFile().read(path)
    assert not (tmp_path / "ran").exists()
    with quiet_libraries(), pytest.raises(AssertionError, match="expected tuple or dict"):
        torch.export.load(path)
    assert (tmp_path / "ran").exists(), "the attack is a real one"


def test_a_zip_behind_another_one_is_refused(tmp_path: Path, audited: Any, whole: bytes) -> None:
    (tmp_path / "two.pth").write_bytes(whole + whole)
    (finding,) = audited(tmp_path / "two.pth")["findings"]
    assert "begins after" in finding["what"]


@pytest.mark.parametrize("name", ["notes.txt", "data/readme", ".data/serialization_id"])
@pytest.mark.parametrize("form", ["inst", "protocol 0", "protocol 1", "broken behind"])
def test_a_pickle_of_the_first_protocols_is_found_under_any_name(
    tmp_path: Path, audited: Any, checkpoint: Any, payload: Any, name: str, form: str
) -> None:
    contents = {
        "inst": payload("inst", tmp_path / "ran"),
        "protocol 0": b"cos\nmkdir\np0\n(Vran\np1\ntp2\nRp3\n.",
        "protocol 1": b"cos\nmkdir\nq\x00(X\x03\x00\x00\x00ranq\x01tq\x02Rq\x03.",
        "broken behind": b"cos\nmkdir\n(S'ran'\ntR and more",
    }
    (tmp_path / "m.pth").write_bytes(checkpoint(b"\x80\x02}.", {name: contents[form]}))
    findings = audited(tmp_path / "m.pth")["findings"]
    assert {finding["where"] for finding in findings} == {f"m/{name}"}
    assert any("mkdir" in finding["what"] for finding in findings)


def test_texts_and_numbers_beside_the_weights_are_no_pickles(tmp_path: Path, audited: Any, checkpoint: Any) -> None:
    members = {
        "readme.txt": b"a model\nof weights\n",
        "classes.txt": b"cat\ndog\nice cream\n",
        "code.py": b"import os\nclass Model:\n    pass\n",
        "settings.json": b'{"a": [1, 2]}',
        "labels": bytes(range(256)),
    }
    (tmp_path / "m.pth").write_bytes(checkpoint(b"\x80\x02}.", members))
    assert audited(tmp_path / "m.pth")["findings"] == []
