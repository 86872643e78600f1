"""vLLM's engine, in a process of its own: the only module that imports vLLM.

`vllm_backend` starts the process and sends it messages in JSON. Forward passes are made only when they are
asked for, so that samples stand still between two calls of `run`. The process therefore steps vLLM's engine
(`LLMEngine`, without vLLM's own process for it) instead of letting `AsyncLLM` run on. Sequences go to the
engine's core and tokens come from there: what `LLMEngine` does before and after is for texts and statistics.

vLLM schedules, keeps keys and values in pages, shares those of equal prompts, and computes logits. The next
token is drawn by `sampling`, in a logits processor that leaves vLLM's greedy choice only that token. The draw
needs nothing but a sample's seed and the token's number, so that a sample can go on from any of its tokens.
vLLM's own generator of a request cannot be moved on.

Samples are steered by hooks on the model's modules, which find the request of each row in vLLM's batch
(`WorkerCalls`). Only samples of one steering share keys and values: it is the salt of vLLM's cache.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs import tokens_input
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from pahq_server.core.activations import Steering
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.generation import Finish, Sampling
from pahq_server.engine.generation.sampling import DrawnToken, TokenDraws, describe
from pahq_server.engine.generation.steering import SteeredRows
from pahq_server.engine.generation.stopping import Detokenizer, SampleText, sample_text
from pahq_server.models.tokenizer import load_tokenizer

# How often the process looks whether the one that started it is still there.
PARENT_S = 0.5
# How many texts of a token or two are remembered.
KEPT_TEXTS = 1 << 14
# After how many new objects garbage is looked for; a pass makes hundreds.
GARBAGE = 20_000


def main() -> None:
    """Serves calls until there are no more. Arguments: a socket's number and the id of the parent process."""
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(number, False)
    # Ctrl-C goes to all processes of a terminal, and it is the parent that ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with Connection(number) as calls:
        (options,) = json.loads(calls.recv_bytes())
        try:
            stepper = Stepper(**options)
        except Exception as error:
            why = ": ".join(filter(None, [type(error).__name__, str(error).strip().rstrip(".")]))
            calls.send_bytes(json.dumps({"failed": why}).encode())
            raise
        calls.send_bytes(json.dumps({"blocks": stepper.blocks, "block_size": stepper.block_size}).encode())
        _serve(calls, stepper)
    # Threads of libraries may hang. Nothing of the process is of use any more.
    sys.stderr.flush()
    os._exit(0)


def _serve(calls: Connection, stepper: Stepper) -> None:
    """Makes the calls of each message, and sends what the last of them returns."""
    while True:
        try:
            message = json.loads(calls.recv_bytes())
        except EOFError:
            return
        try:
            *_, answer = [getattr(stepper, call.pop("call"))(**call) for call in message]
        except NonFiniteMetricError as error:
            calls.send_bytes(json.dumps({"not_finite": str(error)}).encode())
            return  # in the middle of a pass, from which the engine does not recover
        calls.send_bytes(json.dumps(answer).encode())


def _end_with(parent: int) -> None:
    """Ends this process, and those that it has started, soon after the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


@dataclass
class _Sequence:
    """A sequence from `Stepper.add` until it is dropped.

    Args:
        sampling: how its tokens are drawn.
        prompt: its prompt's tokens.
        prefix: what it began with.
        signals: of how many of its first tokens signals are told.
        steering: name of the edit of its neurons, if there is one.
        ids: tokens since then.
        reused: how many tokens of prompt and prefix were in memory already; None before the first token.
        finish: why it ended.
        text: what it says so far; None unless stop texts are looked for.
        request: the name of its request to vLLM.
        told: how many of ``ids`` were told already; None before anything was.
    """

    sampling: Sampling
    prompt: list[int]
    prefix: list[int]
    signals: int
    steering: str | None
    ids: list[int] = field(default_factory=list)
    reused: int | None = None
    finish: Finish = ""
    text: SampleText | None = None
    request: str = ""
    told: int | None = None


class _KeptTexts:
    """A tokenizer that remembers what single tokens and pairs say. Implements `Detokenizer`."""

    def __init__(self, tokenizer: Detokenizer) -> None:
        self._decode = tokenizer.decode
        self._remembered = lru_cache(KEPT_TEXTS)(tokenizer.decode)

    def decode(self, ids: Sequence[int]) -> str:
        return self._remembered(tuple(ids)) if len(ids) <= 2 else self._decode(ids)


class Stepper:
    """A vLLM engine that makes forward passes when it is asked to.

    Args:
        directory: of the checkpoint.
        dtype: of weights, activations, keys and values.
        kv_bytes: memory for keys and values.
        block_size: tokens per page.
        context: the most tokens of a prompt and its sample together.
        sequences: the most that run at once.
        end_tokens: the ids that end a sample.
        eager: whether there is nothing to be compiled or captured before the first pass.
        mlps: number of layers and width of the MLPs of a model whose neurons can be steered; else None.
    """

    def __init__(
        self,
        directory: str,
        dtype: str,
        kv_bytes: int,
        block_size: int,
        context: int,
        sequences: int,
        end_tokens: Sequence[int],
        eager: bool,
        mlps: tuple[int, int] | None,
    ) -> None:
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=directory,
                model_impl="vllm",
                # Texts are made from tokens by the server's own tokenizer.
                skip_tokenizer_init=True,
                trust_remote_code=False,
                dtype=dtype,
                max_model_len=context,
                max_num_seqs=sequences,
                block_size=block_size,
                kv_cache_memory_bytes=kv_bytes,
                enable_prefix_caching=True,
                # Sequences are admitted, and wait where memory runs out, in the order of their arrival.
                scheduling_policy="priority",
                # Draws count the tokens that a request has, which must all be known.
                async_scheduling=False,
                enforce_eager=eager,
                seed=0,
                logits_processors=[Draws],
                worker_extension_cls=f"{__name__}.{WorkerCalls.__name__}",
                disable_log_stats=True,
            )
        )
        cache = self._engine.vllm_config.cache_config
        self.blocks, self.block_size = int(cache.num_gpu_blocks or 0), int(cache.block_size)
        self._core: Any = self._engine.engine_core
        self._scheduler: Any = self._core.engine_core.scheduler
        self._end_tokens = list(end_tokens)
        tokenizer = load_tokenizer(Path(directory), lambda _: None)
        self._tokenizer = _KeptTexts(tokenizer) if isinstance(tokenizer, Detokenizer) else None
        if mlps is not None:
            self._engine.collective_rpc("hook_mlps", args=tuple(mlps))
        self._steerings: dict[str, Steering] = {}
        self._sequences: dict[str, _Sequence] = {}
        self._arrivals = 0
        # By sequence, what it held in memory during the last forward pass.
        self._held: dict[str, int] = {}
        # What is there now stays. To look through it again and again for garbage took up to a tenth of all
        # time with a small model.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)

    def score(self, prompt: list[int]) -> list[float]:
        """Returns the log-probability of each token of a prompt but the first. No sequence may be running."""
        parameters = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, prompt_logprobs=0)
        self._engine.add_request("score", tokens_input(prompt), parameters)
        outputs = []
        while self._engine.has_unfinished_requests():
            outputs += self._engine.step()
        _, *found = outputs[-1].prompt_logprobs
        return [logprobs[token].logprob for token, logprobs in zip(prompt[1:], found, strict=True)]

    def learn_steering(self, name: str, raised: list[int], amounts: list[float], lowered: list[int]) -> None:
        """Learns an edit that sequences are about to name; forgets those that none has any more."""
        used = {found.steering for found in self._sequences.values()}
        self._steerings = {known: edit for known, edit in self._steerings.items() if known in used}
        self._steerings[name] = Steering(
            np.array(raised, np.int64), np.array(amounts, np.float64), np.array(lowered, np.int64)
        )

    def add(
        self,
        sequence: str,
        prompt: list[int],
        prefix: list[int],
        seed: int,
        sampling: Mapping[str, Any],
        signals: int,
        steering: str | None,
    ) -> None:
        """Begins a sequence, which runs with the next call of `run`."""
        how = Sampling(**{**sampling, "stop": tuple(sampling["stop"])})
        begun = self._sequences[sequence] = _Sequence(how, prompt, prefix, signals, steering)
        if how.stop and self._tokenizer is not None:
            begun.text = SampleText(self._tokenizer, prompt, how.stop)
        for token in prefix:
            self._took(begun, token)
        if begun.finish:  # by its prefix
            return
        parameters = SamplingParams(
            temperature=0.0,  # of the logits that `Draws` leaves
            max_tokens=how.max_tokens - len(prefix),
            stop_token_ids=self._end_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args={
                "sequence": sequence,
                "seed": seed,
                "number": len(prefix),
                "signals": signals,
                "sampling": how,
                "end_tokens": self._end_tokens,
                "steering": None if steering is None else self._steerings[steering],
            },
        )
        self._arrivals += 1
        # Another one that is added by the same name later is another request.
        begun.request = f"{sequence}.{self._arrivals}"
        self._core.add_request(
            EngineCoreRequest(
                request_id=begun.request,
                prompt_token_ids=[*prompt, *prefix],
                sampling_params=parameters,
                arrival_time=time.time(),
                priority=self._arrivals,
                mm_features=None,
                pooling_params=None,
                lora_request=None,
                cache_salt=steering,
                data_parallel_rank=None,
            )
        )

    def _took(self, found: _Sequence, token: int) -> None:
        """Notes whether a token, its last one so far, ends a sequence."""
        if token in self._end_tokens or (found.text is not None and found.text.add(token)):
            found.finish = "stop"
        elif len(found.prefix) + len(found.ids) >= found.sampling.max_tokens:
            found.finish = "length"

    def drop(self, sequence: str) -> None:
        """Forgets a sequence and frees its memory."""
        found = self._sequences.pop(sequence)
        self._held.pop(sequence, None)
        if not found.finish:
            self._core.abort_requests([found.request])

    def run(self, needed: dict[str, int], seconds: float) -> dict[str, Any]:
        """Makes forward passes until one of some sequences ends or all have got their tokens.

        Args:
            needed: by sequence, how many tokens it is to get.
            seconds: how long that may take; the pass at hand is always finished.

        Returns:
            passes: how many forward passes were made.
            samples: what is new of all sequences: see `_news`.
            held: by sequence, the tokens whose keys and values were in memory during the last pass.
        """
        end, passes, took = time.monotonic() + seconds, 0, dict[str, int]()
        while self._goes_on(needed) and time.monotonic() < end:
            took = dict(map(self._took_output, self._core.get_output().outputs))
            passes += 1
            for name in took.keys() & needed.keys():
                needed[name] -= took[name]
        if passes:
            self._held = self._held_with(took)
        return {"passes": passes, "samples": self._news(), "held": self._held}

    def _took_output(self, output: EngineCoreOutput) -> tuple[str, int]:
        """Gives a sequence the tokens that a pass gave to its request; returns its name and their number."""
        name, _, _ = output.request_id.rpartition(".")
        found = self._sequences[name]
        if found.reused is None:
            found.reused = output.prefill_stats.num_cached_tokens if output.prefill_stats else 0
        for token in output.new_token_ids:
            found.ids.append(token)
            self._took(found, token)
        if found.finish and not output.finished:  # at a stop text
            self._core.abort_requests([found.request])
        elif output.finished and not found.finish:  # for a reason of vLLM's own, such as a full context
            found.finish = "length"
        return name, len(output.new_token_ids)

    def _held_with(self, names: Iterable[str]) -> dict[str, int]:
        """Returns how many tokens each sequence held in memory during a pass that gave tokens to these."""
        held = {}
        for name in names:
            found = self._sequences[name]
            # The last token's keys and values are computed with the next pass.
            held[name] = len(found.prompt) + len(found.prefix) + len(found.ids) - 1
        for request in self._scheduler.running:
            # Prompts that are computed in parts have no output yet.
            held.setdefault(request.sampling_params.extra_args["sequence"], request.num_computed_tokens)
        return held

    def _goes_on(self, needed: Mapping[str, int]) -> bool:
        ended = any(self._sequences[name].finish for name in needed)
        return not ended and any(left > 0 for left in needed.values())

    def _text(self, found: _Sequence) -> str:
        """Returns what a sequence that has ended says, without its end token and up to a stop text."""
        if self._tokenizer is None:
            return ""
        if found.text is not None and found.text.stopped:
            return found.text.text
        ids = [*found.prefix, *found.ids]
        return sample_text(self._tokenizer, found.prompt, ids[:-1] if ids[-1] in self._end_tokens else ids)

    def _news(self) -> dict[str, dict[str, Any]]:
        """Returns what is new of all sequences since the last call.

        By sequence: ids, and of each logprob and signal as far as they are wanted, see `core.generation`;
        finish; text, once it has ended; reused, the number of tokens of prompt and prefix that were in memory
        already.
        """
        (drawn, *_) = self._engine.collective_rpc("take_draws")
        news = {}
        for name, found in self._sequences.items():
            told = found.told or 0
            if len(found.ids) == told and not (found.finish and found.told is None):
                continue
            first, last = len(found.prefix) + told, len(found.prefix) + len(found.ids)
            signals = [drawn[name][number].signal for number in range(first, min(last, found.signals))]
            numbers = range(first, last) if found.sampling.logprobs else ()
            news[name] = {
                "ids": found.ids[told:],
                "logprobs": [drawn[name][number].logprob for number in numbers],
                "signals": [(signal.end_logprob, signal.entropy) for signal in signals],
                "finish": found.finish,
                "text": self._text(found) if found.finish else "",
                "reused": found.reused,
            }
            found.told = len(found.ids)
        return news


@dataclass(frozen=True)
class _Row:
    """A request in vLLM's batch.

    Args:
        sequence: its name.
        seed, sampling: how its tokens are drawn.
        number: of its first output token within the sample.
        output: its output tokens; vLLM's own list, which grows.
        end_tokens: the ids that end it.
        signals: of how many of the sample's first tokens signals are wanted.
        steering: the edit of its neurons, if there is one.
    """

    sequence: str
    seed: int
    sampling: Sampling
    number: int
    output: Sequence[int]
    end_tokens: Sequence[int]
    signals: int
    steering: Steering | None

    def describes(self, number: int) -> bool:
        """Tells whether anybody wants to know what the model's distribution says of a token."""
        return self.sampling.logprobs or number < self.signals


# What is kept of passes until `WorkerCalls.take_draws` asks, in numbers: 16 MB.
KEPT_LOGITS = 1 << 22


class Draws(LogitsProcessor):  # type: ignore[misc]  # mypy runs without vLLM
    """Draws the next token of every request, and leaves vLLM's greedy choice only that one."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}
        # In the batch's order, and how their tokens are drawn; None once the batch has changed.
        self._batch: tuple[list[_Row], TokenDraws] | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, self._row)
        if batch_update is not None:
            self._batch = None

    @staticmethod
    def _row(parameters: SamplingParams, _: list[int] | None, output: list[int]) -> _Row | None:
        return _Row(output=output, **parameters.extra_args) if parameters.extra_args else None

    def apply(self, logits: Tensor) -> Tensor:
        if not self._rows:  # vLLM's own passes, before there are requests
            return logits
        if self._batch is None:
            rows = [self._rows[index] for index in range(len(logits))]
            draws = TokenDraws([row.sampling for row in rows], [row.seed for row in rows], logits.device)
            self._batch = rows, draws
        rows, draws = self._batch
        numbers = [row.number + len(row.output) for row in rows]
        ids = draws.ids(logits, numbers)
        _DRAWN.add(rows, numbers, logits, ids)
        return logits.scatter(1, ids[:, None], torch.inf)


class _Drawn:
    """What was drawn in this worker and nobody has taken.

    A pass is only kept; many are described at once, which takes much less time.
    """

    def __init__(self) -> None:
        self._passes: list[tuple[Sequence[_Row], Sequence[int], Tensor, Tensor]] = []
        self._kept = 0
        self._described: dict[str, dict[int, DrawnToken]] = {}

    def add(self, rows: Sequence[_Row], numbers: Sequence[int], logits: Tensor, ids: Tensor) -> None:
        """Keeps the tokens that a pass drew, if they are to be described.

        Args:
            rows, numbers: R rows, and the numbers of their tokens.
            logits: [R, V].
            ids: [R].
        """
        kept = [index for index, row in enumerate(rows) if row.describes(numbers[index])]
        if not kept:
            return
        if len(kept) < len(rows):
            rows, numbers = [rows[index] for index in kept], [numbers[index] for index in kept]
            logits, ids = logits[kept], ids[kept]
        self._passes.append((rows, numbers, logits, ids))
        self._kept += logits.numel()
        if self._kept > KEPT_LOGITS:
            self._describe()

    def take(self) -> dict[str, dict[int, DrawnToken]]:
        """Returns the tokens, by sequence and by their numbers in the sample, and forgets them.

        A pass that computes a part of a prompt draws, too. Its token is thrown away by vLLM, and drawn again
        with the rest of the prompt.
        """
        self._describe()
        taken, self._described = self._described, {}
        return taken

    def _describe(self) -> None:
        if not self._passes:
            return
        passes, self._passes, self._kept = self._passes, [], 0
        all_rows, all_numbers, logits, ids = zip(*passes, strict=True)
        tokens = describe(torch.cat(logits), torch.cat(ids), all_rows[0][0].end_tokens)
        for row, number, token in zip(chain(*all_rows), chain(*all_numbers), tokens, strict=True):
            self._described.setdefault(row.sequence, {})[number] = token


_DRAWN = _Drawn()


# What vLLM's models call the activation function of an MLP.
_ACTIVATION_NAMES = frozenset({"act", "act_fn", "activation_fn"})


class WorkerCalls:
    """What vLLM's worker can be asked for beside its own methods, by `collective_rpc`."""

    model_runner: Any  # the worker's own

    def take_draws(self) -> dict[str, dict[int, DrawnToken]]:
        """Returns what was drawn since the last call, see `_Drawn.take`."""
        return _DRAWN.take()

    def hook_mlps(self, layers: int, d_mlp: int) -> None:
        """Has the neurons of steered requests edited in every pass from now on.

        Args:
            layers: of the model.
            d_mlp: width of the MLPs' hidden layer.

        Raises ValueError if the model has not one activation function per layer of a known name.
        """
        model = self.model_runner.model
        # Layers may have one function in common, which then has several names.
        named = dict(model.named_modules(remove_duplicate=False))
        functions = [named[name] for name in named if name.rpartition(".")[2] in _ACTIVATION_NAMES]
        if len(functions) != layers:
            found = f"{len(functions)} activation functions of known names"
            raise ValueError(f"{type(model).__name__} has {found}")
        hooks = _MlpHooks(self.model_runner, SteeredRows(layers, d_mlp, self.model_runner.device))
        model.register_forward_pre_hook(hooks.begin)
        for function in set(functions):
            function.register_forward_hook(hooks.edit)


class _MlpHooks:
    """Hooks that edit the neurons of steered requests in each pass.

    Args:
        runner: vLLM's, which knows the requests of the batch.
        steered: edits rows of the batch.
    """

    def __init__(self, runner: Any, steered: SteeredRows) -> None:
        self._runner, self._steered = runner, steered
        # Of the activation function that is called next: layers come one after another.
        self._layer = 0

    def begin(self, *_: Any) -> None:
        """Finds the rows of the batch that the model is about to compute."""
        names = self._runner.input_batch.req_ids
        lengths = np.diff(self._runner.query_start_loc.np[: len(names) + 1]).tolist()
        given = [self._runner.requests[name].sampling_params.extra_args or {} for name in names]
        self._steered.begin(zip([each.get("steering") for each in given], lengths, strict=True))
        self._layer = 0

    def edit(self, _: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Edits what the activation function of a layer gives.

        Args:
            inputs: one tensor: [T, M], or [T, 2 M] of a gated MLP, gate first.
            output: [T, M], of a gated MLP multiplied by the other factor; it is changed in place.
        """
        layer, self._layer = self._layer, self._layer + 1
        (x,) = inputs
        if x.shape == output.shape:
            return self._steered.edit(layer, output)
        for rows, edit in self._steered.layer(layer):
            gate, up = x[rows].chunk(2, dim=-1)
            output[rows] = edit.apply(silu(gate)) * up
        return output
