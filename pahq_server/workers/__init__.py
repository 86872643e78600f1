"""Workers in processes of their own, on this machine or on others, and the pool that shares work among them.

Read `pool` first: it opens the jobs' states (`states`) on workers (`roster`). `dispatch` hands them parts of
operations, which `placement` cuts, and puts the results together, whatever happens to a worker meanwhile.

`cluster` says what the pool asks of whoever starts the processes. `ray_cluster` starts them with Ray, by way
of a process of its own (`ray_driver`, behind a `ray_link`), and `ray_actor` is what runs in each. There,
`host` answers the pool's calls. `codec` turns the messages between pool and host (`messages`, `passes`) into
bytes.
"""
