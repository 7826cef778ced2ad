"""The datasets by name: one a module, and what their builders share."""

from typing import Any

from efficientad_jax.errors import InputError


def categories_of(name: str, root: str) -> list[str]:
    """The categories of a dataset; of a folder that is not divided into any, `['']`.

    Raises:
      InputError: there is no such dataset, or no such folder.
    """
    if name == "folder":
        from efficientad_jax.data.datasets.folder import categories_in

        return categories_in(root)
    if name == "elpv":
        from efficientad_jax.data.datasets import elpv

        return list(elpv.CATEGORIES)
    published = _published()
    if name in published:
        return list(published[name].dataset.categories)
    raise _no_dataset(name)


def builder_of(name: str, category: str, root: str, *, data_dir: str | None) -> Any:
    """The builder of tensorflow-datasets for one category of a dataset other than a folder.

    Args:
      name: see `load_dataset`.
      category: see `load_dataset`.
      root: see `load_dataset`.
      data_dir: folder of the copies, None for that of tensorflow-datasets.

    Raises:
      InputError: there is no such dataset or category.
    """
    from efficientad_jax.data.datasets import elpv

    published = _published()
    if name in published:
        return published[name](category=category, root=root, data_dir=data_dir)
    if name == "elpv":
        if category not in elpv.CATEGORIES:
            raise InputError(
                f"category {category!r}: no such category of elpv, "
                f"expected one of: {', '.join(elpv.CATEGORIES)}"
            )
        return elpv.Elpv(config=category, data_dir=data_dir)
    raise _no_dataset(name)


def _published() -> dict[str, Any]:
    """The builders, which take long to import."""
    from efficientad_jax.data.datasets import btad, mvtec_ad, mvtec_ad2, mvtec_loco, visa

    return {
        "mvtec_ad": mvtec_ad.MvtecAd,
        "mvtec_loco": mvtec_loco.MvtecLoco,
        "mvtec_ad2": mvtec_ad2.MvtecAd2,
        "visa": visa.Visa,
        "btad": btad.Btad,
    }


def _no_dataset(name: str) -> InputError:
    known = ", ".join([*_published(), "elpv", "folder"])
    return InputError(f"dataset {name!r}: no such dataset, expected one of: {known}")
