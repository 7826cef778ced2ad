"""AU-ROC by kind of defect: MVTec LOCO AD has logical and structural anomalies told apart."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score


def image_auroc_by_defect(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], defects: Sequence[str]
) -> dict[str, float | None]:
    """How well each kind of anomalous images is told from the good ones.

    Args:
      scores: one anomaly score an image, higher is more anomalous.
      labels: 0 for good, 1 for anomalous.
      defects: kind of defect of each image; not read for good ones.

    Returns:
      Area under the ROC curve of all good images against those of the kind, in [0, 1], by kind in
      alphabetical order; None where there are no good images.
    """
    kinds = np.array(defects, str)
    areas = {}
    for kind in np.unique(kinds[labels == 1]).tolist():
        taken = (labels == 0) | ((labels == 1) & (kinds == kind))
        is_defined = bool(np.any(labels == 0))
        areas[kind] = float(roc_auc_score(labels[taken], scores[taken])) if is_defined else None
    return areas
