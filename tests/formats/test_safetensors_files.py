import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings

from qtool.formats.base import Weights
from qtool.formats.errors import FormatError
from qtool.formats.torch.torch_checkpoint import TorchCheckpoint
from qtool.formats.weights.safetensors_file import SafetensorsFile
from qtool.formats.weights.safetensors_header import read_header

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
    tensors = {}
    for name in names:
        if name == "__metadata__":
            continue
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        seed = draw(st.integers(0, 1000))
        count = int(torch.tensor(shape).prod()) if shape else 1
        noise = torch.randint(0, 256, (count * 16,), generator=torch.Generator().manual_seed(seed))
        values = noise.to(torch.uint8)[: count * dtype.itemsize]
        bits = values % 2 if dtype is torch.bool else values
        tensors[name] = bits.view(dtype).reshape(shape)
    return tensors or {"w": torch.zeros(1)}


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
        assert bits(tensor) == bits(right[name])


@settings(max_examples=60)
@given(state=state_dicts())
def test_every_type_and_shape_survives_pth_to_safetensors_and_back(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    torch.save(state, folder / "a.pth")
    SafetensorsFile().write(TorchCheckpoint().read(folder / "a.pth"), folder / "b.safetensors")
    TorchCheckpoint().write(SafetensorsFile().read(folder / "b.safetensors"), folder / "c.pth")
    assert_same(dict(safetensors.torch.load_file(folder / "b.safetensors")), state)
    assert_same(torch.load(folder / "c.pth", weights_only=True), state)


def test_metadata_survives(tmp_path: Path) -> None:
    weights = Weights(tensors={"w": torch.ones(2)}, metadata={"format": "pt", "licence": "ü"}, source="test")
    SafetensorsFile().write(weights, tmp_path / "m.safetensors")
    assert SafetensorsFile().read(tmp_path / "m.safetensors").metadata == weights.metadata
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as stored:
        assert stored.metadata() == weights.metadata


def test_the_same_weights_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    state = {"b": torch.ones(3, dtype=torch.int8), "a": torch.zeros(2), "c": torch.ones(1, dtype=torch.float64)}
    for name, tensors in {"one": state, "two": dict(reversed(state.items()))}.items():
        weights = Weights(tensors=tensors, metadata={"y": "1", "x": "2"}, source="test")
        SafetensorsFile().write(weights, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tied_and_strided_tensors_are_complete_for_every_reader_and_tied_for_ours(tmp_path: Path) -> None:
    table = torch.randn(4, 6)
    state = {"embed": table, "head": table, "turned": table.T, "row": table[1]}
    SafetensorsFile().write(Weights(tensors=state, metadata={}, source="test"), tmp_path / "m.safetensors")
    assert_same(dict(safetensors.torch.load_file(tmp_path / "m.safetensors")), state)
    again = SafetensorsFile().read(tmp_path / "m.safetensors")
    assert again.tensors["head"] is again.tensors["embed"]
    assert again.tensors["row"] is not again.tensors["embed"]
    assert again.metadata == {}


def test_a_tie_that_the_file_contradicts_is_dropped(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(2)}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors", metadata={"tied": json.dumps({"b": "a"})})
    assert_same(dict(SafetensorsFile().read(tmp_path / "m.safetensors").tensors), state)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
    ],
)
def test_tensors_that_the_format_lacks_are_named(tmp_path: Path, tensor: torch.Tensor, kind: str) -> None:
    with pytest.raises(FormatError, match=f"'odd' is .*{kind}"):
        SafetensorsFile().write(Weights(tensors={"odd": tensor}, metadata={}, source=""), tmp_path / "m.safetensors")


def with_header(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7), "truncated"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9), "belong to no tensor"),
        ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8), "another number of bytes"),
        ({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8), "another number of bytes"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12), "overlaps"),
        ({"w": {"dtype": "F32", "shape": [2]}}, bytes(8), "not described completely"),
        ({"w": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8), "element type X9"),
        ({"w": 3}, b"", "not described completely"),
        ({"__metadata__": {"a": 1}}, b"", "metadata is not text"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, header: object, data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_header(with_header(tmp_path / "m.safetensors", header, data))


def test_a_header_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((5).to_bytes(8, "little") + b"{abcd")
    with pytest.raises(FormatError, match="not JSON"):
        read_header(path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no tensors"):
        SafetensorsFile().read(with_header(tmp_path / "m.safetensors", {}))
