"""Deciding whose operations run next.

Read `scheduler` first: one worker thread that feeds operations of jobs (`run`) and of patching sessions
(`interactive`) to the engine, batch by batch (`batch`). Who gets a slot and a turn is decided without threads
or tensors: `slots` by `fairness`. `queue` tells waiting jobs where they stand.
"""
