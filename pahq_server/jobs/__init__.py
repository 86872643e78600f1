"""Jobs: their life from the request to the artifact, whatever their method.

Read `service` first, then `job` (what everybody sees of a job), `run` (a method at work) and `spec` (what
was asked for, also as JSON). `resuming` goes on with what an earlier process left, `housekeeping` stores late
ends and deletes old jobs, `provenance` says where an artifact comes from, `quotas` who may have how much.
Beside jobs there are calls that leave nothing behind: `evaluation` of one circuit and patching `sessions`.
"""
