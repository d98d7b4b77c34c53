"""Keras configurations that make what is not of Keras: at any depth, in any place, in both kinds of files."""

import base64
import json
import marshal
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.formats.tensorflow.keras_objects import foreign_objects
from tests.hdf5_files import HDF5_HEAD, write_h5

CODE = base64.b64encode(marshal.dumps((lambda x: x * 2).__code__)).decode()


def made(class_name: str, module: str | None = "keras.layers", registered: str | None = None, **config: Any) -> Any:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered}


def function(module: str, name: str) -> Any:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def model(*layers: Any, **extra: Any) -> Any:
    return {**made("Functional", "keras.src.models.functional", "Functional", name="m", layers=list(layers)), **extra}


def write_keras(path: Path, config: Any, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.11.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", HDF5_HEAD)
        for name, content in (members or {}).items():
            archive.writestr(name, content)
    return path


GOOD = model(
    made("InputLayer", batch_shape=[None, 4], dtype="float32", name="i"),
    made(
        "Dense",
        units=2,
        activation="relu",
        kernel_initializer=made("GlorotUniform", "keras.initializers"),
        kernel_regularizer=made("L2", "keras.regularizers", l2=0.1),
        dtype=made("DTypePolicy", "keras", name="float32"),
    ),
    made("Add", "keras.src.ops.numpy", "Add", name="add"),
    made("Bidirectional", layer=made("LSTM", units=3, activation="tanh")),
    made("StringLookup", vocabulary=["a", "b"]),
    compile_config={
        "optimizer": made("Adam", "keras.optimizers"),
        "loss": function("builtins", "mean_squared_error"),
        "metrics": ["accuracy"],
    },
)
FOREIGN = {
    "another package's function": (made("run", "subprocess", args=["id"]), "subprocess.run"),
    "a function of Python": (function("builtins", "eval"), "builtins.eval"),
    "a function of the system": (function("os", "system"), "os.system"),
    "a class under a known name": (made("Dense", "evil_package"), "evil_package.Dense"),
    "a known class registered as another": (made("Dense", registered="evil>Dense"), "evil>Dense"),
    "a class of its own": (made("Mine", "mine.layers", "mine>Mine"), "mine.layers.Mine"),
    "the unsafe switch": (function("keras.config", "enable_unsafe_deserialization"), "enable_unsafe_deserialization"),
    "a download": (function("keras.utils", "get_file"), "keras.utils.get_file"),
    "a way through Keras": (made("Dense", "keras.src.saving.os"), "keras.src.saving.os.Dense"),
    "a lambda layer": (made("Lambda", arguments={}), "class Lambda"),
    "a bare lambda": ({"class_name": "__lambda__", "config": {"value": [CODE, None, None]}}, "__lambda__"),
    "code without a class": ({"value": [CODE, None, None]}, "Python code"),
    "a program of another kind": (made("TFSMLayer", filepath="x"), "class TFSMLayer"),
    "a type of another package": (
        {"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess", "config": []},
        "subprocess.Popen",
    ),
    "an operator that reads files": (made("TFOpLambda", None, function="io.read_file"), "io.read_file"),
    "a vocabulary in a file": (made("StringLookup", vocabulary="/etc/passwd"), "/etc/passwd"),
    "a class without a name": ({"class_name": ["Dense"], "config": {}}, "no name"),
}


@pytest.mark.parametrize("form", FOREIGN)
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_what_is_not_of_keras_is_told_and_not_loaded(
    tmp_path: Path, audited: Any, run: Any, form: str, suffix: str
) -> None:
    foreign, said = FOREIGN[form]
    config = model(made("TimeDistributed", layer=made("Dense", activation=foreign)))
    path = tmp_path / f"m.{suffix}"
    if suffix == "keras":
        write_keras(path, config)
    else:
        write_h5(path, {"keras_version": "3.11.0", "model_config": json.dumps(config)})
    findings = audited(path)["findings"]
    assert any(said in finding["what"] for finding in findings), findings
    assert all("config/layers/0/config/layer/config/activation" in finding["where"] for finding in findings)
    result = run("convert", path, "-o", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "is not safe to load" in result.stderr
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("place", ["kernel_initializer", "bias_regularizer", "kernel_constraint", "activation"])
@pytest.mark.parametrize("value", ["os.system", {"value": [CODE]}, ["relu"]])
def test_a_part_that_is_neither_a_known_name_nor_an_object_is_told(
    tmp_path: Path, audited: Any, place: str, value: Any
) -> None:
    config = model(made("Dense", **{place: value}))
    assert audited(write_keras(tmp_path / "m.keras", config))["findings"]


def test_models_of_keras_alone_are_safe(tmp_path: Path, audited: Any) -> None:
    assert audited(write_keras(tmp_path / "m.keras", GOOD))["findings"] == []
    h5 = write_h5(tmp_path / "m.h5", {"model_config": json.dumps(GOOD), "training_config": json.dumps({"loss": "mse"})})
    assert audited(h5)["findings"] == []


def test_training_settings_and_the_model_itself_are_looked_at(tmp_path: Path, audited: Any) -> None:
    loss = json.dumps({"loss": function("os", "system")})
    path = write_h5(tmp_path / "m.h5", {"model_config": json.dumps(GOOD), "training_config": loss})
    assert [finding["where"] for finding in audited(path)["findings"]] == ["configuration, loss"]
    compiled = {**GOOD, "compile_config": {"metrics": [function("os", "system")]}}
    (finding,) = audited(write_keras(tmp_path / "c.keras", compiled))["findings"]
    assert finding["where"] == "configuration, compile_config/metrics/0"
    (finding,) = audited(write_keras(tmp_path / "t.keras", made("system", "os", command="id")))["findings"]
    assert "os.system" in finding["what"]


def test_a_second_text_does_not_hide_the_configuration_that_keras_reads(tmp_path: Path, audited: Any) -> None:
    evil = json.dumps(model(made("Lambda")), indent=1).replace("class_name", "class\\u005fname")
    path = write_h5(tmp_path / "m.h5", {"decoy": json.dumps(GOOD), "model_config": evil})
    assert any("class Lambda" in finding["what"] for finding in audited(path)["findings"])


def test_a_configuration_that_cannot_be_found_for_sure_is_no_safe_one(tmp_path: Path, audited: Any) -> None:
    (tmp_path / "m.h5").write_bytes(HDF5_HEAD + b"\x02" + bytes(200) + b"model_config" + json.dumps(GOOD).encode())
    (finding,) = audited(tmp_path / "m.h5")["findings"]
    assert finding["risk"] == "does not add up"


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<HH4x", 0x07, 16) + bytes([1, 0, 0, 0, 1, 0, 1, 0]) + bytes(8),
        struct.pack("<HH4x", 0x06, 16) + bytes([1, 8, 64, 1]) + b"x" + bytes(11),
        struct.pack("<HH4x", 0x08, 16) + bytes([4, 3]) + bytes(14),
    ],
)
def test_weights_out_of_other_files_are_told(tmp_path: Path, audited: Any, message: bytes) -> None:
    path = write_h5(tmp_path / "m.h5", {"model_config": json.dumps(GOOD)}, messages=message, count=1)
    (finding,) = audited(path)["findings"]
    assert (finding["risk"], finding["where"]) == ("reaches outside", "weights")


def test_a_pickle_among_the_assets_does_not_hide_the_layers(tmp_path: Path, audited: Any) -> None:
    assets = {"assets/words.txt": b"cos\nsystem\n(S'id'\ntR.", "assets/more.txt": b"cat\ndog\ni\n"}
    findings = audited(write_keras(tmp_path / "m.keras", model(made("Lambda")), assets))["findings"]
    assert {finding["where"].partition(",")[0] for finding in findings} == {"assets/words.txt", "configuration"}


plain = st.none() | st.booleans() | st.integers() | st.sampled_from(["relu", "same", "channels_last"])
keys = st.sampled_from(["layer", "layers", "cell", "kwargs", "args", "build_config", "x"])
known = st.sampled_from([made("Dense"), made("Add", "keras.src.ops.numpy"), function("keras.activations", "gelu")])
trees = st.recursive(
    plain | known,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.builds(lambda values: made("Wrapper", **values), st.dictionaries(keys, inner, max_size=2))
    ),
    max_leaves=12,
)


@given(tree=trees)
def test_nothing_of_keras_is_ever_foreign(tree: Any) -> None:
    assert list(foreign_objects(tree)) == []


@given(
    tree=trees,
    steps=st.lists(st.sampled_from(["list", "wrapper", "config"]), max_size=30),
    form=st.sampled_from([*FOREIGN]),
)
def test_what_is_foreign_is_found_at_any_depth(tree: Any, steps: list[str], form: str) -> None:
    inner, said = FOREIGN[form]
    for step in steps:
        match step:
            case "list":
                inner = [tree, inner]
            case "wrapper":
                inner = made("Wrapper", layer=inner, other=tree)
            case _:
                inner = {"kwargs": inner, "args": tree}
    assert any(said in finding.what for finding in foreign_objects(inner))


odd = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["Dense", "function", "__typespec__", "TypeSpec"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["class_name", "module", "config", "registered_name", "spec_name", "type_spec", "activation"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(config=odd)
def test_objects_of_any_form_are_looked_at_without_a_stop(config: Any) -> None:
    assert all(finding.what for finding in foreign_objects(config))
