"""What each `task=` does once its run is claimed: load the parents, train or measure, export.

`job` says what a task works with, `fit` is the one place where a Trainer is made.
"""
