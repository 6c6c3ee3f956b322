"""deltarl: RL post-training for hybrid linear-attention language models.

The packages below are links to the folders at the root of the repository (`deltarl.kernels` is `kernels/`), so the
same import works installed, editable, as an uninstalled Ray `working_dir`, and for type checkers.
"""
