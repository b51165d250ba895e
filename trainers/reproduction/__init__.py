"""The papers' tables: which systems they compare, the figures that they publish, and ours beside them."""
