"""What outlives the process: jobs, their verdicts and their results, in one SQLite file.

`directory` is the place and its lock, `database` connections and transactions, `migrations` the schema,
`base` what a store of jobs offers, `jobs` the store of jobs.
"""
