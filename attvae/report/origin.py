"""Where a run comes from: data, machine, versions, configuration, commands."""

import shlex
from html import escape

from attvae.pages.figures import duration
from attvae.report import tables
from attvae.report.subject import Subject, resolved
from attvae.tracking.run import Run
from attvae.tracking.secrets import without_secrets


def wall_s(run: Run) -> float:
    """Seconds of training."""
    return float(run.summary.get("wall_s", run.wall_s))


def data(subject: Subject) -> str:
    dataset = subject.dataset
    if not dataset:
        return f"<p>{escape(subject.cfg.data.path)}; the run does not say more.</p>"
    spec, samples = dataset.get("spec"), dataset.get("samples", {})
    found = {
        "name": dataset.get("name"),
        "version": dataset.get("version"),
        "fingerprint": dataset.get("fingerprint"),
        "training images": _count(samples.get("train")),
        "validation images": _count(samples.get("val")),
        "test images": _count(samples.get("test")),
        "size": spec
        and f"{spec['height']} × {spec['width']}, {spec['channels']} channel{'s' * (spec['channels'] > 1)}",
        "values": spec
        and ("0 and 1, drawn" if spec["binary"] else f"0 to {spec['max_value']}, {spec['num_bits']} bits"),
        "source": without_secrets(str(dataset.get("source") or "")),
        "read from": without_secrets(str(dataset.get("path"))),
    }
    return tables.facts("The data", found)


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def machine(subject: Subject) -> str:
    about = subject.environment
    engine = about.get("engine")
    stage = about.get("zero_stage")
    git = about.get("git", {})
    found = {
        "hosts": ", ".join(about.get("hosts", filter(None, [about.get("host")]))),
        "platform": about.get("platform"),
        "device": about.get("device"),
        "CPU cores": about.get("cpus"),
        "ranks": about.get("ranks", about.get("world_size")),
        "engine": engine and (f"{engine}, ZeRO stage {stage}" if stage is not None else engine),
        "precision": subject.cfg.engine.precision,
        "training time": duration(wall_s(subject.run)),
        "Python": about.get("python"),
        **about.get("packages", {}),
        "git commit": git.get("commit"),
        "code": {True: "changed beyond the commit", False: "as committed"}.get(git.get("dirty", "unknown")),
    }
    return tables.facts("Machine and versions", found)


def configuration(subject: Subject) -> str:
    parts = "".join(f"<pre>{escape(text)}</pre>" for text in resolved(subject.cfg).values())
    return f'<div class="configuration">{parts}</div>'


def commands(subject: Subject) -> str:
    run, git = subject.run, subject.environment.get("git", {})
    folder = shlex.quote(run.source)
    dirty = (
        " # and apply git.diff of the run folder: the code was changed"
        if subject.code_changed
        else " # the code was changed beyond it"
        if git.get("dirty")
        else ""
    )
    checkout = [f"git checkout {git['commit']}{dirty}"] if git.get("commit") else []
    again = [
        *checkout,
        f"attvae train {folder}/config.yaml --out runs/again",
        "attvae evaluate runs/again",
        "attvae export runs/again --out exports/again",
        "attvae report runs/again",
    ]
    started = "".join(f"{escape(without_secrets(command))}\n" for command in subject.commands)
    parts = [f"<p>It was started with</p><pre>{started}</pre>"] if started else []
    parts.append(
        "<p>and the following gives it again, from the same data and config.yaml in the run folder, which is the "
        "configuration above. The number of ranks and workers changes the speed, not the order of the data or the "
        "noise.</p>"
        f"<pre>{escape(chr(10).join(again))}</pre>"
    )
    return "".join(parts)
