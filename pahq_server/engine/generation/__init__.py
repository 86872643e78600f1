"""Generated text: by a library in paged memory, `transformers` or vLLM, or under a circuit.

`backend` is the interface of both libraries. `transformers_backend`, and `vllm_backend` with the
`vllm_process` that it starts, are the only modules that know their library; `decoding` runs `Decode`
operations on either. Both draw tokens by `sampling` and look for stop texts by `stopping`; `progress` is what
a sample has got so far.
`steering` edits neurons in some of the rows that either of them computes. `row_independence` makes models of
`transformers` compute each token by itself.

Under a circuit no library generates: `circuit_decoding` computes every token as a patched pass.
"""
