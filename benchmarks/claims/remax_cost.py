"""ReMax needs no critic: less memory and less time for as many samples."""

from benchmarks.claims.lab import Effect, Lab

TEXT = "ReMax takes less memory and time than PPO for as many samples"
SOURCE = "Li et al. 2023"
MATTERS, UNIT = 0.1, "of PPO's time saved"


def stages(lab: Lab) -> list:
    return [lab.policy("remax"), lab.policy("ppo")]


def measure(lab: Lab) -> Effect:
    """CPU time and peak memory of the two stages; one run each, so the interval is a point."""
    one, two = (lab.record(lab.policies[name]) for name in ("remax", "ppo"))
    saved = 1 - one["cpu_seconds"] / two["cpu_seconds"]
    note = (
        f"CPU {one['cpu_seconds']:.0f} s against {two['cpu_seconds']:.0f} s, peak {one['peak_bytes'] / 1e6:.0f} MB "
        f"against {two['peak_bytes'] / 1e6:.0f} MB; at this size the models are a small part of the memory"
    )
    return Effect(saved, saved, saved, 1, note)
