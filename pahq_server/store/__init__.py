"""What outlives the process: jobs, their journals and their artifacts, in one SQLite file.

`records` and `base` say what a store of jobs takes, gives and promises, and nothing else of the server needs
to know more. `jobs` is that store in SQLite; `rows` translates between rows and records and finds out which
rows are damaged, by the checksums of `checksums`. `database` is connections, transactions and their errors,
`migrations` the schema in all its versions, `directory` the place on the disk and its lock. `backup` copies
a database that is in use.
"""
