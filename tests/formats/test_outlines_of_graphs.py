"""Graphs read without their weights are what onnx itself reads, however the fields of the message are laid out."""

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.formats.onnx.onnx_outline import read_outline


@pytest.mark.parametrize("arguments", [("inspect",), ("inspect", "--memory"), ("audit",)])
def test_weights_that_onnx_brought_back_into_the_file_are_read(
    external_path: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    onnx.save(onnx.load(external_path), tmp_path / "merged.onnx")
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "merged.onnx")])
    assert result.exit_code == 0, result.output


FIELDS = st.lists(
    st.one_of(
        st.builds(lambda where: onnx.TensorProto(data_location=where), st.sampled_from((0, 1))),
        st.builds(
            lambda size, byte: onnx.TensorProto(raw_data=bytes([byte]) * size),
            st.sampled_from((0, 8, 1024, 4096)),
            st.integers(0, 255),
        ),
        st.just(onnx.TensorProto(name="w")),
        st.just(onnx.TensorProto(external_data=[onnx.StringStringEntryProto(key="location", value="other.bin")])),
    ),
    max_size=6,
)


@given(parts=FIELDS)
def test_of_fields_that_come_twice_the_last_one_counts(
    parts: list[onnx.TensorProto], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Messages behind each other are one message to protobuf.
    message = b"".join(part.SerializeToString() for part in parts)
    path = tmp_path_factory.mktemp("outline") / "m.onnx"
    path.write_bytes(_model(message))
    expected, found = onnx.load(path, load_external_data=False).graph.initializer[0], _outline(path)
    if expected.data_location == onnx.TensorProto.EXTERNAL or not expected.raw_data:
        assert (found.data_location, len(found.external_data)) == (expected.data_location, len(expected.external_data))
    elif found.data_location == onnx.TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in found.external_data}
        begin, length = int(place["offset"]), int(place["length"])
        assert place["location"] == "m.onnx"
        assert path.read_bytes()[begin : begin + length] == expected.raw_data
    else:
        assert found.raw_data == expected.raw_data


def _outline(path: Path) -> onnx.TensorProto:
    tensor: onnx.TensorProto = read_outline(path).graph.initializer[0]
    return tensor


def _model(tensor: bytes) -> bytes:
    """Returns the bytes of a model with one initializer, which those of ``tensor`` are."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    padding = onnx.TensorProto(doc_string="x" * 1100).SerializeToString()  # large enough to be left in the file
    return bytes([1 << 3, 8]) + field(7, field(5, padding + tensor))


def _varint(value: int) -> bytes:
    encoded = b""
    while value >= 0x80:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])
