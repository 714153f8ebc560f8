"""The answer of `modelctl fit` for people."""

from __future__ import annotations

from .fit_result import Fit, Need
from .output import fields, table

_VERDICTS = {
    True: "It fits.",
    False: "It does not fit.",
    None: "Whether it fits is not known: nobody tells what is free.",
}


def lines(fit: Fit) -> list[str]:
    """All of it but the notes."""
    shape, config = fit.shape, fit.config
    engine = fit.engine.server if fit.engine and fit.by_engine else None
    heading = ["MiB", "weights", "KV", "compute", "other", "total", "free", ""]
    text = [
        *fields(
            [
                ("model", f"{fit.place.name} ({shape.architecture}, {shape.layer_count} layers)"),
                (
                    "asked for",
                    f"{config.slots} x {config.context_tokens} tokens, KV cache "
                    f"{config.cache_type_k}",
                ),
                ("counted by", engine or "formulas"),
            ]
        ),
        "",
        *table(
            heading,
            [_row(need) for need in fit.needs],
            right="weights,KV,compute,other,total,free",
        ),
        "",
    ]
    if fit.by_engine and fit.formulas and fit.formulas != fit.needs:
        differences = [
            f"{ours.device.name} {theirs.total_mib - ours.total_mib:+d} MiB"
            for ours, theirs in zip(fit.formulas, fit.needs, strict=True)
        ]
        text.append(f"The engine's numbers against the formulas': {', '.join(differences)}.")
    return [*text, _VERDICTS[fit.fits], *fit.ways_out]


def _row(need: Need) -> list[object]:
    verdict = {True: "fits", False: "DOES NOT FIT", None: "?"}[need.fits]
    numbers = (need.weights_mib, need.kv_mib, need.compute_mib, need.device.overhead_mib)
    name = f"{need.device.name} ({need.device.title})"
    return [name, *numbers, need.total_mib, need.device.free_mib, verdict]
