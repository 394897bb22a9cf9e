"""The paper as pure functions: tensors and velocity fields in, tensors out.

Knows torch and `nopair.types`. Refuses to know models, tokens, files, devices, optimisers and where randomness comes
from. Everything takes any batch size, and a sample's result does not depend on the others in its batch.

| Equation (docs/method.md)            | Function               | File         |
|--------------------------------------|------------------------|--------------|
| 1  noising                           | `interpolate`          | flow.py      |
| 2  velocity                          | `velocity_target`      |              |
| 3  clean estimate                    | `to_x0`                |              |
| 4  guidance                          | `guided`               |              |
| 5  time shift                        | `shift_time`           |              |
| 6  schedule                          | `levels`               |              |
| 7  few-step generation               | `rollout`              | rollout.py   |
| 8  unrolled generator (training)     | `training_levels`      |              |
| 9  sampler (everything else)         | `sampler_levels`       |              |
| 10 log-odds of the right answer      | `right_minus_wrong`    | verdict.py   |
| 11 judge loss                        | `judge_loss`           |              |
| 12 full-vocabulary ablation          | `full_vocabulary_loss` |              |
| 13 temperature ramp                  | `ramp`                 |              |
| 14 flow matching (warm-up, fake)     | `flow_matching_loss`, `denoising_loss` | matching.py |
| 15 times of the score queries        | `query_times`          |              |
| 16 score gap                         | `score_gap`, `gap_at`  |              |
| 17 normaliser                        | `per_sample`, `per_pixel` |           |
| 18 surrogate                         | `surrogate_loss`       |              |
| 19 DMD                               | `dmd_loss`             |              |
| 20 decoupled DMD (in no recipe)      | `decoupled_dmd_loss`   |              |
| 32 redrawing (option)                | `redrawn`, `redraw_loss` |            |
| 21 do-nothing, preservation          | `reference_loss`, `does_nothing`, `preservation_loss` | objective.py |
| 22 places to keep (option)           | `first_sight`, `without_edit` |       |
| 23 total                             | `student_losses`       |              |
| 24 reward (baseline, from here on)   | `judge_reward`         | grpo.py      |
| 25 re-noising as a policy            | `renoise_move`         |              |
| 26 SDE as a policy                   | `sde_move`             |              |
| 27 log-probability                   | `log_prob`             |              |
| 28 rollout of a policy               | `policy_rollout`       |              |
| 29 advantages in groups              | `advantages`, `has_spread` |          |
| 30 clipped surrogate                 | `clipped_surrogate`    |              |
| 31 divergence from the start         | `policy_kl`            |              |
"""

from nopair.method.flow import guided, interpolate, levels, shift_time, to_x0, velocity_target
from nopair.method.grpo import (
    Gaussian,
    Move,
    Trajectory,
    advantages,
    clipped_surrogate,
    has_spread,
    judge_reward,
    log_prob,
    policy_kl,
    policy_rollout,
    renoise_move,
    sde_move,
)
from nopair.method.matching import (
    Normaliser,
    decoupled_dmd_loss,
    denoising_loss,
    dmd_loss,
    flow_matching_loss,
    gap_at,
    per_pixel,
    per_sample,
    query_times,
    redraw_loss,
    redrawn,
    score_gap,
    surrogate_loss,
)
from nopair.method.objective import (
    StudentLosses,
    Weights,
    does_nothing,
    first_sight,
    preservation_loss,
    reference_loss,
    student_losses,
    without_edit,
)
from nopair.method.rollout import rollout, sampler_levels, training_levels
from nopair.method.verdict import full_vocabulary_loss, judge_loss, ramp, right_minus_wrong

__all__ = [
    "Gaussian", "Move", "Normaliser", "StudentLosses", "Trajectory", "Weights", "advantages", "clipped_surrogate",
    "decoupled_dmd_loss", "denoising_loss", "dmd_loss", "does_nothing", "first_sight", "flow_matching_loss",
    "full_vocabulary_loss", "gap_at", "guided", "has_spread", "interpolate", "judge_loss", "judge_reward", "levels",
    "log_prob", "per_pixel", "per_sample", "policy_kl", "policy_rollout", "preservation_loss", "query_times", "ramp",
    "redraw_loss", "redrawn", "reference_loss", "renoise_move", "right_minus_wrong", "rollout", "sampler_levels",
    "score_gap", "sde_move", "shift_time", "student_losses", "surrogate_loss", "to_x0", "training_levels",
    "velocity_target", "without_edit",
]  # fmt: skip
