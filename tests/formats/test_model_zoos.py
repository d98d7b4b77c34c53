import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from qtool.cli.app import app
from qtool.formats.errors import FormatError
from qtool.formats.torch.architecture import Architecture, building

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with the config of a tiny BERT."""
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
        "max_position_embeddings": 160,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@needs_transformers
def test_a_folder_with_a_config_builds_its_model(bert: Path) -> None:
    with building(Architecture(f"transformers:{bert}")) as module:
        assert type(module).__name__ == "BertModel"
        assert not module.training
    with building(Architecture(f"transformers:{bert}", {"num_hidden_layers": 3})) as module:
        assert len(module.encoder.layer) == 3


@pytest.mark.slow
@needs_transformers
def test_a_language_model_becomes_a_graph_with_named_outputs(bert: Path) -> None:
    with building(Architecture(f"transformers:{bert}")) as module:
        safetensors.torch.save_file(module.state_dict(), bert / "model.safetensors", metadata={"format": "pt"})
    shapes = [
        part for name in ("input_ids", "attention_mask") for part in ("--input-shape", f"{name}=batch,length:int64")
    ]
    result = CliRunner().invoke(
        app,
        ["convert", str(bert / "model.safetensors"), "--model", f"transformers:{bert}", *shapes, "--json"],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["inputs"] == ["input_ids (batch, length)", "attention_mask (batch, length)"]
    assert report["outputs"] == ["last_hidden_state (batch, length, 16)", "pooler_output (batch, 16)"]


@needs_transformers
def test_configs_that_cannot_be_used_are_refused(bert: Path) -> None:
    refused(f"transformers:{bert / 'nowhere'}", {}, "there is no config.json", "name the folder")
    refused(f"transformers:{bert}", {"hidden_size": 15}, "transformers cannot build", "--model-kwargs")
    fields = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**fields, "auto_map": {"AutoModel": "evil.Model"}}))
    refused(f"transformers:{bert}", {}, "contains code", "--model file.py:factory")


def refused(factory: str, kwargs: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught, building(Architecture(factory, kwargs)):
        pass
    assert fix in caught.value.fix


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for timm and torchvision: what is asked of them, and nothing else."""

    def create_model(name: str, *, pretrained: bool, width: int = 3) -> torch.nn.Module:
        assert not pretrained
        return torch.nn.Linear(width, 2)

    def resnet(*, weights: Any = 1, weights_backbone: Any = 1, width: int = 3) -> torch.nn.Module:
        assert weights is None
        assert weights_backbone is None, "nothing is downloaded"
        return torch.nn.Linear(width, 2)

    timm = types.ModuleType("timm")
    vars(timm).update(
        is_model=lambda name: name == "resnet18", list_models=lambda: ["resnet18"], create_model=create_model
    )
    torchvision = types.ModuleType("torchvision")
    models = types.SimpleNamespace(list_models=lambda: ["resnet18"], get_model_builder=lambda name: resnet)
    vars(torchvision).update(models=models)
    for library in (timm, torchvision):
        monkeypatch.setitem(sys.modules, library.__name__, library)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.usefixtures("libraries")
def test_a_model_is_built_by_its_name_without_trained_weights(library: str) -> None:
    with building(Architecture(f"{library}:resnet18", {"width": 7})) as module:
        assert module.in_features == 7
    refused(f"{library}:resnet19", {}, f"{library} has no model 'resnet19'", f"did you mean {library}:resnet18?")
    refused(f"{library}:resnet18", {"depth": 7}, f"{library} cannot build resnet18: TypeError", "--model-kwargs")


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_library_that_is_missing_is_named(library: str, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    refused(f"{library}:{bert}", {}, f"{library} is not installed", f"pip install {library}")


def test_a_library_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator timm::x does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    refused("timm:resnet18", {}, "importing timm fails: RuntimeError: operator", "belongs to this torch")
