"""The groups in which help shows options and commands, and the options that only ``--help-all`` shows."""

from __future__ import annotations

from qtool.calib.ranges import RANGE_PARAMETERS

# In the order in which help shows them.
CONVERSION = "Conversion"
MERGING = "Merging"
ANALYSES = "Analyses"
PASSES = "Passes"
PARTS = "Parts"
DATA = "Data"
SCHEME = "Scheme"
WEIGHT_ONLY = "Weights alone"
TARGET = "Target"
CALIBRATION = "Calibration"
CORRECTIONS = "Corrections"
ACCURACY_GOAL = "Accuracy goal"
TRAINING = "Training"
MEASUREMENTS = "Measurements"
GATES = "Gates"
COMPARISON = "Comparison"
SPEED = "Speed"
MODEL = "Model"
TENSORFLOW = "TensorFlow"
OUTPUT = "Output"
GENERAL = "General"

OPTION_GROUPS = (
    *(
        CONVERSION,
        MERGING,
        ANALYSES,
        PASSES,
        PARTS,
        DATA,
        SCHEME,
        WEIGHT_ONLY,
        TARGET,
        CALIBRATION,
        CORRECTIONS,
        ACCURACY_GOAL,
        TRAINING,
    ),
    *(MEASUREMENTS, GATES, COMPARISON, SPEED, MODEL, TENSORFLOW, OUTPUT, GENERAL),
)

CONVERT = "Convert"
QUANTIZE = "Quantize"
ADAPTERS = "Adapters"
UNDERSTAND = "Understand"
GRAPH = "Graph"

COMMAND_GROUPS = (CONVERT, QUANTIZE, ADAPTERS, UNDERSTAND, GRAPH)

# A typer option has no place for this.
RARE = frozenset(
    {
        *("--model-kwargs", "--trust-pickle", "--allow-global", "--output-dir", "--debug"),
        *("--weights-symmetric", "--activations-symmetric", "--activation-type", "--weight-type"),
        *("--exact", "--weight-clipping", *(f"--{parameter.option}" for parameter in RANGE_PARAMETERS.values())),
        *("--machine-profile", "--histogram", "--step-summary", "--thread-counts"),
        *("--tokenizer", "--tokens", "--new-tokens"),
        *("--seed", "--rank", "--density", "--part", "--scales"),
    }
)
