"""EfficientAD-S with every constant of the paper (Algorithm 1).

    python -m experiments.train --config=configs/paper.py --config.dataset.root=FOLDER \
        --config.pretraining_images=PHOTOGRAPHS --workdir=runs/mine
    python -m experiments.train --config=configs/paper.py:mvtec_ad,bottle \
        --config.dataset.root=MVTEC_AD --config.pretraining_images=PHOTOGRAPHS \
        --workdir=runs/bottle

After the colon come a published dataset (mvtec_ad, mvtec_ad2, mvtec_loco, visa, btad) and one of
its categories; without them it is a folder in MVTec AD's layout. Without `--config.dataset.root` a
published dataset is downloaded: see docs/datasets.md. EfficientAD-M takes
`--config.model.size=medium`.

70,000 steps are meant for an accelerator; time and result are not measured yet. The constants
stand in `efficientad_jax/config.py`, each with its line of Algorithm 1.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from efficientad_jax.config import Config, DatasetConfig, config_dict


def get_config(dataset_and_category: str = "folder") -> ConfigDict:
    """Returns the paper's configuration for 'DATASET,CATEGORY'."""
    name, _, category = dataset_and_category.partition(",")
    return config_dict(replace(Config(), category=category, dataset=DatasetConfig(name=name)))
