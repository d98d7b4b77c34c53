from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from qtool.formats.errors import FormatError
from qtool.formats.torch.example_inputs import InputSpec, first_sizes, make_feeds
from qtool.formats.torch.torch_program import BoundInput, bind, export, run


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, Any]:
        hidden = self.layer(self.table(ids)) * mask.unsqueeze(-1)
        return {"hidden": hidden if scale is None else hidden * scale, "mean": hidden.mean(1)}


class Fixed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 8)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def one(shape: tuple[int | str, ...], name: str = "x") -> InputSpec:
    return InputSpec(name=name, dims=shape, dtype=np.dtype(np.float32))


def names(bound: tuple[BoundInput, ...]) -> dict[str, str]:
    return {entry.parameter: entry.spec.name for entry in bound}


TOKENS = {"ids": ("batch", "seq"), "mask": ("batch", "seq")}
FEEDS = {"mask": np.ones((3, 5), np.int64), "ids": np.ones((3, 5), np.int64), "labels": np.zeros(3)}


def test_inputs_take_the_names_and_order_of_forward() -> None:
    assert names(bind(Two(), shapes=dict(reversed(TOKENS.items())))) == {"ids": "ids", "mask": "mask"}


def test_optional_parameters_are_inputs_when_asked_for() -> None:
    assert list(names(bind(Two(), shapes={**TOKENS, "scale": (1,)}))) == ["ids", "mask", "scale"]


def test_a_single_input_keeps_the_name_it_is_given() -> None:
    assert names(bind(torch.nn.Linear(2, 2), shapes={"image": ("batch", 2)})) == {"input": "image"}
    assert names(bind(torch.nn.Linear(2, 2), shapes={"": ("batch", 2)})) == {"input": "input"}


def test_data_gives_shapes_and_types_and_labels_are_left_aside() -> None:
    bound = bind(Two(), feeds=FEEDS)
    assert [(entry.spec.name, entry.spec.dims, entry.spec.dtype) for entry in bound] == [
        ("ids", ("batch", 5), np.int64),
        ("mask", ("batch", 5), np.int64),
    ]
    data = {"photo": np.zeros((4, 2)), "_label": np.zeros(4, np.int64)}
    (only,) = bind(torch.nn.Linear(2, 2), feeds=data)
    assert (only.parameter, only.spec) == ("input", one(("batch", 2), "photo"))


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        ({}, "takes ids, mask", "--input-shape ids="),
        ({"shapes": {"ids": (1, 2)}}, "needs mask too", "mask="),
        ({"shapes": {"ids": (1, 2), "msk": (1, 2)}}, "no parameter 'msk'", "mask="),
        (
            {"feeds": {"ids": FEEDS["ids"], "attention_mask": FEEDS["mask"]}},
            "no array 'mask'",
            "rename 'attention_mask'",
        ),
        ({"shapes": TOKENS, "feeds": {"ids": FEEDS["ids"]}}, "no array 'mask'", "to 'mask'"),
    ],
)
def test_inputs_that_do_not_match_forward_are_named(arguments: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        bind(Two(), **arguments)
    assert fix in caught.value.fix


def test_the_graph_has_the_outputs_names_and_free_dimensions_of_the_module(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    module = Two().eval()
    bound = bind(module, shapes=TOKENS, dtypes={"ids": np.dtype(np.int64)})
    specs = [entry.spec for entry in bound]
    feeds = make_feeds(specs, first_sizes(specs, None), None)
    model = export(module, bound, feeds)
    assert [(value.name, str(value.shape), value.dtype) for value in model.graph.inputs] == [
        ("ids", "[batch,seq]", ir.DataType.INT64),
        ("mask", "[batch,seq]", ir.DataType.FLOAT),
    ]
    assert len(model.graph.outputs) == len(run(module, bound, feeds)) == 2
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    text = ir.to_proto(model).SerializeToString()
    assert b".py" not in text
    assert b"stack_trace" not in text
    assert ir.to_proto(export(module, bound, feeds)).SerializeToString() == text


def test_a_dimension_that_the_code_fixes_is_named() -> None:
    bound = bind(Fixed(), shapes={"x": ("batch", 8)})
    feeds = make_feeds([bound[0].spec], {"batch": 2}, None)
    with pytest.raises(FormatError, match="fixes the free dimension 'batch' of input 'x'") as caught:
        export(Fixed(), bound, feeds)
    assert "x=2,8" in caught.value.fix


def test_a_branch_on_values_is_refused_not_baked_in() -> None:
    bound = bind(Branching(), shapes={"x": (2, 8)})
    with pytest.raises(FormatError, match="torch cannot export the module"):
        export(Branching(), bound, make_feeds([bound[0].spec], {}, None))


def test_a_module_that_fails_names_the_shapes() -> None:
    bound = bind(torch.nn.Linear(4, 2), shapes={"image": ("batch", 5)})
    with pytest.raises(FormatError, match=r"image \(2, 5\) float32: RuntimeError: mat1"):
        run(torch.nn.Linear(4, 2), bound, make_feeds([bound[0].spec], {"batch": 2}, None))


def test_sizes_come_from_the_data_and_are_never_one() -> None:
    specs = [one(("n", "c", "h", "w"))]
    assert first_sizes(specs, {"x": np.zeros((9, 3, 20, 1))}) == {"n": 2, "c": 3, "h": 20, "w": 128}
    assert first_sizes(specs, None) == {"n": 2, "c": 64, "h": 96, "w": 128}


def test_real_data_is_repeated_and_cut_to_the_sizes() -> None:
    real = {"x": np.arange(6, dtype=np.float64).reshape(2, 3)}
    feeds = make_feeds([one(("n", "m"))], {"n": 3, "m": 2}, real)
    assert np.array_equal(feeds["x"], np.array([[0, 1], [3, 4], [0, 1]], np.float32))


def test_random_inputs_are_the_same_in_every_run() -> None:
    specs = [one(("n", 4)), InputSpec(name="ids", dims=("n",), dtype=np.dtype(np.int64))]
    first, second = (make_feeds(specs, {"n": 3}, None) for _ in range(2))
    assert np.array_equal(first["x"], second["x"])
    assert np.std(first["x"]) > 0.1
    assert first["ids"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 1), (0, 4)])
def test_data_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match="its declared shape is n,4"):
        first_sizes([one(("n", 4))], {"x": np.zeros(shape)})
