"""Graphs whose nodes are classified: citations, joint authors, joint purchases.

Each is one `Graph` with labels and a split of its nodes; the whole of it is one batch.
The files lie below ``$JAXKD_DATA/graph``; they hold ``edges`` (2, pairs) with every
undirected edge once, ``y``, the features as SciPy's CSR arrays (``x_data``,
``x_indices``, ``x_indptr``, ``x_shape``), ``train_idx``, ``val_idx`` and ``test_idx``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grain
import numpy as np

from jaxkd.arguments import checked
from jaxkd.checks import check_batch, unknown_name
from jaxkd.data.datasets import data_file, read_arrays, whole
from jaxkd.data.shown import brief
from jaxkd.graphs import Graph, SparseMatrix, pad_graph, undirected
from jaxkd.registry import constructors
from jaxkd.untrusted import blaming

DENSE = 0.08
"""Share of entries above which features are kept dense: on CPUs the dense product with
a weight is then the faster one."""


@checked()
@dataclass(frozen=True)
class GraphDataset:
    """A graph, its nodes' labels, and which nodes are for what.

    Attributes:
        name: for messages and results.
        graph: of host arrays.
        label: (nodes,) int32.
        classes: labels are below it.
        train: nodes whose labels may be used.
        validation: nodes to choose by.
        test: nodes to report on.
    """

    name: str
    graph: Graph
    label: np.ndarray
    classes: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __repr__(self) -> str:
        """Return what it holds by dtypes and shapes."""
        return brief(self)

    def batch(self, multiple: int = 1) -> dict[str, Any]:
        """Return the batch: ``graph``, ``label``, and a mask of nodes for each part.

        The masks are ``labelled``, ``validation`` and ``test``, 1 or 0 a node; a padded
        batch has ``mask`` as well, 0 for the nodes that are padding.

        Args:
            multiple: to pad nodes, edges and entries to, such as the number of a mesh's
                devices.

        Raises:
            ValueError: arrays that do not fit together, or values out of range.
        """
        parts = {
            "labelled": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        nodes = len(self.label)
        graph, label, padding = self.graph, self.label, -nodes % multiple
        if multiple > 1:
            graph, label = pad_graph(graph, multiple), np.pad(label, (0, padding))
            parts["mask"] = np.arange(nodes)
        batch = {"graph": graph, "label": label}
        for name, members in parts.items():
            batch[name] = np.zeros(nodes + padding, np.float32)
            batch[name][members] = 1
        check_batch(batch, self.classes)
        return batch

    def split(
        self, seed: int, per_class: int = 20, validation: int = 500, test: int = 1000
    ) -> "GraphDataset":
        """Return the graph with its nodes split at random.

        Args:
            seed: of the choice.
            per_class: labelled nodes of every class.
            validation: nodes to choose by.
            test: nodes to report on.

        Raises:
            ValueError: there are not so many nodes, or not so many of a class.
        """
        order = np.random.default_rng(seed).permutation(len(self.label))
        chosen = []
        for c in range(self.classes):
            members = order[self.label[order] == c][:per_class]
            if len(members) < per_class:
                raise ValueError(
                    f"{self.name} has {len(members)} nodes of class {c}, fewer than "
                    f"per_class {per_class}: take a smaller one"
                )
            chosen.append(members)
        train = np.concatenate(chosen)
        rest = order[~np.isin(order, train)]
        if len(rest) < validation + test:
            raise ValueError(
                f"{self.name} has {len(rest)} nodes beside the labelled ones, fewer "
                f"than validation {validation} and test {test} together"
            )
        return replace(
            self,
            train=np.sort(train),
            validation=np.sort(rest[:validation]),
            test=np.sort(rest[validation : validation + test]),
        )


@checked()
def repeated(batch: dict[str, Any], epochs: int) -> grain.IterDataset:
    """Return a grain data set of one batch over and over, for training on a graph.

    Args:
        batch: such as `GraphDataset.batch` returns.
        epochs: how often.
    """
    return grain.MapDataset.source([batch]).repeat(epochs).to_iter_dataset()


def _read(name: str, relative: str, normalize: bool) -> GraphDataset:
    with blaming(str(data_file(relative))):
        return _graph(name, relative, normalize)


def _graph(name: str, relative: str, normalize: bool) -> GraphDataset:
    from scipy.sparse import csr_matrix, diags

    names = ["edges", "y", "train_idx", "val_idx", "test_idx"]
    edges, y, train, validation, test = read_arrays(relative, names)
    names = ["x_data", "x_indices", "x_indptr", "x_shape"]
    values, columns, borders, shape = read_arrays(relative, names)
    edges, columns = whole(edges, "edges"), whole(columns, "x_indices")
    if shape[0] != len(y):
        raise ValueError(
            f"it holds features of {shape[0]} of {len(y)} nodes: fetch the whole set"
        )
    entries = (values.astype(np.float32), columns, borders)
    features: Any = csr_matrix(entries, shape=tuple(shape.tolist()))
    features.check_format(full_check=True)
    if normalize:
        # A node without features keeps a row of zeros.
        total = np.asarray(features.sum(1)).ravel()
        features = diags(1 / np.where(total > 0, total, 1)) @ features
    dense = features.nnz > DENSE * np.prod(features.shape)
    senders, receivers = undirected(edges)
    return GraphDataset(
        name,
        Graph(
            features.toarray().astype(np.float32)
            if dense
            else SparseMatrix.from_scipy(features),
            senders,
            receivers,
        ),
        whole(y, "y"),
        int(y.max()) + 1,
        train,
        validation,
        test,
    )


def cora() -> GraphDataset:
    """Return Cora: 2,708 papers that cite one another, words, 7 topics.

    The public split of Yang et al. 2016 (arXiv:1603.08861): 20 labelled papers a class,
    500 to choose by and 1,000 to test on; rows of the features sum to 1.
    """
    return _read("cora", "graph/planetoid_cora.npz", normalize=True)


def citeseer() -> GraphDataset:
    """Return Citeseer: 3,327 papers, 6 topics; otherwise as `cora`."""
    return _read("citeseer", "graph/planetoid_citeseer.npz", normalize=True)


def pubmed() -> GraphDataset:
    """Return Pubmed: 19,717 papers, 3 topics; otherwise as `cora`.

    Raises:
        FileNotFoundError: ``graph/planetoid_pubmed.npz`` is missing. A file with a part
            of the features does not serve.
    """
    relative = "graph/planetoid_pubmed.npz"
    try:
        return _read("pubmed", relative, normalize=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. It must hold the features of all 19,717 nodes, which "
            "planetoid_pubmed_partial.npz does not (it has 1,060): convert the "
            "Planetoid project's ind.pubmed.* files"
        ) from None


def amazon_photo() -> GraphDataset:
    """Return Amazon Photo: 7,650 goods bought together, words of reviews, 8 kinds.

    Shchur et al. 2018, arXiv:1811.05868. The file's split has 20 labelled nodes a class
    and 30 to choose by; `GraphDataset.split` draws others.
    """
    return _read("amazon_photo", "graph/amazon_photo.npz", normalize=False)


def coauthor_cs() -> GraphDataset:
    """Return Coauthor CS: 18,333 authors, words of their papers, 15 fields.

    As `amazon_photo`.
    """
    return _read("coauthor_cs", "graph/coauthor_cs.npz", normalize=False)


def coauthor_physics() -> GraphDataset:
    """Return Coauthor Physics: 34,493 authors, 5 fields; as `coauthor_cs`."""
    return _read("coauthor_physics", "graph/coauthor_physics.npz", normalize=False)


GRAPHS: dict[str, Callable[[], GraphDataset]] = constructors(globals(), GraphDataset)
"""Graphs by name: the functions above."""


@checked()
def load_graph(name: str) -> GraphDataset:
    """Return the graph of that name.

    Raises:
        ValueError: no graph has that name.
        FileNotFoundError: its file is not there.
    """
    if name not in GRAPHS:
        raise ValueError(unknown_name("graph", name, GRAPHS))
    return GRAPHS[name]()
