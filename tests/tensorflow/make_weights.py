"""Saves the weights of a network alone, in the layouts of Keras 3 and Keras 2; run as a script, with a folder."""

import sys
from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.legacy.saving import legacy_h5_format
from keras_networks import network

if __name__ == "__main__":
    folder, random = Path(sys.argv[1]), np.random.default_rng(3)
    keras.utils.set_random_seed(2)
    model = network()
    for layer in model.layers:
        layer.set_weights([random.uniform(0.1, 1.0, weight.shape) for weight in layer.get_weights()])
    model.save_weights(folder / "places.weights.h5")
    # Keras 3 reads this layout and has no public way left to write it.
    with h5py.File(folder / "list.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    (folder / "places.h5").write_bytes((folder / "places.weights.h5").read_bytes())
    model.compile(optimizer="adam", loss="mse")
    row = random.standard_normal((5, 4)).astype(np.float32)
    model.fit(row, np.ones((5, 3)), verbose=0)
    model.save_weights(folder / "trained.weights.h5")
    np.savez(folder / "row.npz", row=row)
    np.save(folder / "trained.npy", model(row).numpy())
    model.load_weights(folder / "places.weights.h5")
    np.save(folder / "scores.npy", model(row).numpy())
    with h5py.File(folder / "places.weights.h5") as source, h5py.File(folder / "outside.weights.h5", "w") as file:
        for name in source:
            source.copy(name, file)
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink("other.h5", "/values")
