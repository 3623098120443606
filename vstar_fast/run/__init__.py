"""A run at work: the stages joined to the run folder, so that nothing is done twice.

`session.py` has a method a stage; `answers.py` and `training.py` are the two that take long. `runtime.py` holds the
models, `features.py` what they see of each video, `folder.py` what is on disk, and `summary.py` writes what came out.
"""
