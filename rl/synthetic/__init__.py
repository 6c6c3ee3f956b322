"""The synthetic tasks of the Kimi Linear paper (section 5.1, Figure 4): token sequences, and models trained on them."""
