"""What outlives the process: jobs, their journals and their artifacts, in one SQLite file.

Read `records` and `base` first: they say what a store of jobs takes, gives and promises. `jobs` is that store
in SQLite; `rows` translates between rows and records, and finds damaged rows by the checksums of `checksums`.
`database` has connections, transactions and their errors, `migrations` the schema in all its versions,
`directory` the data directory and its lock. `backup` copies a database that is in use.
"""
