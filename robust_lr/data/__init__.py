"""Data sets of images, labels and ids: by name, or from arrays, files and archives."""

from .dataset import ArrayDataset, Dataset, content_hash, from_arrays
from .encoded import LazyDataset, Transform
from .registry import DATASETS, DEFAULT, load

__all__ = [
    "DATASETS",
    "DEFAULT",
    "ArrayDataset",
    "Dataset",
    "LazyDataset",
    "Transform",
    "content_hash",
    "from_arrays",
    "load",
]
