"""Defines the commands and options of ``pahq``. Some defaults come from environment variables."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from pahq import __version__

from pahq_client.cli import commands, concepts, jobs, neurons, nodes
from pahq_client.cli.view import view
from pahq_client.formatting import printable
from pahq_client.node_layout import KINDS

_EPILOG = """\
exit codes: 0 done, 1 job failed, 2 usage or invalid request, 3 unreachable or wrong version,
4 access denied, 130 interrupted"""


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are safe to print on a terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser. ``run`` of a parsed namespace is the function to call with that namespace."""
    parser: argparse.ArgumentParser = _Parser(
        prog="pahq",
        description="Discover circuits of language models on a PAHQ server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pahq {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        *(_discover, _attribute, _prune, _neurons, _concepts, _generate, _jobs, _watch, _cancel, _show),
        *(_view, _evaluate, _curve, _compare, _models, _tokenize, _predict, _check, _info),
    ):
        add(subparsers)
    return parser


_Subparsers = argparse._SubParsersAction  # has no public name


def _discover(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("discover", help="find the circuit of a task in a model")
    parser.set_defaults(run=commands.discover)
    _add_measured(parser)
    parser.add_argument("--threshold", type=float, help="remove an edge if that costs less than this")
    parser.add_argument(
        "--method",
        default="acdc",
        help="acdc (default), single_edge, eap, eap_ig, clean_corrupted, relp or gim",
    )
    parser.add_argument(
        "--grouping", default="gates", help="what acdc tests at once: gates (default), none or bisect"
    )
    parser.add_argument("--no-gates", action=_Replaced, help=argparse.SUPPRESS)
    parser.add_argument("--within", metavar="FILE", help="circuit or node circuit that acdc starts from")
    parser.add_argument("--edges", type=int, metavar="N", help="the circuit is to have so many edges")
    parser.add_argument("--faithfulness", type=float, metavar="F", help="acdc: at least so faithful")
    parser.add_argument(
        "--fraction", type=float, metavar="F", help="choose this share of all edges by their scores"
    )
    _add_choice(parser)
    _add_how(parser, "kl_divergence; logit_difference for scores from gradients, with answers")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up and cancel after so many seconds")
    parser.add_argument("--out", metavar="FILE", help="write the circuit or the scores here")
    parser.add_argument("--dot", metavar="FILE", help="write the circuit here, for Graphviz")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--detach", action="store_true", help="do not wait: print the job's name, for watch and show"
    )
    instead.add_argument(
        "--estimate", action="store_true", help="find nothing: check it all, and tell what it would take"
    )
    _add_server(parser)
    _add_json(parser)


def _attribute(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("attribute", help="score every edge of a model on a task")
    parser.set_defaults(run=commands.attribute)
    _add_measured(parser)
    parser.add_argument(
        "--method",
        default="eap",
        help="eap (default), eap_ig, clean_corrupted, relp, gim, or single_edge, which is exact and slow",
    )
    _add_how(parser, "logit_difference, or kl_divergence for a task without answers")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up and cancel after so many seconds")
    parser.add_argument("--out", metavar="FILE", help="write the scores here")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_server(parser)
    _add_json(parser)


def _prune(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("prune", help="find the heads, neurons, blocks and layers that suffice")
    parser.set_defaults(run=nodes.prune)
    _add_measured(parser)
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument(
        "--max-kl", type=float, metavar="KL", help="keep the KL divergence within so many nats"
    )
    limit.add_argument("--penalty", type=float, metavar="L", help="weight of all penalties on the size")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of training (default 1000)")
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        metavar="KIND",
        help=f"prune {', '.join(KINDS)}; may be repeated",
    )
    parser.add_argument("--training-seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--task-loss", type=float, default=0.0, metavar="W", help="weight of the answers")
    parser.add_argument("--no-polish", action="store_true", help="stop after training")
    parser.add_argument("--ablation", default="resample", help="resample (default), zero or mean")
    parser.add_argument(
        "--kv-receivers", default="group", help="of the edges that a search --within has: group or query"
    )
    parser.add_argument("--precision", default="fp32", help="precision policy (default fp32)")
    parser.add_argument(
        "--include-prompts", action="store_true", help="put the prompts into the result and its file"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="give up and cancel after so many seconds")
    parser.add_argument("--out", metavar="FILE", help="write the node circuit here")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--detach", action="store_true", help="do not wait: print the job's name, for watch and show"
    )
    instead.add_argument(
        "--estimate", action="store_true", help="find nothing: check it all, and tell what it would take"
    )
    _add_server(parser)
    _add_json(parser)


def _neurons(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("neurons", help="find the neurons that carry a value")
    parser.set_defaults(run=neurons.locate)
    parser.add_argument(
        "model", metavar="MODEL", help="served model (without a server: or directory, hub id)"
    )
    for side in ("positive", "negative"):
        parser.add_argument(
            f"--{side}",
            required=True,
            metavar="FILE",
            help=f"{side} texts: one per line, JSON, JSON Lines, or a file of samples",
        )
    parser.add_argument(
        "--tokens", default="all", help="which tokens count: all (default), last, or generated ones"
    )
    parser.add_argument("--top-k", type=int, default=2000, metavar="K", help="of each side (default 2000)")
    parser.add_argument(
        "--min-delta", type=float, default=0.1, metavar="D", help="least difference of shares (default 0.1)"
    )
    parser.add_argument(
        "--long-texts", default="refuse", help="those longer than the context: refuse (default) or split"
    )
    parser.add_argument(
        "--overlap", type=int, default=64, metavar="N", help="tokens that parts share (default 64)"
    )
    parser.add_argument("-n", type=int, metavar="N", help="with --tokens generated: samples of each prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="the same: most tokens of a sample")
    parser.add_argument("--temperature", type=float, metavar="T", help="the same: default 1")
    parser.add_argument("--seed", type=int, metavar="N", help="the same: default 0")
    parser.add_argument("--precision", default="fp32", help="precision policy (default fp32)")
    parser.add_argument("--no-prompts", action="store_true", help="leave the texts out of the result")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up and cancel after so many seconds")
    parser.add_argument("--out", metavar="FILE", help="write the neuron set here")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_server(parser)
    _add_json(parser)


def _concepts(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("concepts", help="find the concepts that recur in a model's states")
    parser.set_defaults(run=concepts.learn)
    parser.add_argument(
        "model", metavar="MODEL", help="served model (without a server: or directory, hub id)"
    )
    parser.add_argument(
        "--texts",
        required=True,
        metavar="FILE",
        help="texts: one per line, JSON, JSON Lines, or a file of samples",
    )
    layers = parser.add_mutually_exclusive_group(required=True)
    layers.add_argument("--layer", type=int, metavar="N", help="states after so many layers; 0: embedding")
    layers.add_argument(
        "--layers", type=int, nargs=2, metavar=("LOW", "HIGH"), help="codes of LOW that say what HIGH is"
    )
    for name, kind, default, what in (
        ("codes", int, 400, "how many concepts"),
        ("neighbours", int, 5, "codes are drawn among so many nearest"),
        ("temperature", float, 1.0, "of that draw"),
        ("steps", int, 1000, "of training"),
        ("batch", int, 512, "states of a step"),
        ("learning-rate", float, 1e-3, "the largest"),
        ("decoder-layers", int, 6, "fewer take less time"),
        ("decoder-heads", int, 8, "must divide the width of states"),
        ("seed", int, 0, "of all draws"),
        ("max-states", int, 1_000_000, "draw some of the texts beyond"),
        ("skip", int, 1, "first tokens of each text that only give context"),
    ):
        metavar = "N" if kind is int else "X"
        help_text = f"{what} (default {default:g})" if kind is float else f"{what} (default {default})"
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=help_text)
    parser.add_argument(
        "--memory", default="quantized", help="what the decoder sees: quantized (default) or continuous"
    )
    parser.add_argument(
        "--long-texts", default="refuse", help="those longer than the context: refuse (default) or split"
    )
    parser.add_argument("--precision", default="fp32", help="precision policy (default fp32)")
    parser.add_argument(
        "--include-prompts", action="store_true", help="put the texts into the result and its file"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="give up and cancel after so many seconds")
    parser.add_argument("--out", metavar="FILE", help="write the codebook here")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_server(parser)
    _add_json(parser)


def _generate(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("generate", help="sample what a model says after prompts")
    parser.set_defaults(run=commands.generate)
    parser.add_argument(
        "--model", required=True, help="served model (without a server: or directory, hub id)"
    )
    parser.add_argument("texts", nargs="+", metavar="PROMPT", help="put it in quotes: spaces count")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="samples of each prompt (default 1)")
    parser.add_argument(
        "--max-tokens", type=int, default=32, metavar="N", help="the most tokens of a sample (default 32)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="default 1; 0 takes the likeliest token"
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="default 0, for all tokens")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a sample; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--logprobs", action="store_true", help="give log-probabilities of tokens, too")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument("--slots", type=int, metavar="N", help="samples that run at once")
    memory.add_argument("--kv-tokens", type=int, metavar="N", help="tokens in memory at once")
    parser.add_argument(
        "--policy",
        default="auto",
        help="order of samples: auto (default), rounds, fifo, sjf, longest_first, fptas or fptas_sjf",
    )
    parser.add_argument("--circuit", metavar="FILE", help="circuit file: what does the circuit alone say?")
    parser.add_argument(
        "--ablation",
        help="what edges outside of the circuit carry: zero or resample (default: as the circuit was found)",
    )
    parser.add_argument(
        "--corrupted",
        action="append",
        metavar="TEXT",
        help="corrupted prompt for resample; once for each prompt, in order",
    )
    parser.add_argument("--steer", metavar="FILE", help="neuron set: edit its neurons at every token")
    parser.add_argument(
        "--strength", type=float, metavar="G", help="of --steer; below 0 for less of the value (default 1)"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="give up and cancel after so many seconds")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the samples here")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--detach", action="store_true", help="do not wait: print the job's name, for watch and show"
    )
    _add_server(parser)
    _add_json(parser)


def _curve(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("curve", help="measure how faithful circuits of growing size are")
    parser.set_defaults(run=commands.curve)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a file of scores, or circuit files of one graph"
    )
    _add_measured(parser)
    parser.add_argument(
        "--fractions",
        type=_fractions,
        metavar="F,F,...",
        help="shares of all edges to choose by scores (default: .001 to 1 as in MIB)",
    )
    _add_choice(parser)
    parser.add_argument(
        "--baselines", type=int, default=3, metavar="N", help="random curves to compare with (default 3)"
    )
    for option in ("--metric", "--ablation", "--kv-receivers", "--precision"):
        parser.add_argument(option, help="default: as the scores or circuits were found")
    parser.add_argument(
        "--allow-other-model", action="store_true", help="measure although they are another model's"
    )
    _add_allow_partial(parser)
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds")
    _add_server(parser)
    _add_json(parser)


def _fractions(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank", default="absolute", help="choose edges by absolute scores (default) or by harm"
    )
    parser.add_argument("--greedy", action="store_true", help="choose edges from the logits on")


def _add_how(parser: argparse.ArgumentParser, metric: str) -> None:
    """Adds how a job measures and what it keeps."""
    parser.add_argument("--metric", help=f"kl_divergence, logit_difference or l2 (default: {metric})")
    parser.add_argument("--ablation", default="resample", help="resample (default), zero or mean")
    parser.add_argument("--steps", type=int, metavar="N", help="eap_ig: runs to take the mean of (default 5)")
    parser.add_argument("--kv-receivers", default="group", help="group (default) or query")
    parser.add_argument("--precision", default="fp32", help="precision policy (default fp32)")
    parser.add_argument(
        "--include-prompts", action="store_true", help="put the prompts into the result and its file"
    )


class _Replaced(argparse.Action):
    """Refuses an option of earlier versions."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]} gave way to --grouping none")


def _jobs(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("jobs", help="list jobs, newest first")
    parser.set_defaults(run=jobs.jobs)
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many (default: all)")
    _add_server(parser)
    _add_json(parser)


def _watch(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("watch", help="follow a job to its end")
    parser.set_defaults(run=jobs.watch)
    parser.add_argument(
        "name",
        metavar="NAME",
        help="as jobs and --detach print it, or its id",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_server(parser)
    _add_json(parser, "print every event as a JSON document on a line of its own")


def _cancel(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("cancel", help="stop a job")
    parser.set_defaults(run=jobs.cancel)
    parser.add_argument("name", metavar="NAME", help="a job's name or id")
    _add_server(parser)
    _add_json(parser)


def _evaluate(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("evaluate", help="measure a circuit on a model and a task")
    parser.set_defaults(run=commands.evaluate)
    parser.add_argument("--circuit", required=True, metavar="FILE", help="circuit file, of edges or of nodes")
    _add_measured(parser)
    for option in ("--metric", "--ablation", "--kv-receivers", "--precision"):
        parser.add_argument(option, help="default: as the circuit was found")
    parser.add_argument(
        "--allow-other-model",
        action="store_true",
        help="measure the circuit although it was found in another model",
    )
    _add_allow_partial(parser)
    _add_server(parser)
    _add_json(parser)


def _models(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("models", help="list the served models")
    parser.set_defaults(run=commands.models)
    _add_server(parser)
    _add_json(parser)


def _tokenize(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("tokenize", help="show how a model tokenizes texts")
    parser.set_defaults(run=commands.tokenize)
    parser.add_argument(
        "--model", required=True, help="served model (without a server: or directory, hub id)"
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="put it in quotes: spaces in front count")
    parser.add_argument("--prompt", metavar="TEXT", help="show what the texts are as answers to this")
    parser.add_argument(
        "--no-special-tokens",
        dest="special_tokens",
        action="store_false",
        help="leave out those that the tokenizer puts around prompts by itself",
    )
    _add_server(parser)
    _add_json(parser)


def _predict(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("predict", help="show the likeliest next tokens of texts")
    parser.set_defaults(run=commands.predict)
    parser.add_argument(
        "--model", required=True, help="served model (without a server: or directory, hub id)"
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="put it in quotes: spaces count")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many tokens (default 5)")
    _add_server(parser)
    _add_json(parser)


def _check(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("check-task", help="tell whether a model does a task")
    parser.set_defaults(run=commands.check_task)
    _add_measured(parser)
    _add_server(parser)
    _add_json(parser)


def _info(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("info", help="tell what the server is and can do")
    parser.set_defaults(run=commands.info)
    _add_server(parser)
    _add_json(parser)


def _compare(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("compare", help="tell how much two results of one kind agree")
    parser.set_defaults(run=commands.compare)
    parser.add_argument(
        "a", help="file of a circuit, of scores, of a node circuit, of neurons or of concepts"
    )
    parser.add_argument("b", help="another one of the same kind")
    parser.add_argument(
        "--allow-other-model", action="store_true", help="compare although they are of different models"
    )
    _add_allow_partial(parser)
    _add_json(parser)


def _show(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "show", help="print a circuit, scores, neurons, concepts or samples, or how their job stands"
    )
    parser.set_defaults(run=jobs.show)
    parser.add_argument("what", metavar="NAME_OR_FILE", help="a job's name or id, or a file")
    _add_server(parser)
    _add_json(parser)


def _view(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "view", help="look at a circuit, scores, kept nodes, neurons or concepts in a browser"
    )
    parser.set_defaults(run=view)
    parser.add_argument(
        "file", metavar="FILE", help="file of a circuit, edge scores, a node circuit, neurons or concepts"
    )
    parser.add_argument("other", nargs="?", metavar="OTHER", help="another one, to compare with")
    parser.add_argument("--output", metavar="FILE", help="write the page here (default: a temporary file)")
    parser.add_argument("--no-open", action="store_true", help="write the page and open nothing")
    _add_allow_partial(parser)


def _add_measured(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="served model (without a server: or directory, hub id)"
    )
    parser.add_argument(
        "--task",
        required=True,
        help="built-in task (ioi, induction, …), or file with clean, corrupted, …: JSON, JSON Lines or CSV",
    )
    parser.add_argument("--num-prompts", type=int, metavar="N", help="of a built-in task (default 16)")
    parser.add_argument("--seed", type=int, metavar="N", help="of a built-in task (default 0)")


def _add_server(parser: argparse.ArgumentParser) -> None:
    environ = os.environ
    parser.add_argument(
        "--server",
        default=environ.get("PAHQ_SERVER"),
        metavar="HOST:PORT",
        help="default: $PAHQ_SERVER, else a server started for this command",
    )
    parser.add_argument("--token", default=environ.get("PAHQ_TOKEN") or None, help="default: $PAHQ_TOKEN")
    parser.add_argument("--tls", action="store_true", help="encrypt, trust public authorities")
    parser.add_argument("--tls-ca", metavar="FILE", help="encrypt, trust these authorities")
    parser.add_argument("--tls-cert", metavar="FILE", help="client certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="its key")


def _add_allow_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-partial", action="store_true", help="take circuits of jobs that did not come to their end"
    )


def _add_json(parser: argparse.ArgumentParser, meaning: str = "print one JSON document") -> None:
    parser.add_argument("--json", action="store_true", help=meaning)
