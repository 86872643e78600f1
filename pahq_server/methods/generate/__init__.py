"""Samples text: many samples of each prompt, in the memory of a few.

`parameters` checks what is asked for, `samples` says what a sample is and how it is stored, `sampling` asks
for what runs next, in the order that a policy decides, and takes in what comes out, and `method` makes a
method of jobs of it.
"""
