"""What the learner minimises, in parts that combine: advantages (rl/advantages.py), a surrogate loss (losses/), a
correction for samples of other policies, a KL penalty, and an aggregation over the batch. docs/OBJECTIVES.md
lists them.
"""
