"""Papers: every published item as a plan, figures and claims."""

from mesaopt.papers.claims import Claim, read_claims, write_claims
from mesaopt.papers.plan import Item, Plan, Results, Training
from mesaopt.papers.reproduce import ITEMS, costs, get_item, reproduce

__all__ = [
    "ITEMS",
    "Claim",
    "Item",
    "Plan",
    "Results",
    "Training",
    "costs",
    "get_item",
    "read_claims",
    "reproduce",
    "write_claims",
]
