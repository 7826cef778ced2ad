"""The results that the paper reports; they stand only here.

Source: Batzner, Heckler, König, "EfficientAD: Accurate Visual Anomaly Detection at
Millisecond-Level Latencies", WACV 2024, Tables 1 to 5 and 11. AU-ROC and AU-PRO are percentages,
those of EfficientAD means of 5 runs. Means over collections are over MVTec AD, VisA and MVTec
LOCO AD. Latency (batch 1), throughput (batch 16) and GPU memory are of an NVIDIA RTX A6000 in
float16.
"""

from typing import NamedTuple

from efficientad_jax.networks.pdn import Size

SPEED_MEASURED_ON = "NVIDIA RTX A6000, float16"
RUNS = 5


class Figure(NamedTuple):
    """A figure in print, an int where no decimals are printed: `str` of it is what is printed.

    Attributes:
      mean: the figure, or the mean of several runs.
      deviation: their standard deviation, where it is given.
      also: what the paper adds to it, such as '+ kNN'.
    """

    mean: int | float
    deviation: int | float | None = None
    also: str = ""

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {self.deviation}"
        return f"{self.mean}{deviation} {self.also}".strip()


class Method(NamedTuple):
    """A row of Table 1 and of Table 11.

    Attributes:
      detection: image AU-ROC, mean over the collections, per cent.
      segmentation: AU-PRO up to a false-positive rate of 0.3 (MVTec AD, VisA) and AU-sPRO up to
        0.05 (LOCO), mean over the collections, per cent.
      latency: of one image, milliseconds.
      throughput: images per second.
      parameters: millions.
      flop: of one image, in 10^9, two a multiply-add.
      memory: of the GPU, MB.
    """

    detection: Figure
    segmentation: Figure
    latency: Figure
    throughput: Figure
    parameters: Figure
    flop: Figure
    memory: Figure


def _method(*figures: int | float | Figure) -> Method:
    return Method(*(f if isinstance(f, Figure) else Figure(f) for f in figures))


EFFICIENT_AD: dict[Size, Method] = {
    "small": _method(
        Figure(95.4, 0.06), Figure(92.5, 0.05), Figure(2.2, 0.01), Figure(614, 2), 8, 76, 100
    ),
    "medium": _method(
        Figure(96.0, 0.09), Figure(93.3, 0.04), Figure(4.5, 0.01), Figure(269, 1), 21, 235, 161
    ),
}

OTHER_METHODS: dict[str, Method] = {
    "GCAD": _method(85.4, 88.0, 11, 121, 65, 416, 555),
    "SimpleNet": _method(87.9, 74.4, 12, 194, 73, 38, 508),
    "S-T": _method(88.4, 89.7, 75, 16, 26, 4468, 1077),
    "FastFlow": _method(90.0, 86.5, 17, 120, 92, 85, 404),
    "DSR": _method(90.8, 78.6, 17, 104, 40, 267, 314),
    "PatchCore": _method(
        91.1,
        80.9,
        32,
        76,
        Figure(83, also="+ 3"),
        Figure(41, also="+ kNN"),
        Figure(637, also="+ kNN"),
    ),
    "PatchCore ensemble": _method(
        92.1,
        80.7,
        148,
        13,
        Figure(150, also="+ 8"),
        Figure(159, also="+ kNN"),
        Figure(1335, also="+ kNN"),
    ),
    "AST": _method(92.4, 77.2, 53, 41, 154, 199, 618),
}

# Table 2, image AU-ROC, per cent. 'logical' and 'structural' are kinds of anomaly of LOCO.
COLLECTIONS: dict[Size, dict[str, Figure]] = {
    "small": {
        "mvtec_ad": Figure(98.8),
        "mvtec_loco": Figure(90.0),
        "visa": Figure(97.5),
        "mean": Figure(95.4),
        "logical": Figure(85.8),
        "structural": Figure(94.1),
    },
    "medium": {
        "mvtec_ad": Figure(99.1),
        "mvtec_loco": Figure(90.7),
        "visa": Figure(98.1),
        "mean": Figure(96.0),
        "logical": Figure(86.8),
        "structural": Figure(94.7),
    },
}

# Table 3, of EfficientAD-M: what is varied, the other values being the defaults, and the image
# AU-ROC, mean over the collections, per cent.
SWEEPS: dict[str, dict[float, Figure]] = {
    "a": {
        0.5: Figure(95.9),
        0.8: Figure(95.9),
        0.9: Figure(96.0),
        0.95: Figure(95.9),
        0.98: Figure(95.9),
        0.99: Figure(95.8),
    },
    "b": {
        0.95: Figure(95.8),
        0.98: Figure(95.9),
        0.99: Figure(96.0),
        0.995: Figure(96.0),
        0.998: Figure(95.9),
        0.999: Figure(95.9),
    },
    "p_hard": {
        0.0: Figure(94.9),
        0.9: Figure(94.9),
        0.99: Figure(95.7),
        0.999: Figure(96.0),
        0.9999: Figure(95.8),
        0.99999: Figure(95.7),
    },
}

# Table 4: each row adds to the one before. Same figures as those of Table 3.
CUMULATIVE: dict[str, Figure] = {
    "PDN": Figure(93.2),
    "+ map normalization": Figure(94.0),
    "+ hard feature loss": Figure(95.0),
    "+ pretraining penalty": Figure(95.4),
    "EfficientAD-M": Figure(96.0),
}

# Table 5: EfficientAD-S without one of its parts.
ISOLATED: dict[str, Figure] = {
    "EfficientAD-S": Figure(95.4),
    "without map normalization": Figure(94.7),
    "without hard feature loss": Figure(94.7),
    "without pretraining penalty": Figure(95.0),
}
