"""Class labels in training, and what is reported of them."""
