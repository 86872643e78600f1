"""Deciding whose operations run next.

Read `scheduler` first: one worker thread that feeds operations of jobs (`run`) and of patching sessions
(`interactive`) to the engine, batch by batch (`batch`). `slots` decides which jobs hold tensors, by the
charges of their users that `fairness` keeps; neither has threads or tensors. `queue` tells waiting jobs their
positions.
"""
