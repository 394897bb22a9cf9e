"""What to edit: one image, a folder of them, or a JSON Lines file.

No torch: a job that cannot work is told before a model is loaded.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nopair.data.files import IMAGE_FORMATS, check_image, check_output, is_folder, make_folder
from nopair.errors import ImageError, InstructionError, NopairError, OutputError
from nopair.settings import Seed


@dataclass(frozen=True, slots=True)
class Job:
    """One edit to make. `where` names the line that asked for it, or is empty."""

    image: Path
    instruction: str
    output: Path
    seed: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """An edit that cannot be made, and why."""

    where: str
    error: NopairError

    def __str__(self) -> str:
        return f"{self.where}: {self.error}" if self.where else str(self.error)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    image: str
    instruction: str
    output: str
    seed: Seed | None = None


def require_instruction(instruction: str) -> str:
    """The instruction, if it says anything.

    Raises:
        InstructionError: it is empty or only spaces, or no text.
    """
    if not instruction.strip():
        raise InstructionError('the instruction is empty; say what to change, such as "make the red circle blue"')
    if not _is_text(instruction):
        raise InstructionError(f"the instruction {instruction!r} holds what is no text; write it in UTF-8")
    return instruction


def read_jobs(source: Path, instruction: str | None, output: Path | None, seed: int) -> tuple[list[Job], list[Failure]]:
    """The edits that `nopair edit SOURCE [INSTRUCTION] -o OUTPUT` asks for; images are looked at, not opened.

    - `source` is an image: one job, and `output` is a file.
    - `source` is a folder: one job for each image right in it, by name; `output` is a folder, created if missing.
    - `source` ends in .jsonl: a job per line, `{"image", "instruction", "output", "seed"?}`. Images are relative to the
      job file; outputs to `output` if given, else to the job file.

    With a folder or a job file, single jobs that cannot work are returned as failures; all else raises.

    Raises:
        InstructionError: no instruction, one too many, or a job file that cannot be read or is empty.
        ImageError: there is no such source, or no image in the folder.
        OutputError: `output` is missing or cannot be written.
    """
    if source.suffix.lower() == ".jsonl" and not is_folder(source):
        if instruction is not None:
            raise InstructionError(f"{source}: each job has its own instruction; leave out {instruction!r}")
        return _from_lines(source, output, seed)
    if instruction is None:
        raise InstructionError(
            'no instruction; say what to change, such as: nopair edit photo.jpg "add a hat" -o new.jpg'
        )
    require_instruction(instruction)
    if output is None:
        raise OutputError("no place for the result; name one with -o")
    if is_folder(source):
        return _from_folder(source, instruction, output, seed)
    return [_checked(Job(source, instruction, output, seed))], []


def _from_folder(source: Path, instruction: str, output: Path, seed: int) -> tuple[list[Job], list[Failure]]:
    try:
        images = sorted(path for path in source.iterdir() if _is_image_name(path))
    except OSError as error:
        raise ImageError(f"{source}: cannot be read ({error.strerror})") from error
    if not images:
        raise ImageError(f"{source}: no image in this folder; its files should end in {', '.join(IMAGE_FORMATS)}")
    if output.resolve() == source.resolve():
        raise OutputError(f"{output}: is the folder of the photos, which would be replaced; choose another folder")
    make_folder(output)
    return _split(Job(image, instruction, output / image.name, seed) for image in images)


def left_out(source: Path) -> str:
    """Of a folder of photos: how many files right in it are none that nopair reads, and how they end. Hidden ones do
    not count. Empty where there are none.
    """
    inside = list(source.iterdir()) if is_folder(source) else []
    others = [path for path in inside if path.name[0] != "." and not _is_image_name(path) and path.is_file()]
    endings = ", ".join(sorted({path.suffix or path.name for path in others}))
    return f"left out {len(others)} files that do not end in {', '.join(IMAGE_FORMATS)}: {endings}" if others else ""


def _is_text(words: str) -> bool:
    """JSON can hold halves of characters, and so can an argument whose bytes are no UTF-8."""
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_image_name(path: Path) -> bool:
    """Hidden files are no images of the user's: macOS leaves such beside every photo."""
    return path.suffix.lower() in IMAGE_FORMATS and not path.name.startswith(".")


def _from_lines(source: Path, output: Path | None, seed: int) -> tuple[list[Job], list[Failure]]:
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InstructionError(f"{source}: no such job file; check the path") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InstructionError(
            f"{source}: cannot be read ({reason}); it should be UTF-8 text, a JSON object a line"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InstructionError(f"{source}: holds no jobs; write a JSON object a line")
    if output is not None:
        make_folder(output)
    outputs = output or source.parent
    parsed = (_parse(line, f"{source}, line {number}", source.parent, outputs, seed) for number, line in numbered)
    jobs, failures = _split(parsed)
    return _apart(jobs, failures)


def _apart(jobs: Sequence[Job], failures: list[Failure]) -> tuple[list[Job], list[Failure]]:
    """Jobs that can be done in any order, together or one by one."""
    unique: dict[Path, Job] = {}
    for job in jobs:
        if unique.setdefault(job.output.resolve(), job) is not job:
            wrong = OutputError(f"{job.output}: is the output of another job; name a new one")
            failures.append(Failure(job.where, wrong))
    apart: list[Job] = []
    for job in unique.values():
        if unique.get(job.image.resolve(), job) is job:
            apart.append(job)
        else:
            wrong = ImageError(f"{job.image}: is the output of another job; put this one into a file for later")
            failures.append(Failure(job.where, wrong))
    return apart, failures


def _parse(line: str, where: str, images: Path, outputs: Path, seed: int) -> Job | Failure:
    try:
        job = _Line.model_validate(json.loads(line))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        problems = f"{key}: {problem['msg'].lower()}" if key else "not a JSON object"
        return Failure(
            where, InstructionError(f'{problems}; a job has "image", "instruction", "output" and maybe "seed"')
        )
    except (ValueError, RecursionError) as error:
        return Failure(where, InstructionError(f"not JSON ({error})"))
    for name, path in (("image", job.image), ("output", job.output)):
        if not _is_text(path):
            return Failure(where, InstructionError(f"{name}: {path!r} holds what is no text; write it in UTF-8"))
    seed = seed if job.seed is None else job.seed
    return Job(images / job.image, job.instruction, outputs / job.output, seed, where)


def _split(found: Iterator[Job | Failure]) -> tuple[list[Job], list[Failure]]:
    jobs: list[Job] = []
    failures: list[Failure] = []
    for one in found:
        if isinstance(one, Failure):
            failures.append(one)
            continue
        try:
            jobs.append(_checked(one))
        except NopairError as error:
            failures.append(Failure(one.where, error))
    return jobs, failures


def _checked(job: Job) -> Job:
    require_instruction(job.instruction)
    check_image(job.image)
    check_output(job.output)
    return job
