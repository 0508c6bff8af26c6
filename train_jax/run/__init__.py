"""One training run; `experiment` is its frame.

`setup` makes its parts from the config. `loop` trains, validates and saves, epoch after
epoch. `trainer` takes the steps of one epoch; `steps` compiles them, and `feed` gives
them their examples. `checkpointing` saves and resumes, `evaluator` tests.
"""
