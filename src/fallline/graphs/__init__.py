"""You have a graph or an assignment to learn: directed acyclic graphs from observations, clusters of points.

``fit(data)`` of a learner gives the graph or the assignment; each is a Problem made from the data and a Method, which ``solve`` takes.
"""

from fallline.graphs.accuracy import (
    false_discovery_rate,
    structural_hamming_distance,
    structural_intervention_distance,
    true_positive_rate,
)
from fallline.graphs.bound_clustering import BoundClustering
from fallline.graphs.bound_updates import BoundUpdates, RegularizedClustering
from fallline.graphs.colide import DAGMA, CoLiDE
from fallline.graphs.log_det_path import LogDetPath
from fallline.graphs.neighbors import neighbor_graph
from fallline.graphs.nodewise_scores import LeastSquaresScore, LogisticScore, NodewiseScore
from fallline.graphs.notears import NOTEARS, Notears
from fallline.graphs.prototypes import MeanPrototype, ModePrototype
from fallline.graphs.scores import EqualVarianceScore, Score, UnequalVarianceScore
from fallline.graphs.simulation import erdos_renyi, scale_free
from fallline.graphs.structure import StructureLearning, h
from fallline.graphs.topological_swaps import TopologicalSwaps, TopoSwap
from fallline.graphs.weighted_dag import WeightedDAG, is_acyclic, to_dag, topological_order

__all__ = [
    "DAGMA", "NOTEARS", "BoundClustering", "BoundUpdates", "CoLiDE", "EqualVarianceScore", "LeastSquaresScore", "LogDetPath",
    "LogisticScore", "MeanPrototype", "ModePrototype", "NodewiseScore", "Notears", "RegularizedClustering", "Score",
    "StructureLearning", "TopoSwap", "TopologicalSwaps", "UnequalVarianceScore", "WeightedDAG", "erdos_renyi", "false_discovery_rate",
    "h", "is_acyclic", "neighbor_graph", "scale_free", "structural_hamming_distance", "structural_intervention_distance", "to_dag",
    "topological_order", "true_positive_rate",
]
