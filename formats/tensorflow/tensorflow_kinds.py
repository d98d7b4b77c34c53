"""The names of TensorFlow's formats, as the registry has them, and of the file that makes a folder a SavedModel."""

from __future__ import annotations

SAVED_MODEL = "saved_model"
GRAPH_DEF = "graph_def"
KERAS = "keras"
KERAS_H5 = "keras_h5"
KERAS_WEIGHTS = "keras_weights"

SAVED_MODEL_FILE = "saved_model.pb"
