"""What the report reads of the stages' JSON files, by the contract of the numbers.

A number that does not exist is None. NaN and infinity are refused here, so nothing behind looks for them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """What the report reads of a JSON file; keys beyond that are other readers' business."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Percentiles(Part):
    mean: float | None = None
    p50: float | None = None
    p99: float | None = None


class Pass(Part):
    repeat: int
    wall_time_s: float
    num_output_tokens: int


class Probe(Part):
    memory_bandwidth_gb_per_s: float | None = None
    matmul_tflop_per_s: dict[str, float | None] = {}


class Probes(Part):
    before: Probe | None = None
    after: Probe | None = None


class SpeculationMetrics(Part):
    num_speculative_tokens: int | None = None
    tree_nodes: int | None = None
    tree_depth: int | None = None
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    mean_acceptance_length: float | None = None
    draft_efficiency: float | None = None
    acceptance_rate_per_position: dict[int, float | None] = {}
    off_chain_accepted_tokens: int | None = None


class Figures(Part):
    """What the passes at one temperature gave."""

    num_output_tokens: int
    time_per_token_ms: float | None = None
    throughput_tokens_per_s: float | None = None
    roofline_share: float | None = None
    ttft_ms: Percentiles = Percentiles()
    tpot_ms: Percentiles = Percentiles()
    e2e_ms: Percentiles = Percentiles()
    speculation: SpeculationMetrics | None = None
    step_ms: dict[str, float | None] | None = None
    passes: tuple[Pass, ...] = ()


class Timing(Part):
    """Tokens and the wall time they took."""

    num_output_tokens: int
    wall_time_s: float
    time_per_token_ms: float | None = None


class Resumed(Part):
    """Of a run that died and went on: parts measured, and how many of them before it died."""

    pieces: int
    from_journal: int


class Metrics(Figures):
    """metrics.json of one arm, by the contract of the numbers; the figures are of the first temperature."""

    arm: str
    key: str
    device: str
    dtype: str
    dataset_source: str
    num_prompts: int
    repeats: int
    max_num_seqs: int
    temperature: float
    at_temperature: dict[float, Figures] = {}
    control: Timing | None = None  # an undrafted pass in the arm's own engine, at its end
    probe: Probes | None = None
    measured_at: str | None = None  # when it began
    finished_at: str | None = None
    host: str | None = None
    resumed: Resumed | None = None
    vllm_version: str | None = None
    prompt_format: str | None = None


class InterleavedMetrics(Part):
    """results/interleaved/<key>/metrics.json."""

    asked: bool = True
    reason: str | None = None
    temperature: float | None = None
    modes: dict[str, Timing] = {}


class PeerMetrics(Part):
    """results/peer_transformers/metrics.json."""

    asked: bool = True
    reason: str | None = None
    transformers_version: str | None = None
    same_output: float | None = None
    plain: Timing | None = None
    assisted: Timing | None = None


class ModelFacts(Part):
    reference: str
    revision: str | None = None
    path: str | None = None
    weight_bytes: int | None = None
    pass_bytes: int | None = None  # read by one forward pass
    num_parameters: int | None = None


class Environment(Part):
    device: str
    device_name: str | None = None
    device_count: int | None = None
    cpu_model: str | None = None
    cpu_count: int | None = None
    memory_gib: float | None = None
    versions: dict[str, str | None] = {}
    platform: str | None = None
