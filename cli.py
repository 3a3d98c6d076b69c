"""The `seedance` command: one thin table of sub-commands. Each parses, calls one public function, and prints.

Notable choices:
- Nothing heavy is imported before a command runs, so `seedance --help` answers at once.
- Flags are hyphenated; underscores are accepted.
- stdout carries the result (with --json one object), stderr everything else.
- Exit status: 0 done, 2 bad usage or bad input, 1 the work failed; bad input never shows a traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedance.errors import SeedanceError
from shots.errors import ShotsError, ShotsFailure
from unitime.errors import UniTimeError

Parser = argparse.ArgumentParser


@dataclass(frozen=True)
class Command:
    """One sub-command: what --help says, the arguments it takes, and what runs it and returns the exit status."""

    help: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]


def _print(arguments: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """The result on stdout: as one JSON object with --json, else as text."""
    print(json.dumps(result, ensure_ascii=False) if arguments.json else text)


# ----------------------------------------------------------------------------------------------------------- render


def _render_arguments(parser: Parser) -> None:
    what = parser.add_argument_group("what to render, one of")
    what.add_argument("prompts", nargs="*", metavar="PROMPT", help='what is to be seen; "[cut]" parts shots')
    what.add_argument("--script", type=Path, metavar="FILE", help="a script: YAML, JSON or plain text")
    what.add_argument("--from-file", type=Path, metavar="FILE", help="one prompt a line, one film each")
    parser.add_argument("-o", "--output", type=Path, default=Path("film.mp4"), help="video file (default: film.mp4)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture that the film starts with")
    parser.add_argument("--last-image", type=Path, metavar="FILE", help="picture that the film ends with")
    parser.add_argument("--seed", type=int, help="the same seed gives the same film (default: drawn, and printed)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, metavar="G", help="how closely to follow the words; 1 is free")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what the film should not be like")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.add_argument("--num-frames", type=int, metavar="N", help="frames of each shot that does not say its seconds")
    parser.add_argument("--fps", type=float, help="frames a second (default: the model's)")
    parser.add_argument("--model", default="seedance-nano", metavar="NAME|DIR|HUB-ID", help="default: seedance-nano")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a HUB-ID (default: main)")
    parser.add_argument(
        "--pickle", dest="pickles", action="append", default=[], metavar="PART/FILE",
        help="read this file of the model's folder though it is a pickle; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--lora", action="append", default=[], metavar="PATH[:SCALE]", help="adapter of an open checkpoint; repeatable"
    )
    parser.add_argument("--transformer", type=Path, metavar="FILE", help="in the place of an open checkpoint's own")
    parser.add_argument(
        "--carry", choices=("last", "key", "none"), help="what the shots of an open checkpoint begin from (last frame)"
    )
    parser.add_argument("--dtype", metavar="FORMAT", help="fp32, bf16 or fp16 (default: what the device is fastest in)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... (default: the best there is)")
    parser.add_argument("--num-samples", type=int, default=1, metavar="K", help="films per prompt, seeds counted up")
    parser.add_argument("--no-record", dest="record", action="store_false", help="do not store how the film was made")
    parser.add_argument("--sampler", choices=("multistep", "euler"), help="default: the model's")
    parser.add_argument("--profile", action="store_true", help="also say how long each stage took, and the MFU")
    _takes_arguments(parser)
    _acceleration_arguments(parser.add_argument_group("time and memory (see the README)"))
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what it would take")


def _takes_arguments(parser: Parser) -> None:
    loop = parser.add_argument_group("verdicts and takes (a film whose shots still fail is made, and exits with 0)")
    loop.add_argument("--verify", action="store_true", help="look in each shot for what it should show, and report")
    loop.add_argument("--retakes", type=int, default=0, metavar="N", help="make failed shots anew, up to N times")
    loop.add_argument("--keep-takes", type=Path, metavar="DIR", help="keep the film of every take, with its state")
    loop.add_argument("--grounder", default="unitime-nano", metavar="NAME|DIR|HUB-ID", help="default: unitime-nano")
    again = parser.add_argument_group("a film that is there")
    again.add_argument("--state", action="store_true", help="keep the film's latents beside it, to take it up again")
    again.add_argument(
        "--from-state", type=Path, metavar="FILM", help="take a film up again: a prompt or --script adds shots"
    )
    again.add_argument(
        "--retake-shots", type=_numbers, default=(), metavar="K,K", help="make these of it anew; a prompt has new words"
    )
    around = parser.add_argument_group("for those who publish")
    around.add_argument(
        "--title", nargs="?", const="", metavar="TEXT", help="a card before the film (without TEXT: the script's title)"
    )
    around.add_argument("--soundtrack", type=Path, metavar="FILE", help="sound, looped, trimmed and faded to the film")


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers of shots, such as 2,3."""
    return tuple(int(part) for part in text.split(","))


def _acceleration_arguments(parser: Any) -> None:
    parser.add_argument(
        "--offload", default="auto", metavar="LEVEL",
        help="where an open model's weights wait: none, model, group, disk (default: the first that fits)",
    )  # fmt: skip
    parser.add_argument("--quantization", metavar="HOW", help="an open model's transformer in int8 or fp8 (torchao)")
    parser.add_argument("--compile", action="store_true", help="compile each block; the first film waits for it")
    parser.add_argument(
        "--cache", type=float, nargs="?", const=0.0, metavar="THRESHOLD",
        help="leave out most of a pass while its first block says that little changed",
    )  # fmt: skip
    parser.add_argument("--vae-tiling", action="store_true", help="decode in tiles (else when memory runs out)")
    parser.add_argument("--vae-dtype", metavar="NUMBERS", help="an open model's VAE in fp32 or bf16, half the memory")
    parser.add_argument(
        "--attention-backend", default="sdpa", metavar="KERNEL", help="cudnn, flash, flash3, sage or xformers"
    )
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"),
        help="times at which guidance acts, from 0 (film) to 1 (noise)",
    )  # fmt: skip


def _render(arguments: argparse.Namespace) -> None:
    from seedance.api import RenderRequest, render

    logging.getLogger("seedance").setLevel(logging.INFO)  # an open checkpoint says what it will take, and where
    apart = ("command", "json", "grounder")
    request = RenderRequest.from_dict({name: value for name, value in vars(arguments).items() if name not in apart})
    verifier = _verifier(arguments.grounder) if request.verify and not request.dry_run else None
    result = render(request, progress=_progress, verifier=verifier)
    _print(arguments, result.to_dict(), str(result))


def _verifier(name: str) -> Callable[[Any, Any], Any]:
    """Holds films against their scripts with the grounder of that name."""
    from shots.evaluation import verify
    from unitime import UniTime

    grounder = UniTime.from_pretrained(name)
    return lambda video, script: verify(video, script, grounder)


def _progress(done: int, total: int, what: str) -> None:
    """One line on stderr that overwrites itself where a person watches."""
    if sys.stderr.isatty():
        print(f"\r{what} {done}/{total} ", end="\n" if done == total else "", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ stage


def _stage_arguments(parser: Parser) -> None:
    parser.add_argument("--script", type=Path, metavar="FILE", help="what is to be seen (default: the seed writes it)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same film (default: drawn, and printed)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="length: of the film, or of the shots of a script that say none"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("stage.mp4"), help="video file (default: stage.mp4)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="JSON file for captions, events and questions")
    parser.add_argument("--height", type=int, default=128, help="pixels (default: 128)")
    parser.add_argument("--width", type=int, default=128, help="pixels (default: 128)")
    parser.add_argument("--fps", type=float, default=12.0, help="frames a second (default: 12)")
    parser.add_argument("--no-record", dest="record", action="store_false", help="do not store how the film was made")


def _stage(arguments: argparse.Namespace) -> None:
    from shots.stage.shoot import shoot

    options = {name: value for name, value in vars(arguments).items() if name not in ("command", "json")}
    take = shoot(**options)
    _print(arguments, take.to_dict(), str(take))


# ------------------------------------------------------------------------------------------------------------ train


def _train_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that differ from the recipe's")
    parser.add_argument("--time-budget", type=float, metavar="S", help="seconds after which to stop, cleanly")


def _train(arguments: argparse.Namespace) -> None:
    from seedance import training as generation
    from shots.runtime.recipe import find_recipe, load_recipe
    from unitime import training as grounding

    file = find_recipe(arguments.recipe, [generation.RECIPES, grounding.RECIPES])
    package = grounding if load_recipe(file).get("task") in grounding.TASKS else generation
    package.train(file, arguments.overrides, time_budget=arguments.time_budget)


# ------------------------------------------------------------------------------------------------------ ground, ask


def _grounder_arguments(parser: Parser) -> None:
    parser.add_argument("--model", default="unitime-nano", metavar="NAME|DIR|HUB-ID", help="default: unitime-nano")
    _weights_arguments(parser)


def _weights_arguments(parser: Any) -> None:
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a HUB-ID (default: main)")
    parser.add_argument("--adapter", metavar="DIR|HUB-ID", help="LoRA weights to put on the model")
    parser.add_argument(
        "--prompts", metavar="FORMAT", help="how the checkpoint is spoken to, such as timelens-7b (default: recognised)"
    )
    parser.add_argument(
        "--quantization", choices=("int8", "int4"), help="keep the language model in fewer bits (needs torchao)"
    )
    parser.add_argument(
        "--max-fps", type=float, metavar="F", help="look at no more frames a second (default: the checkpoint's rule)"
    )
    parser.add_argument("--no-cache", dest="cache", action="store_false", help="keep no vision features on disk")


def _grounder(arguments: argparse.Namespace) -> Any:
    import unitime

    cache = unitime.FeatureCache() if arguments.cache else None
    return unitime.UniTime.from_pretrained(
        arguments.model, revision=arguments.revision, adapter=arguments.adapter, prompts=arguments.prompts,
        quantization=arguments.quantization, cache=cache, max_fps=arguments.max_fps,
    )  # fmt: skip


def _video(arguments: argparse.Namespace) -> Path:
    """The video that is asked about; a missing or broken file is named here, before any weights are loaded."""
    from shots import probe

    probe(arguments.video)
    return Path(arguments.video)


def _ground_arguments(parser: Parser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="what to look for")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="moments of each query (default: 1)")
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("START", "END"), help="look only between these seconds"
    )
    parser.add_argument("--threshold", type=float, metavar="P", help="say not found above this probability of it")
    _grounder_arguments(parser)


def _ground(arguments: argparse.Namespace) -> None:
    path = _video(arguments)
    model = _grounder(arguments)
    video = model.encode(path)
    window = tuple(arguments.window) if arguments.window else None
    found = model.ground(video, arguments.queries, top_k=arguments.top_k, window=window, threshold=arguments.threshold)
    result = {
        "video": str(arguments.video),
        "duration": video.duration,
        "groundings": [grounding.to_dict() for grounding in found],
    }
    _print(arguments, result, "\n".join(_told(grounding) for grounding in found))


def _told(grounding: Any) -> str:
    """A grounding in words: the query, then each moment with its score."""
    moments = [f"{moment.start:.2f} - {moment.end:.2f} s ({moment.score:.2f})" for moment in grounding.moments]
    return f"{grounding.query}: {', '.join(moments) if grounding.status == 'ok' else grounding.status}"


def _ask_arguments(parser: Parser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    parser.add_argument("question", metavar="QUESTION", help="what to answer")
    parser.add_argument(
        "--option", dest="options", action="append", metavar="TEXT", help="a possible answer; give each one"
    )
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("START", "END"), help="look only between these seconds"
    )
    _grounder_arguments(parser)


def _ask(arguments: argparse.Namespace) -> None:
    path = _video(arguments)
    window = tuple(arguments.window) if arguments.window else None
    answer = _grounder(arguments).ask(path, arguments.question, options=arguments.options, window=window)
    seen = answer.evidence
    where = "" if seen is None else f" (seen at {seen.start:.2f} - {seen.end:.2f} s)"
    _print(arguments, {"video": str(arguments.video), **answer.to_dict()}, f"{answer}{where}")


# ---------------------------------------------------------------------------------------------------------- caption


def _caption_arguments(parser: Parser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="script to write, .yaml or .json (default: printed as YAML)"
    )
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not look for each caption in its shot"
    )
    _grounder_arguments(parser)


def _caption(arguments: argparse.Namespace) -> None:
    from shots.captions import check_script_place, describe_film, save_script

    path = _video(arguments)
    if arguments.output is not None:
        check_script_place(arguments.output)
    model = _grounder(arguments)
    film = describe_film(path, model, model if arguments.check else None, progress=_reporter())
    if film.doubtful:
        logging.getLogger("seedance").warning(
            "warning: not found in their shots: the captions of shots %s", ", ".join(map(str, film.doubtful))
        )
    text = film.script.to_yaml().rstrip()
    if arguments.output is not None:
        save_script(film.script, arguments.output)
        text = f"{film}\n{arguments.output}: {len(film.shots)} shots"
    output = None if arguments.output is None else str(arguments.output)
    _print(arguments, {"video": str(path), "output": output, **film.to_dict()}, text)


# ------------------------------------------------------------------------------------------------------ cuts, score


def _cuts_arguments(parser: Parser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file")


def _cuts(arguments: argparse.Namespace) -> None:
    from shots.cuts import find_cuts

    found = find_cuts(arguments.video)
    _print(arguments, found.to_dict(), str(found))


def _score_arguments(parser: Parser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    parser.add_argument("--script", type=Path, metavar="FILE", help="what it should show (default: as its record says)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also lay the report out as a picture")
    parser.add_argument("--threshold", type=float, metavar="P", help="claims less likely than this are defects")
    parser.add_argument("--judge", action="store_true", help="also say what the stage's judge reads (a measure only)")
    _grounder_arguments(parser)


def _score(arguments: argparse.Namespace) -> None:
    from shots.evaluation import script_of, verify
    from shots.script import Script
    from shots.sheet import report_sheet

    script = script_of(arguments.video) if arguments.script is None else Script.load(arguments.script)
    judge = None
    if arguments.judge:
        from shots.stage.judge import Judge

        judge = Judge.load()
    report = verify(arguments.video, script, _grounder(arguments), judge=judge, threshold=arguments.threshold)
    if arguments.sheet is not None:
        report_sheet(arguments.video, report, arguments.sheet)
    _print(arguments, {"video": str(arguments.video), **report.to_dict()}, str(report))


# ---------------------------------------------------------------------------------------------------------- metrics


def _metrics_arguments(parser: Parser) -> None:
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="JSON lines in QVHighlights' form")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="the benchmark's own file")
    parser.add_argument("--protocol", choices=("moment_detr", "unitime"), required=True, help="whose way of scoring")
    parser.add_argument(
        "--min-score", type=float, metavar="P", help="unitime: windows after the first count from this score on"
    )
    parser.add_argument("--count-missing", action="store_true", help="queries without a prediction are misses")


def _metrics(arguments: argparse.Namespace) -> None:
    from unitime.evaluation import evaluate_files, report_text

    options = {name: getattr(arguments, name) for name in ("min_score", "count_missing")}
    report = evaluate_files(arguments.predictions, arguments.annotations, arguments.protocol, **options)
    _print(arguments, report, report_text(report))


# --------------------------------------------------------------------------------------------------------- evaluate


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument("suite", choices=("prompts", "vae", "grounding"), help="what to measure")
    parser.add_argument("--model", metavar="NAME|DIR|HUB-ID", help="default: seedance-nano; of grounding: unitime-nano")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N of each set, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="of the first film (default: 0)")
    grounding = parser.add_argument_group("grounding, on a benchmark (without these, on the stage's held-out videos)")
    grounding.add_argument("--annotations", type=Path, metavar="FILE", help="the benchmark's own file")
    grounding.add_argument("--videos", type=Path, metavar="DIR", help="folder of its videos")
    grounding.add_argument(
        "-o", "--output", type=Path, default=Path("predictions.jsonl"), help="predictions; gone on with if there"
    )
    grounding.add_argument("--top-k", type=int, default=10, metavar="K", help="windows of each query (default: 10)")
    _weights_arguments(grounding)


def _evaluate_grounding(arguments: argparse.Namespace) -> None:
    from unitime.evaluation import evaluate_grounding

    arguments.model = arguments.model or "unitime-nano"
    if arguments.annotations is None and arguments.videos is None:
        from unitime.suites import evaluate_stage

        report = evaluate_stage(_grounder(arguments), arguments.limit, _reporter())
        _print(arguments, report, "\n".join(_lines(report)))
        return
    if arguments.annotations is None or arguments.videos is None:
        raise UniTimeError("evaluate grounding: give --annotations FILE and --videos DIR, or neither for the stage")
    name = arguments.model if arguments.adapter is None else f"{arguments.model} with {arguments.adapter}"
    run = evaluate_grounding(
        lambda: _grounder(arguments), arguments.annotations, arguments.videos, arguments.output,
        top_k=arguments.top_k, limit=arguments.limit, model=name, progress=_reporter(),
    )  # fmt: skip
    _print(arguments, run.to_dict(), str(run))
    if run.failed and run.usable == 0:
        raise ShotsFailure(f"videos: none that are asked about could be used in {arguments.videos}; see above why")


def _reporter(every: float = 10.0) -> Callable[[int, int, str], None]:
    """Progress on stderr: where a person watches one line that overwrites itself, in a log one line in `every` s."""
    last = 0.0

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        if sys.stderr.isatty():
            _progress(done, total, what)
        elif done == total or time.monotonic() - last >= every:
            last = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

    return report


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.suite == "grounding":
        _evaluate_grounding(arguments)
        return
    arguments.model = arguments.model or "seedance-nano"
    if arguments.suite == "vae":
        from seedance.evaluation import evaluate_vae
        from seedance.pipeline import SHIPPED, load_vae
        from shots.runtime.weights import resolve

        result = evaluate_vae(load_vae(resolve(arguments.model, SHIPPED)), clips=arguments.limit)
    else:
        import torch

        from seedance.evaluation import reconstruct
        from seedance.pipeline import Seedance
        from shots.stage.following import evaluate_suites
        from shots.stage.judge import Judge

        model, judge = Seedance.from_pretrained(arguments.model), Judge.load()
        result = evaluate_suites(
            model, model, judge, lambda frames: reconstruct(model.vae, torch.from_numpy(frames)).numpy(),
            limit=arguments.limit, seed=arguments.seed, progress=_progress,
        )  # fmt: skip
    _print(arguments, {"seed": arguments.seed, **result}, "\n".join([f"seed {arguments.seed}", *_lines(result)]))


def _lines(result: dict[str, Any], path: str = "") -> list[str]:
    """A nested result as one line a figure."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{path}{key}.")
        else:
            lines.append(f"{path}{key:<{max(1, 48 - len(path))}} {value:.4g}" if isinstance(value, float) else
                         f"{path}{key:<{max(1, 48 - len(path))}} {value}")  # fmt: skip
    return lines


# ------------------------------------------------------------------------------------------------------------ serve


def _serve_arguments(parser: Parser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    parser.add_argument(
        "--data", type=Path, default=Path("outputs/server"), metavar="DIR", help="queue, films and uploads, kept there"
    )
    parser.add_argument(
        "--model", dest="models", action="append", metavar="NAME|DIR|HUB-ID",
        help="makes films; several may be given (default: seedance-nano)",
    )  # fmt: skip
    parser.add_argument("--grounder", default="unitime-nano", metavar="NAME|DIR|HUB-ID", help="default: unitime-nano")
    parser.add_argument("--adapter", metavar="DIR", help="LoRA weights to put on the grounder")
    parser.add_argument(
        "--api-key", dest="keys", action="append", metavar="KEY",
        help="give each client's; also read from SEEDANCE_API_KEYS, with commas between (default: none is needed)",
    )  # fmt: skip
    parser.add_argument("--no-studio", dest="studio", action="store_false", help="serve the REST services alone")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="films made at a time (default: 1)")
    parser.add_argument(
        "--device", dest="devices", action="append", metavar="NAME", help="one worker each; default: the best there is"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch in a worker (default: leave a core free)")
    parser.add_argument("--queue", type=int, metavar="N", help="films in line, at most (default: 100)")
    parser.add_argument("--per-client", type=int, metavar="N", help="of them of one client (default: 20)")
    parser.add_argument("--keep-days", type=float, metavar="D", help="after which a film goes (default: 7)")
    parser.add_argument("--disk-gb", type=float, metavar="GB", help="for all films; the oldest go first (default: 21)")
    parser.add_argument("--requeue", action="store_true", help="make anew what a killed server was making")


def _serve(arguments: argparse.Namespace) -> None:
    from seedance.jobs import Limits

    try:
        from demos.app import Settings, serve
    except ModuleNotFoundError as error:
        raise SeedanceError(f"serve: {error.name} is not installed; install the serve extra") from error

    limits: dict[str, Any] = {
        "queue": arguments.queue,
        "per_client": arguments.per_client,
        "keep_seconds": arguments.keep_days and arguments.keep_days * 24 * 3600,
        "disk_bytes": arguments.disk_gb and int(arguments.disk_gb * 1e9),
        "requeue": arguments.requeue,
    }
    if arguments.workers < 1:
        raise SeedanceError(f"--workers: {arguments.workers}; at least 1 is needed")
    keys = [*(arguments.keys or ()), *filter(None, os.environ.get("SEEDANCE_API_KEYS", "").split(","))]
    settings = Settings(
        data=arguments.data,
        models=tuple(arguments.models or ("seedance-nano",)),
        grounder=arguments.grounder,
        adapter=arguments.adapter,
        keys=tuple(keys),
        devices=tuple(arguments.devices or [None] * arguments.workers),
        threads=arguments.threads,
        studio=arguments.studio,
        limits=Limits(**{name: value for name, value in limits.items() if value is not None}),
    )
    if not keys and arguments.host not in ("127.0.0.1", "::1", "localhost"):
        logging.warning("warning: whoever reaches %s can use this server; --api-key locks it", arguments.host)

    def told(address: str) -> None:
        _print(arguments, {"address": address}, f"serving at {address}; stop it with Ctrl-C")
        sys.stdout.flush()

    serve(settings, arguments.host, arguments.port, told)


# ----------------------------------------------------------------------------------------------------- models, env


def _models(arguments: argparse.Namespace) -> None:
    from seedance.pipeline import SHIPPED as FILMS
    from shots.runtime.shipped import shipped_models
    from unitime.model import SHIPPED as GROUNDERS

    found = shipped_models(FILMS | GROUNDERS)
    _print(arguments, {"models": [model.to_dict() for model in found]}, "\n".join(map(str, found)))


def _env(arguments: argparse.Namespace) -> None:
    from shots.runtime.environment import describe

    found = describe()
    rows = {**{key: value for key, value in found.items() if key != "packages"}, **found["packages"]}
    _print(arguments, found, "\n".join(f"{key:<22}{value or '-'}" for key, value in rows.items()))


COMMANDS = {
    "render": Command("make films from prompts or a script", _render_arguments, _render),
    "stage": Command("shoot a film on the stage, with its ground truth", _stage_arguments, _stage),
    "ground": Command("find when something happens in a video", _ground_arguments, _ground),
    "ask": Command("answer a question about a video, from the moment that bears on it", _ask_arguments, _ask),
    "caption": Command("turn a video into a script that renders again", _caption_arguments, _caption),
    "cuts": Command("find the cuts and gradual transitions of a video", _cuts_arguments, _cuts),
    "score": Command("hold a film against its script", _score_arguments, _score),
    "metrics": Command("score a file of grounding predictions", _metrics_arguments, _metrics),
    "train": Command("train a model by a recipe; resumes what was stopped", _train_arguments, _train),
    "evaluate": Command(
        "measure a model on the sets kept in the package, or on a benchmark", _evaluate_arguments, _evaluate
    ),
    "serve": Command("the studio, films and moments over HTTP, until it is stopped", _serve_arguments, _serve),
    "models": Command("the models that ship with the package", lambda parser: None, _models),
    "env": Command("versions, device, and what would be computed in", lambda parser: None, _env),
}


def _parser() -> Parser:
    parser = Parser("seedance", description="Write, render and verify films.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        command.arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _hyphened(argv: Sequence[str]) -> list[str]:
    """`argv` with the underscores of flag names made hyphens; values and what follows "--" stay as they are."""
    made, flags = [], True
    for word in argv:
        flags = flags and word != "--"
        if flags and word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        made.append(word)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit status."""
    arguments = _parser().parse_args(_hyphened(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *where: logging.getLogger("seedance").warning("warning: %s", message)
    try:
        COMMANDS[arguments.command].run(arguments)
    except ShotsFailure as error:
        return _complain(error, 1)
    except (ShotsError, SeedanceError, UniTimeError) as error:
        return _complain(error, 2)
    except OSError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _complain("not enough memory; choose smaller sizes (render --dry-run says what a film takes)", 1)
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Whether Python or torch ran out of memory; torch's class is known by its name, as importing torch takes long."""
    said = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or "OutOfMemoryError" in said or "allocate memory" in said


def _complain(what: object, status: int) -> int:
    line = " ".join(str(what).split())
    print(f"seedance: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
