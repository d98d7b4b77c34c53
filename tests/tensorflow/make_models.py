"""Makes small TensorFlow models in a folder, with inputs and what TensorFlow computes of them; run as a script."""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import convert_to_constants


def image_model() -> keras.Model:
    """Convolutions with normalization, one of them depthwise, and a Gelu."""
    image = keras.Input((16, 16, 3), name="image")
    hidden = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(hidden)
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
    hidden = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 1, activation="gelu")(hidden))
    model = keras.Model(image, layers.Dense(5, name="scores")(hidden))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2.0, weight.shape) for weight in layer.get_weights()])
    return model


def save(folder: Path, name: str, feeds: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
    np.savez(folder / f"{name}.feeds.npz", **feeds)
    np.savez(folder / f"{name}.outputs.npz", **outputs)


def image_files(folder: Path, random: np.random.Generator) -> None:
    model = image_model()
    model.save(folder / "image.keras")
    model.save(folder / "image.h5")
    model.save_weights(folder / "image.weights.h5")
    model.export(folder / "image_saved", verbose=False)
    call = tf.function(lambda image: model(image)).get_concrete_function(
        tf.TensorSpec((None, 16, 16, 3), tf.float32, "image")
    )
    frozen = convert_to_constants.convert_variables_to_constants_v2(call)
    (folder / "image_frozen.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
    image = random.standard_normal((4, 16, 16, 3)).astype(np.float32)
    save(folder, "image", {"image": image}, {"scores": model(image).numpy()})


def sequence_files(folder: Path, random: np.random.Generator) -> None:
    model = keras.Sequential(
        [keras.Input((7, 6), name="sequence"), layers.LSTM(5, return_sequences=True), layers.GRU(4), layers.Dense(3)]
    )
    model.save(folder / "sequence.keras")
    model.export(folder / "sequence_saved", verbose=False)
    sequence = random.standard_normal((4, 7, 6)).astype(np.float32)
    save(folder, "sequence", {"sequence": sequence}, {"output": model(sequence).numpy()})


def two_inputs_file(folder: Path, random: np.random.Generator) -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    joined = layers.Concatenate()([layers.Dense(3)(a), layers.Dense(3)(b)])
    outputs = {"p": layers.Dense(2, name="p")(joined), "q": layers.Dense(1, name="q")(joined)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.save(folder / "two.keras")
    feeds = {"a": random.standard_normal((4, 4)), "b": random.standard_normal((4, 6))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    save(folder, "two", feeds, {name: value.numpy() for name, value in model(feeds).items()})


def signatures_folder(folder: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec((None, 4), tf.float32, "x")
    module.twice = tf.function(lambda x: {"y": 2 * x}, input_signature=[spec])
    module.thrice = tf.function(lambda x: {"z": 3 * x}, input_signature=[spec])
    tf.saved_model.save(module, folder / "signatures", {"serving_default": module.twice, "thrice": module.thrice})


def refused_files(folder: Path) -> None:
    keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2)]).save(folder / "lambda.keras")
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), "x")
        tf.nn.relu(x, name="y")
        tf.math.bessel_i0e(x, name="z")
    (folder / "unknown.pb").write_bytes(graph.as_graph_def().SerializeToString())


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    target, generator = Path(sys.argv[1]), np.random.default_rng(1)
    image_files(target, generator)
    sequence_files(target, generator)
    two_inputs_file(target, generator)
    signatures_folder(target)
    refused_files(target)
