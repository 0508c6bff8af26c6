"""One training run; `experiment` is its frame.

`setup` makes its parts from the config. `loop` trains, validates and saves, epoch after
epoch; `trainer` takes the steps of one, which `steps` compiles and `feed` gives their
examples. `checkpointing` saves and resumes, `evaluator` tests.
"""
