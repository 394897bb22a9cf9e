"""The composition root: a recipe in, a trained editor out. The only place that knows all the parts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.compiler.config
from diffusers.models.modeling_utils import ModelMixin
from rich.console import Console
from torch import Tensor, nn

from nopair.backbones.adapters import check_adapter, save_adapter
from nopair.backbones.base import Backbone, StoredBackbone
from nopair.backbones.folder import load_model
from nopair.backbones.load import load_backbone, require_same_dialect
from nopair.backbones.roles import FullRoles, LoraRoles, Roles
from nopair.config import BaseConfig, JudgeConfig, Recipe
from nopair.config_data import PhotoDataConfig, WorldDataConfig
from nopair.data.broken import BROKEN, prepare
from nopair.data.files import check_folder
from nopair.data.loader import Limited, OnDevice, Source
from nopair.data.order import Sizes
from nopair.data.photos import PhotoSource
from nopair.data.tables import open_table
from nopair.device import enough_memory
from nopair.editor import SETTINGS_FILE, Editor, Settings, is_editor, read_settings
from nopair.errors import ModelError
from nopair.judges.base import Judge
from nopair.judges.ensemble import JudgeEnsemble
from nopair.judges.folder import named
from nopair.judges.load import load_judge
from nopair.judges.offload import HostWeights, OffloadedJudge
from nopair.judges.questions import VERSION
from nopair.method.flow import levels
from nopair.precision import refuse_bits_off_card
from nopair.training.ahead import Ahead
from nopair.training.cache import CachedBackbone, Store, fill
from nopair.training.grpo import GrpoPhase
from nopair.training.loop import RESUME, preflight, run_phases
from nopair.training.metrics import say
from nopair.training.models import keep_models, models_of, require_same_models
from nopair.training.parallel import ALONE, Ranks, joined
from nopair.training.parts import Parts, require_optimiser
from nopair.training.phase import StudentPhase
from nopair.training.phases import EditPhase, WarmupPhase
from nopair.training.sampling import Sampler
from nopair.training.sft import SftPhase
from nopair.types import EditBatch
from nopair.weights import resolve
from nopair.world.pairs import PairSource
from nopair.world.records import WorldSource
from nopair.world.scenes import CAPTIONS, SIZE

EDITOR: Final = "editor"
"""Folder of the trained editor within a run's folder."""
ADAPTER: Final = "adapter"
"""Folder of its adapter alone, beside it, if that is how it was trained."""
LESS: Final = "nopair plan RECIPE tells what takes it and which switch saves how much, docs/memory.md what each costs"


@dataclass(frozen=True, eq=False)
class Training:
    """Everything a run is made of. `size` is (height, width) in pixels; `phases` are in the order in which they run."""

    recipe: Recipe
    backbone: StoredBackbone
    size: tuple[int, int]
    judge: Judge
    roles: Roles
    warmup: WarmupPhase
    npedit: EditPhase
    phases: tuple[StudentPhase, ...]

    def editor(self) -> Editor:
        """The averaged student of the phase that is open, which is the last one trained; before any, the student."""
        return self._at_hand(self._editor(self._weights(), taught_by(self.recipe)))

    def warm_editor(self) -> Editor:
        """The student as it is now; after warm-up it copies."""
        return self._at_hand(self._editor(self._student(), taught_before(self.recipe)))

    def save(self, folder: Path) -> None:
        """Write the editor and, of a student that is an adapter, that alone: `EDITOR` and `ADAPTER` within a folder.

        Raises:
            OutputError: they cannot be written.
        """
        if self.recipe.base.roles == "lora":
            lora = self.recipe.base.lora
            save_adapter(self._weights(), lora.alpha / lora.rank, folder / ADAPTER)
        self._editor(self._weights(), taught_by(self.recipe)).save(folder / EDITOR)

    def _at_hand(self, editor: Editor) -> Editor:
        """The editor on one device: the base's, where it shares that one's other parts, or else in host memory."""
        if not self._shares_parts:
            return editor
        device = next(self.backbone.transformer.parameters()).device
        return dataclasses.replace(editor, backbone=editor.backbone.to(device))

    @property
    def _shares_parts(self) -> bool:
        """Whether an editor has the base's own autoencoder and text encoder."""
        return self.recipe.base.roles == "full" and self.recipe.data.cache is None

    def _weights(self) -> Mapping[str, Tensor]:
        opened = [phase.weights() for phase in self.phases if phase.is_open]
        return opened[-1] if opened else self._student()

    def _student(self) -> Mapping[str, Tensor]:
        """As it is now."""
        return {name: value.detach() for name, value in self.roles.trainable("student").items()}

    def _editor(self, weights: Mapping[str, Tensor], judges: tuple[str, ...]) -> Editor:
        height, width = self.size
        settings = Settings(
            steps=self.recipe.sampling.steps,
            shift=_shift(self.recipe, self.backbone, self.size),
            height=height,
            width=width,
            questions=VERSION,
            judges=judges,
        )
        return Editor(self._exported(weights), settings)

    def _exported(self, weights: Mapping[str, Tensor]) -> StoredBackbone:
        """The base with the student's transformer.

        An adapter is merged into the base as it is on disk, read again into host memory: the GPU has no room for a
        second one, quantised weights have lost what the adapter is to be added to, and the text encoder may be gone.
        """
        recipe = self.recipe
        if self._shares_parts:
            return self.backbone.with_transformer(self.roles.export("student", weights))
        backbone = load_backbone(resolve(recipe.base.path), getattr(torch, recipe.base.dtype))
        if recipe.base.roles == "full":
            return backbone.with_transformer(self.roles.export("student", weights))
        return backbone.with_transformer(_lora(recipe, backbone).dissolve("student", weights))


def compose(recipe: Recipe, device: torch.device | str = "cpu", ranks: Ranks = ALONE) -> Training:
    """Load the base and the judges a recipe names and put the phases together, all on one device.

    Raises:
        ModelError, JudgeError: a model cannot be used.
        DataError: the photos cannot.
        ConfigError: the base cannot be trained as the recipe says, or a batch cannot be shared by the ranks.
        MissingExtraError: an optimiser is not installed.
    """
    named = {"warmup": recipe.warmup, "sft": recipe.sft, "grpo": recipe.grpo, "npedit": recipe.npedit}
    for phase, config in named.items():
        if config.steps:
            ranks.require_shares(phase, config.batch, config.accumulate)
            require_optimiser(config.optimiser)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    source, shown, sizes, state = _sources(recipe, torch.device(device), ranks)
    size = sizes[0]
    base = recipe.base
    backbone = _base(base, device)
    for one in sizes:  # a size that the base cannot take is told before anything else is loaded
        backbone.latent_shape(*one)
    if base.checkpointing:
        backbone.checkpoint()
    examples = shown.batch(range(recipe.logging.sample_scenes))
    trained = backbone if recipe.data.cache is None else _cached(recipe, backbone, source, examples, ranks, state)
    judge = _judges(recipe.judges, device)
    bystander = None if recipe.bystander is None else _judges((recipe.bystander,), device)
    roles = _roles(recipe, trained)
    taught_before(recipe)  # unreadable settings are told before training, not when the editor is written
    if recipe.base.student is not None:
        student = resolve(recipe.base.student)
        require_same_dialect(resolve(recipe.base.path), student)
        _start_from(roles.student.transformer, student / "transformer")
    if recipe.base.compile:
        _compile(roles)
    shift = _shift(recipe, backbone, size)
    schedule = levels(recipe.sampling.steps, shift)
    sampler = Sampler(roles.student, examples, schedule, recipe.seed)
    parts = Parts(recipe, roles, judge, bystander, source, shift, schedule, sampler, ranks)
    warmup, npedit = WarmupPhase(parts), EditPhase(parts)
    phases = (warmup, *_baselines(parts, torch.device(device)), npedit)
    return Training(recipe, backbone, size, judge, roles, warmup, npedit, phases)


def compose_teacher(recipe: Recipe, device: torch.device | str, count: int) -> tuple[Backbone, list[EditBatch]]:
    """The recipe's base alone, and the first `count` records of its sample grids, one by one. Writes to the recipe's
    output as `compose` does.

    Raises:
        ModelError: the base cannot be used.
        DataError: the photos cannot.
    """
    _, shown, sizes, _ = _sources(recipe, torch.device(device), ALONE)
    backbone = _base(recipe.base, device)
    backbone.latent_shape(*sizes[0])
    return backbone, [shown.batch([index]) for index in range(count)]


def _baselines(parts: Parts, device: torch.device) -> list[StudentPhase]:
    """Those that the recipe asks for; the others are spared their averages."""
    recipe, found = parts.recipe, list[StudentPhase]()
    if recipe.sft.steps:
        assert isinstance(recipe.data, WorldDataConfig), "a recipe asks for pairs only where there are any"
        data = recipe.data
        chosen = {} if data.categories is None else {"categories": data.categories}
        pairs = PairSource(data.seed, recipe.sft.pairs, device, nothing_share=data.nothing_share, **chosen)
        found.append(SftPhase(parts, pairs))
    if recipe.grpo.steps:
        found.append(GrpoPhase(parts))
    return found


def _sources(recipe: Recipe, device: torch.device, ranks: Ranks) -> tuple[Source, Source, Sizes, str | None]:
    """Records to train on, records to show in sample grids, all (height, width), of which those shown have the first,
    and, for photos that are to be encoded before, `PhotoSource.state`."""
    data = recipe.data
    if isinstance(data, PhotoDataConfig):
        table = open_table(Path(data.path))
        phases = [phase for phase in (recipe.warmup, recipe.grpo, recipe.npedit) if phase.steps]
        group = math.lcm(*(phase.batch for phase in phases))  # a batch of any phase then has one size
        broken = Path(recipe.output) / BROKEN
        if ranks.writes:
            prepare(broken, table, resumed=any(Path(recipe.output, "checkpoints").glob("checkpoint-*")))
        ranks.wait()
        settings = {"seed": data.seed, "nothing_share": data.nothing_share}
        settings |= {"max_broken": data.max_broken, "broken_file": broken}
        photos = PhotoSource.of(table, data.sizes, group=group, shares=data.shares, **settings)
        shown = PhotoSource.of(table, data.sizes[:1], group=1, **settings)
        ahead = Ahead(photos, phases, ranks, data.workers) if data.workers else photos
        state = None if data.cache is None else photos.state()
        return OnDevice(ahead, device), OnDevice(shown, device), data.sizes, state
    chosen: dict[str, Any] = {} if data.categories is None else {"categories": data.categories}
    chosen |= {"nothing_share": data.nothing_share, "describe": CAPTIONS[data.captions]}
    trained, shown = (WorldSource(data.seed, held_out=held_out, **chosen) for held_out in (False, True))
    limited = trained if data.limit is None else Limited(trained, data.limit)
    return OnDevice(limited, device), OnDevice(shown, device), ((SIZE, SIZE),), None


def _cached(
    recipe: Recipe, backbone: StoredBackbone, source: Source, examples: EditBatch, ranks: Ranks, state: str | None
) -> CachedBackbone:
    """Encode all that training will need, once for all runs on this base, and drop the text encoder."""
    assert recipe.data.cache is not None, "the caller looked"
    base = recipe.base
    store = Store.of(Path(recipe.data.cache), resolve(base.path), f"{base.dtype} {base.bits}")
    fill(store, backbone, recipe, source, examples, ranks, state)
    backbone.drop_text_encoder()
    return CachedBackbone(backbone, store)


def _base(config: BaseConfig, device: torch.device | str) -> StoredBackbone:
    refuse_bits_off_card(config.bits, device, "base.bits")
    return load_backbone(resolve(config.path), getattr(torch, config.dtype), config.bits).to(device)


def _judges(configs: Sequence[JudgeConfig], device: torch.device | str) -> Judge:
    """One judge, or several as one."""
    judges = [_judge(one, device) for one in configs]
    return judges[0] if len(judges) == 1 else JudgeEnsemble(judges, [one.weight for one in configs])


def _judge(config: JudgeConfig, device: torch.device | str) -> Judge:
    refuse_bits_off_card(config.bits, device, "judge.bits")
    judge = load_judge(resolve(config.path), getattr(torch, config.dtype), config.bits)
    if config.checkpointing:
        judge.checkpoint()
    if not config.offload:
        return judge.to(device)
    weights = HostWeights(judge.model, device)
    return OffloadedJudge(judge.to(device), weights.here)


def taught_before(recipe: Recipe) -> tuple[str, ...]:
    """Names of the judges that the student was trained under before this run, as far as its folder tells.

    Raises:
        ModelError: the folder is missing, or is an editor's with unreadable settings.
    """
    student = recipe.base.student
    return () if student is None or not is_editor(folder := resolve(student)) else read_settings(folder).judges


def taught_by(recipe: Recipe) -> tuple[str, ...]:
    """The same, with the judges of this run, if one of its phases learns from them."""
    npedit = recipe.npedit
    asked = recipe.judges if (npedit.steps and npedit.judge_weight > 0) or recipe.grpo.steps else ()
    return tuple(dict.fromkeys([*taught_before(recipe), *(named(one.path) for one in asked)]))


def _shift(recipe: Recipe, backbone: Backbone, size: tuple[int, int]) -> float:
    """The recipe's, or the base's own."""
    return recipe.sampling.shift or backbone.shift_for(*size, recipe.sampling.steps)


def _roles(recipe: Recipe, backbone: Backbone) -> Roles:
    if recipe.base.roles == "full":
        return FullRoles.of(backbone)
    return _lora(recipe, backbone)


def _lora(recipe: Recipe, backbone: Backbone) -> LoraRoles:
    lora = recipe.base.lora
    return LoraRoles.of(backbone, lora.rank, lora.alpha, lora.targets, recipe.seed, lora.ranks)


def _start_from(transformer: nn.Module, folder: Path) -> None:
    """Give the student another transformer's weights, to train an editor on.

    Raises:
        ModelError: it cannot be read, or is not of the base's architecture.
    """
    assert isinstance(transformer, ModelMixin), "every adapter's transformer is a diffusers model"
    start = load_model(type(transformer), folder, transformer.dtype)
    try:
        transformer.load_state_dict(start.state_dict())
    except RuntimeError:
        raise ModelError(f"{folder}: does not fit the base; base.student needs an editor made from this base") from None


def _compile(roles: Roles) -> None:
    """Compile the blocks of each role's transformer, in place; the work is done at their first calls.

    All blocks share one function, which is compiled once for every kind of call: role, refiner or main layer, with
    or without reference and gradient. Past torch's default limit of 8 kinds, the rest would stay as they are.
    """
    torch.compiler.config.recompile_limit = 64
    for backbone in (roles.student, roles.teacher, roles.fake):
        transformer = backbone.transformer
        assert isinstance(transformer, ModelMixin), "every adapter's transformer is a diffusers model"
        transformer.compile_repeated_blocks()


def train(recipe: Recipe, *, resume: bool, device: str = "cpu", stopped: str = RESUME) -> None:
    """Run a recipe and write the editor to `<output>/editor`; `device` is as `choose_device` takes it, `stopped` as
    `run_phases` does.

    Under `torchrun`, this process trains together with the others that it started, and the first one writes.

    Raises:
        NopairError: see `nopair.errors`; Interrupted after a signal, with everything saved.
    """
    directory, start = Path(recipe.output), "latest" if resume else None
    _check_results(recipe, directory)
    preflight(recipe, directory, start)
    models = models_of(recipe)
    if resume:
        require_same_models(directory, models)
    with joined(device) as (ranks, place), enough_memory(LESS):
        console = Console(quiet=not ranks.writes)
        training = compose(recipe, place, ranks)
        if ranks.writes:
            keep_models(directory, models)
        run_phases(
            training.phases,
            recipe=recipe,
            directory=directory,
            resume=start,
            console=console,
            ranks=ranks,
            stopped=stopped,
        )
        if ranks.writes:
            training.save(directory)
            say(console, f"the editor is in {directory / EDITOR}")
        ranks.wait()


def _check_results(recipe: Recipe, directory: Path) -> None:
    """Find out before training what `Training.save` could not write after it. Raises OutputError."""
    check_folder(directory / EDITOR, SETTINGS_FILE)
    if recipe.base.roles == "lora":
        check_adapter(directory / ADAPTER)
