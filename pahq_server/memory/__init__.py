"""Paged memory: one pool of equal pages per device, for tensors that outlive one batch.

In order of reading:

- `pages`   which pages are free, and the bytes of pages: reading and writing tensors
- `pool`    pages with reference counts: allocating, sharing, releasing, and checking the counts
- `table`   the block table: which pages hold the tensors of one layer; copies shared blocks on write
- `prefix`  the prefix cache: finds blocks by the tokens that they were computed from
- `heap`    what the C library does with memory that is freed outside the pool

A block is a page as a part of a table's row. Each reference to a page is held by a `BlockTable` (the entries
of the prefix cache are tables, too) or by a caller of `PagePool.allocate`. Nothing here locks: a pool and all
that uses it belong to one thread.
"""
