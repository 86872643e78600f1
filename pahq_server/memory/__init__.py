"""Paged memory: one pool per device for tensors that outlive one batch.

Map of the package, from the bottom up:

- `errors`    what can go wrong
- `runs`      which pages are free, as runs of consecutive ones
- `storage`   the bytes of pages: reading and writing tensors
- `pool`      pages with reference counts: taking, sharing, giving back
- `integrity` recounts the references of a pool and names the first page that is wrong
- `table`     the block table of one layer of one set of values; copies shared blocks on write
- `prefix`    blocks found by the tokens that they and everything before them stand for

A page is a piece of the pool; a block is a page seen from the row of a table that it belongs to. Every
reference to a page is held by a `BlockTable` (prefix cache included: its entries are tables) or by whoever
called `PagePool.allocate`. Nothing here locks: all users of a pool live on one thread.
"""
