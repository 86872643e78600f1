"""Jobs: their life from the request to the artifact, whatever their method.

Read `service` first, then `job` (a job as clients see it), `run` (drives the method of a job) and `spec`
(what was asked for, also as JSON). `resuming` continues the jobs that an earlier process left, `housekeeping`
stores late ends and deletes old jobs, `provenance` says where an artifact comes from, `quotas` what each user
may have, `warnings` what may mislead about a request. Besides jobs there are calls that store nothing:
`evaluation` and `node_evaluation` of given circuits, and patching `sessions` with their `session_calls`.
"""
