"""The studies there are."""

from collections.abc import Mapping
from typing import Final

from nopair.evaluation.studies.design import Study, Variant

_STRONG: Final = "npedit.judge_weight=0.3"
"""Ten times the recipe's."""

OBJECTIVE: Final = Study(
    name="objective",
    question="Which part of the objective does what?",
    claim="Paper: all together is best; matching alone loses the edits; the judge alone loses realism, or diverges; "
    "without the question about identity the rest is not preserved; over the whole vocabulary, the loss is a little "
    "worse.",
    variants=(
        Variant("full"),
        Variant("dmd-only", ("npedit.judge_weight=0.0",)),
        Variant("judge-only", ("npedit.dmd_weight=0.0",)),
        Variant("no-identity", ("npedit.questions=[edit]",)),
        Variant("full-vocab-ce", ("npedit.judge_loss=vocabulary",)),
    ),
)

UNROLL: Final = Study(
    name="unroll",
    question="How many calls of the student should make a training sample?",
    claim="Paper: two are enough; one is clearly worse, all of the sampler's cost more and bring nothing.",
    variants=(
        Variant("two-step", (), (1, 2, 4, 8)),
        Variant("one-step", ("npedit.unroll=one-step",), (1, 2, 4, 8)),
        Variant("full", ("npedit.unroll=full",), (1, 2, 4, 8)),
    ),
)

DATA: Final = Study(
    name="data",
    question="How many different references and instructions are needed?",
    claim="Paper: more data help, at every step from 1 % to all of them.",
    variants=(
        Variant("100 %"),
        Variant("50 %", ("data.limit=480",)),
        Variant("10 %", ("data.limit=96",)),
        Variant("1 %", ("data.limit=10",)),
    ),
)

SUPERVISION: Final = Study(
    name="supervision",
    question="Pairs, rewards, or a judge's gradient?",
    claim="Paper: after supervised fine-tuning on few pairs, NP-Edit is well ahead of Flow-GRPO with the same judge, "
    "and it needs no pairs.",
    overrides=(
        *("sft.batch=8", "sft.optimiser=muon", "sft.lr=1.2e-3", "sft.betas=[0.5, 0.95]", "sft.ema=0.95"),
        *("sft.lr_warmup_steps=10", "sft.lr_final_fraction=0.05", "sft.pairs=100"),
        *("grpo.batch=1", "grpo.group=8", "grpo.lr=2e-4", "grpo.ema=0.95", "grpo.lr_warmup_steps=5"),
    ),
    variants=(
        Variant("NP-Edit"),
        Variant("SFT", ("sft.steps=120", "npedit.steps=0")),
        # A step of NP-Edit takes five times the processor time of one of this (benchmarks/phases.py --samples 8).
        Variant("SFT, as long", ("sft.steps=600", "npedit.steps=0")),
        Variant("SFT, then NP-Edit", ("sft.steps=60", "npedit.steps=60")),
        Variant("SFT, then Flow-GRPO", ("sft.steps=60", "grpo.steps=60", "npedit.steps=0")),
        # A step of Flow-GRPO takes 0.77 of NP-Edit's time at as many samples (benchmarks/phases.py).
        Variant("SFT, then Flow-GRPO, as long", ("sft.steps=60", "grpo.steps=78", "npedit.steps=0")),
    ),
)

WARMUP: Final = Study(
    name="warmup",
    question="How long should the student learn to copy before it learns to edit?",
    claim="Paper: it needs to; how long is not said.",
    variants=(
        Variant("20 steps"),
        Variant("none", ("warmup.steps=0",)),
        Variant("60 steps", ("warmup.steps=60",)),
    ),
)

_ESTIMATE: Final = (
    *("warmup.target=estimate", "warmup.steps=150", "warmup.lr=1e-3"),
    *("npedit.preserve_time={default: 0.75, background: 0.5}", "npedit.preserve_width=0.24"),
)

_REDRAWN: Final = (
    *("npedit.redraw_weight=2.0", "npedit.redraw_context=unedited"),
    *("npedit.redraw_low=0.4", "npedit.redraw_high=0.7"),
)

FIRST_SIGHT: Final = Study(
    name="first-sight",
    question="What does a student gain that begins from the teacher's estimates of edits, and whose samples it "
    "redraws?",
    claim="Paper: the student learns to copy first, and all parts of the objective together are best. Both additions "
    "are our own.",
    variants=(
        Variant("copies, full"),
        Variant("estimates, no more", (*_ESTIMATE, "npedit.steps=0")),
        Variant("estimates, full", _ESTIMATE),
        Variant("estimates, dmd-only", (*_ESTIMATE, "npedit.judge_weight=0.0")),
        Variant("estimates, full, redrawn", (*_ESTIMATE, *_REDRAWN)),
    ),
)

FAKE_STEPS: Final = Study(
    name="fake-steps",
    question="How many steps should the fake score take for each of the student's, and on which samples?",
    claim="Paper: several (N_aux). DMD2 and the authors' code: 5, the latter on fresh samples.",
    variants=(
        Variant("2"),
        Variant("1", ("npedit.fake_steps=1",)),
        Variant("5", ("npedit.fake_steps=5",)),
        Variant("2, on fresh samples", ("npedit.fake_samples=fresh",)),
        Variant("5, on fresh samples", ("npedit.fake_steps=5", "npedit.fake_samples=fresh")),
    ),
)

PRESERVATION: Final = Study(
    name="preservation",
    question="What does a loss on the distance to the reference gain in preservation, and cost in success?",
    claim="Authors' site: it helps somewhat with what drifts, and costs edits. Asking the teacher where is our own.",
    variants=(
        Variant("none"),
        Variant("0.1", ("npedit.preservation_weight=0.1",)),
        Variant("0.5", ("npedit.preservation_weight=0.5",)),
        Variant("0.5, where no edit is", ("npedit.preservation_weight=0.5", "npedit.preserve=unedited")),
        Variant("4, where no edit is", ("npedit.preservation_weight=4", "npedit.preserve=unedited")),
    ),
)

_UNGUIDED: Final = "npedit.guidance={default: 1.0}"
_HOLE: Final = (
    "npedit.context=unedited",
    "npedit.preserve_time={default: 0.75, background: 0.5}",
    "npedit.preserve_width=0.24",
)

CONTEXT: Final = Study(
    name="context",
    question="What does a teacher gain that sees what is to stay of the reference?",
    claim="Paper: the teacher sees the edited caption alone. Showing it the reference with a hole is our own.",
    variants=(
        Variant("caption alone"),
        Variant("caption alone, no guidance", (_UNGUIDED,)),
        Variant("and what stays", _HOLE),
        Variant("and what stays, no guidance", (*_HOLE, _UNGUIDED)),
    ),
)

MISTAKEN: Final = Study(
    name="mistaken-judge",
    question="What becomes of an editor whose judge is wrong about one kind of edit?",
    claim="Paper: nothing is said; the judge bounds what is learnt.",
    variants=(
        Variant("right"),
        Variant("wrong about recolour", ("npedit.inverted=[recolour]",)),
        Variant("wrong about recolour, judge x 10", ("npedit.inverted=[recolour]", _STRONG)),
        Variant("right, judge x 10", (_STRONG,)),
    ),
)

CAPTIONS: Final = Study(
    name="captions",
    question="Is matching alone as good as the whole because captions here say all there is to know?",
    claim="Paper: matching alone loses the edits. It trains on photos, whose captions hardly say all, or where.",
    variants=(
        Variant("complete, full"),
        Variant("complete, dmd-only", ("npedit.judge_weight=0.0",)),
        Variant("without places, full", ("data.captions=placeless",)),
        Variant("without places, dmd-only", ("data.captions=placeless", "npedit.judge_weight=0.0")),
    ),
)

_REDRAWN_SCENE: Final = (
    *("npedit.redraw_weight=2.0", "npedit.redraw_context=unedited", "npedit.redraw_low=0.5", "npedit.redraw_high=0.8"),
    *("npedit.preserve_time={default: 0.75}", "npedit.preserve_width=0.24"),
)

FREE_FORM: Final = Study(
    name="free-form",
    question="Can a subject be put into a new scene, and what are the two questions about it worth?",
    claim="Paper: at 8 steps, better than other few-step customisation; of questions left out, nothing is said.",
    overrides=(
        *("data.categories=[free-form]", "data.nothing_share=0.0", "sampling.steps=8"),
        # From the base, no run of this length draws the second thing (docs/log.md).
        *("base.student=tiny:editor", "warmup.steps=0", "npedit.steps=220", "npedit.lr=8e-4", "npedit.fake_lr=8e-4"),
        *("judge.path=tiny:judge-2",),  # the first one has never been asked about subjects in new scenes
        *("npedit.guidance={default: 2.0}", 'npedit.negative_prompt=""', "npedit.reference_weight=0.0"),
        "npedit.judge_weight=0.01",
    ),
    variants=(
        Variant("full", (), (4, 8)),
        Variant("no-identity", ("npedit.questions=[edit]",), (4, 8)),
        Variant("dmd-only", ("npedit.judge_weight=0.0",), (4, 8)),
        Variant("full, redrawn", _REDRAWN_SCENE, (4, 8)),
    ),
    categories=("free-form",),
    edit_factor=3,
    scorer="tiny:judge-2",
)

JUDGE_SCALE: Final = Study(
    name="judge-scale",
    question="How good a judge is needed?",
    claim="Authors' site: of one family, a larger judge makes a better editor (LLaVA-OneVision of 0.5B: overall 4.59, "
    "of 7B: 6.10); size is not all, as that of 7B beats an InternVL of 14B (5.89).",
    variants=(
        Variant("128 wide"),
        Variant("128 wide, trained on", ("judge.path=tiny:judge-2",)),
        Variant("64 wide", ("judge.path=tiny:judge-64",)),
        Variant("32 wide", ("judge.path=tiny:judge-32",)),
    ),
    scorer="tiny:judge",
    audited=True,
)

ENSEMBLE: Final = Study(
    name="ensemble",
    question="Are two judges better than one of them, as a third sees it?",
    claim="Paper: not tried.",
    variants=(
        Variant("64 and 32", ("judge.path=tiny:judge-64", "ensemble=[{path: tiny:judge-32}]")),
        Variant("64 alone", ("judge.path=tiny:judge-64",)),
        Variant("32 alone", ("judge.path=tiny:judge-32",)),
        Variant("64 and 32, x 10", ("judge.path=tiny:judge-64", "ensemble=[{path: tiny:judge-32}]", _STRONG)),
        Variant("64 alone, x 10", ("judge.path=tiny:judge-64", _STRONG)),
    ),
    scorer="tiny:judge",
    audited=True,
)

STUDIES: Final[Mapping[str, Study]] = {
    study.name: study
    for study in (
        *(OBJECTIVE, CAPTIONS, SUPERVISION, UNROLL, DATA, JUDGE_SCALE, ENSEMBLE),
        *(WARMUP, FIRST_SIGHT, FAKE_STEPS, PRESERVATION, CONTEXT, MISTAKEN, FREE_FORM),
    )
}
"""By name, in the order in which `all` does them."""
