"""Access control: who calls, which calls they may make, and how many.

Read `policy` first (what every RPC asks of its caller), then `identity` (how a caller is found from a token
or a certificate), `limits` (rates and numbers of calls) and `access`, which puts the three together for every
call. `tokens` holds API tokens and their table in the database, `tls` reads and watches certificates.
"""
