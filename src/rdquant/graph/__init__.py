"""What a network is: operations along edges, float or integer."""

from .graph import Graph, Node
from .operations import OPERATIONS, Operation, Port, Rounding

__all__ = ["OPERATIONS", "Graph", "Node", "Operation", "Port", "Rounding"]
