"""How it was measured: device, batch and n for every figure, and the list that closes the report."""

from __future__ import annotations

from stages.reporting.analysis import Analysis
from stages.reporting.provenance import provenance
from stages.reporting.schema import ModelFacts


def context_of(analysis: Analysis) -> str:
    """Device, batch and n: what every figure must say."""
    params = analysis.run.params
    batches = ", ".join(map(str, analysis.batches))
    prompts = counted(params.dataset.num_prompts, "prompt")
    repeats = counted(params.measure.repeats, "repeat")
    return f"{device_of(analysis)}, {params.engine.dtype}, batch {batches}, n = {prompts} × {repeats}."


def counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def device_of(analysis: Analysis) -> str:
    environment = analysis.run.environment
    name = environment.device_name or environment.cpu_model or environment.device
    count = environment.device_count or 1
    return f"{count} × {name}" if count > 1 else name


def sources_of(analysis: Analysis) -> list[str]:
    return sorted({arm.metrics.dataset_source for arm in analysis.run.arms.values()})


def facts(analysis: Analysis) -> list[tuple[str, str]]:
    """How it was measured: name and value."""
    run, params = analysis.run, analysis.run.params
    environment, machine = run.environment, analysis.machine
    device = [device_of(analysis), f"{environment.cpu_count or '?'} CPU cores"]
    device += [f"{environment.memory_gib:.0f} GiB"] if environment.memory_gib else []
    device += [environment.platform] if environment.platform else []
    versions = [f"{name} {version}" for name, version in environment.versions.items() if version]
    questions = f"{params.dataset.num_prompts} of {', '.join(sources_of(analysis))}"
    warmup = counted(params.measure.warmup_prompts, "warm-up prompt")
    arms = f"choosing the best of {len(analysis.compared)} arms is not corrected for"
    known = [
        ("Machine", "; ".join(device)),
        ("Memory bandwidth", _fastest(machine.bandwidth_gb_per_s, "{:.1f} GB/s")),
        ("Matmul rate", _fastest(machine.matmul_tflop_per_s, "{:.3g} TFLOP/s, " + params.engine.dtype)),
        ("Versions", ", ".join(versions)),
        ("Target", _model(run.models["target"])),
        ("Draft", _model(run.models["draft"])),
        ("Questions", f"{questions}; prompt format {params.dataset.prompt_format}"),
        ("Sampling", f"{_sampling(analysis)}; up to {counted(params.sampling.max_tokens, 'token')}"),
        ("Clock", f"{warmup} outside it, then {counted(params.measure.repeats, 'repeat')}"),
        (
            "Interval",
            f"percentile bootstrap over prompts, paired, {analysis.bootstrap.resamples:,} resamples, level "
            f"expanded for few prompts, seed {analysis.bootstrap.seed}"
            + ("; joined with Student's t over engines" if analysis.drift else "")
            + f"; {arms}",
        ),
    ]
    return [*known, *provenance(run)]


def _fastest(value: float | None, form: str) -> str:
    return f"{form.format(value)}, the fastest probe of the run" if value else "not measured"


def _sampling(analysis: Analysis) -> str:
    sampling = analysis.run.params.sampling
    kinds = [f"temperature {one.temperature:g}" if one.sampled else "greedy" for one in analysis.every]
    seed = f" (seed {sampling.seed}, {analysis.run.params.speculation.draft_sampling} drafts)"
    return ", then ".join(kinds) + (seed if any(one.sampled for one in analysis.every) else "")


def _model(model: ModelFacts) -> str:
    size = f", {model.weight_bytes / 1e6:,.0f} MB of weights" if model.weight_bytes else ""
    return f"{model.reference}{f' ({model.revision})' if model.revision else ''}{size}"
