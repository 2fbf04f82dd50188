"""The stages of a recipe, each from files to files."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.checkpoint import Checkpoint, open_checkpoint
from edgelm.compress.data import (
    Document,
    PackedTokens,
    calibration_rows,
    pack,
    read_documents,
)
from edgelm.compress.distill import Distillation, distill
from edgelm.compress.fingerprint import tokenizer_sha256
from edgelm.compress.importance import Aggregation, Importance, score
from edgelm.compress.layer_loss import layer_losses, layers_without_best_block, text_loss
from edgelm.compress.metrics import FILE as METRICS
from edgelm.compress.metrics import Metrics, read_metrics
from edgelm.compress.model import (
    Model,
    Tokenizer,
    check_vocabulary,
    load_model,
    load_tokenizer,
    save_model,
    whole,
)
from edgelm.compress.prune import prune
from edgelm.compress.ranks import device, is_first, processes
from edgelm.compress.recipe import Align, Calibrate, Correct, Qad, Recipe, Synthesize
from edgelm.compress.run_folder import RunFolder, file_hashes
from edgelm.compress.search import Candidate, Cost, held_out_divergence, search, table
from edgelm.compress.shape import Shape
from edgelm.compress.teacher_cache import CacheSettings, TeacherCache, build_cache, cache_bytes
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.precision import Int4, Int8, parse_precision
from edgelm.staging import replace_file
from edgelm.student import Figure, StageRecord

_BATCH = 4  # rows that pass at a time where nothing is trained
_DATA_FILE = "tokens.npy"
Progress = Callable[[str], None]


class Stages:
    """What is known while a recipe runs: where teacher, data and student are by now."""

    def __init__(self, recipe: Recipe, run: RunFolder, progress: Progress) -> None:
        self.recipe, self.run, self.progress = recipe, run, progress
        self.source = open_checkpoint(recipe.teacher)
        self.source_hash = self.source.sha256()
        self.teacher: Checkpoint = self.source
        self.original: Checkpoint = self.source  # the teacher before it was corrected
        self.tokenizer: Tokenizer = load_tokenizer(self.source)
        self.tokenizer_key = tokenizer_sha256(self.tokenizer)
        content = [self.source_hash, self.source.config, self.tokenizer_key]
        self.teacher_key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self.data_sources = recipe.data
        self.data_key = ""
        self.student: Path | None = None
        self.student_key = self.teacher_key
        self.pruned: Path | None = None
        self.candidates: list[Candidate] = []
        self.device = device()

    def check(self) -> None:
        """Raise now what stages would raise after hours: unknown names, files that are missing."""
        from edgelm.compress.evaluate import parse_tasks

        recipe = self.recipe
        if recipe.search or recipe.prune:
            load_profile(recipe.target.name).engine(recipe.target.engine)
        if recipe.evaluate:
            parse_tasks(recipe.evaluate.tasks)
        if recipe.align and not Path(recipe.align.data).is_file():
            raise BadInput(f"[align] data: no such file: {recipe.align.data}")

    def run_all(self) -> None:
        """Every stage that the recipe has, in their order."""
        recipe = self.recipe
        if recipe.synthesize:
            self.synthesize(recipe.synthesize)
        if recipe.vocabulary:
            self.trim_vocabulary(recipe.vocabulary.size)
        self.pack()
        if recipe.correct:
            self.correct(recipe.correct)
        if recipe.search or recipe.prune:
            self.importance(recipe.importance)
            shape = self.search() if recipe.search else self._asked_shape()
            self.prune(shape)
        if recipe.distill:
            self.distill(self._settings(recipe.distill, Distillation))
        if recipe.qad:
            self.qad(recipe.qad)
        if recipe.align:
            self.align(recipe.align)

    def synthesize(self, settings: Synthesize) -> None:
        """Text from the teacher becomes the data."""
        from edgelm.compress.sampling import Sampling
        from edgelm.compress.synthesis_plan import Answers, FreeText, vocabulary_words
        from edgelm.compress.synthesize import Synthesis, synthesize

        prompts = settings.prompts
        kind = (
            Answers(Path(prompts))
            if prompts
            else FreeText(settings.documents, vocabulary_words(self.tokenizer))
        )
        sampling = Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=self.recipe.seed,
        )
        request = Synthesis(kind, self.source.name, sampling)

        def work(folder: Path) -> StageRecord:
            def show(state: Any) -> None:
                self.progress(
                    f"synthesize: {state.documents}/{state.wanted} documents, "
                    f"{state.tokens_s:.0f} tokens/s"
                )

            done = synthesize(
                self._load(self.teacher, torch.bfloat16),
                self.tokenizer,
                request,
                folder / "text.jsonl",
                progress=show,
            )
            figures = {"documents": done.documents, "dropped": done.dropped}
            return _record("synthesize", settings, figures, tokens=done.tokens)

        inputs = {
            "teacher": self.teacher_key,
            "prompts": file_hashes((prompts,) if prompts else ()),
            "seed": self.recipe.seed,
        }
        folder, _ = self.run.stage("synthesize", {**inputs, **_plain(settings)}, work)
        self.data_sources = (*self.recipe.data, str(folder / "text.jsonl"))

    def trim_vocabulary(self, size: int | None) -> None:
        """A teacher with fewer tokens; all that follows has its vocabulary."""
        from edgelm.compress.vocabulary import trim_vocabulary
        from edgelm.compress.vocabulary_tokenizer import with_vocabulary

        def work(folder: Path) -> StageRecord:
            model = self._load(self.teacher, torch.float32)
            content = json.loads(self.tokenizer.backend_tokenizer.to_str())
            texts = [self._text(document) for document in self._documents()]
            trimmed = trim_vocabulary(model, content, texts, size=size)
            tokenizer = with_vocabulary(self.tokenizer, trimmed.tokenizer_json)
            save_model(trimmed.model, tokenizer, folder / "model", torch.float32)
            figures = {
                "vocab_size": len(trimmed.keep),
                "coverage": trimmed.coverage,
                "parameters_saved": trimmed.parameters_saved,
            }
            return _record("vocabulary", None, figures)

        inputs = {"teacher": self.teacher_key, "data": self._data_hashes(), "size": size}
        folder, key = self.run.stage("vocabulary", inputs, work)
        self._use_teacher(folder / "model", key)
        self.original = self.teacher
        self.tokenizer = load_tokenizer(self.teacher)
        self.tokenizer_key = tokenizer_sha256(self.tokenizer)

    def pack(self) -> None:
        """Text becomes rows of tokens; some are held out."""

        def work(folder: Path) -> StageRecord:
            shown = lambda count: self.progress(f"data: {count:,} tokens")  # noqa: E731
            length, most = self.recipe.sequence_length, self.recipe.max_tokens
            tokens = pack(
                self._documents(),
                self.tokenizer,
                length,
                folder / _DATA_FILE,
                max_tokens=most,
                progress=shown,
            )
            if self.recipe.held_out:
                documents = read_documents(self.recipe.held_out)
                pack(documents, self.tokenizer, length, folder / "held_out.npy")
            return _record("data", None, {"tokens": tokens.tokens, "rows": len(tokens)})

        inputs = {
            "tokenizer": self.tokenizer_key,
            "data": self._data_hashes(),
            "held_out": file_hashes((self.recipe.held_out,) if self.recipe.held_out else ()),
            "length": self.recipe.sequence_length,
            "max_tokens": self.recipe.max_tokens,
        }
        self.data_folder, self.data_key = self.run.stage("data", inputs, work)

    def correct(self, settings: Correct) -> None:
        """Fine-tune the teacher on the data."""
        distillation = self._settings(settings, Distillation, cross_entropy=1.0)

        def work(folder: Path) -> StageRecord:
            model = self._load(self.teacher, torch.float32)
            before = text_loss(list(self._held_out().split(_BATCH)))(model)
            figures = self._train("correct", model, None, distillation, folder)
            model = whole(model)
            after = text_loss(list(self._held_out().split(_BATCH)))(model)
            save_model(model, self.tokenizer, folder / "model", torch.float32)
            figures |= {"held_out_loss_before": before, "held_out_loss": after}
            return _record("correct", settings, figures, tokens=distillation.tokens)

        folder, key = self.run.stage(
            "correct", self._inputs(settings, "teacher"), work, together=True
        )
        self._use_teacher(folder / "model", key)

    def importance(self, settings: Calibrate) -> None:
        """Scores of heads, neurons, channels and layers."""

        def work(folder: Path) -> StageRecord:
            model = self._load(self.teacher, torch.bfloat16)
            rows = list(calibration_rows(self._data(), settings.samples, _BATCH))
            scores = score(
                model,
                rows,
                Aggregation(settings.tokens, settings.over_samples),
                lambda seen: self.progress(f"importance: {seen}/{settings.samples} samples"),
            )
            scores.save(folder / "importance.safetensors")
            if settings.layers == "loss":
                few = list(calibration_rows(self._data(), settings.layer_samples, _BATCH))
                self.progress("importance: the loss without each layer")
                losses = layer_losses(model, text_loss(few))
                scores = Importance(scores.heads, scores.neurons, scores.channels, losses)
                scores.save(folder / "importance.safetensors")
            figures = {"layers": [round(float(value), 4) for value in scores.layers]}
            return _record("importance", settings, figures, tokens=sum(map(torch.numel, rows)))

        inputs = self._inputs(settings, "teacher")
        self.importance_folder, self.importance_key = self.run.stage("importance", inputs, work)

    def search(self) -> Shape:
        """The best shape within the device's budget."""
        recipe = self.recipe
        assert recipe.search is not None
        settings, target = recipe.search, recipe.target
        schedule = self._settings(recipe.distill or Distillation(), Distillation)
        cost = Cost(self.teacher.spec, load_profile(target.name), target.budget)

        def work(folder: Path) -> StageRecord:
            def report(what: str, candidates: Any) -> None:
                self.progress(f"search: {what} {len(candidates)} candidates")
                if what == "distilled":
                    self.run.report(table(candidates))

            teacher = self._load(self.teacher, torch.bfloat16 if schedule.bf16 else torch.float32)
            found = search(
                teacher,
                self._importance(),
                cost,
                self._data(),
                self._held_out(),
                settings,
                schedule,
                folder / "finalists",
                layers=partial(self._layers, teacher),
                report=report,
            )
            replace_file(folder / "candidates.json", msgspec.json.encode(found))
            self.run.report(table(found))
            tokens = sum(len(one.distilled) for one in found) * settings.round_tokens
            return _record("search", settings, {"shape": str(found[0].shape)}, tokens=tokens)

        inputs = self._inputs(settings, "importance") | {"target": _plain(target)["settings"]}
        inputs["profile"] = _plain(cost.profile)["settings"]
        inputs["schedule"] = _plain(schedule)["settings"]
        folder, _ = self.run.stage("search", inputs, work, together=True)
        content = (folder / "candidates.json").read_bytes()
        self.candidates = msgspec.json.decode(content, type=list[Candidate])
        return self.candidates[0].shape

    def prune(self, shape: Shape) -> None:
        """The teacher cut to the shape."""
        fold = bool(self.recipe.prune and self.recipe.prune.fold_heads)

        def work(folder: Path) -> StageRecord:
            model = self._load(self.teacher, torch.float32)
            layers = self._layers(model, shape.num_hidden_layers)
            student = prune(model, shape, self._importance(), layers=layers, fold_heads=fold)
            save_model(student, self.tokenizer, folder / "model", torch.float32)
            loss = held_out_divergence(student, model, self._held_out())
            figures = {"shape": str(shape), "held_out_divergence": loss}
            return _record("prune", None, figures)

        inputs = {
            "importance": self.importance_key,
            "shape": _plain(shape)["settings"],
            "fold": fold,
        }
        folder, key = self.run.stage("prune", inputs, work)
        self.pruned = folder / "model"
        self._use_student(folder, key)

    def distill(self, settings: Distillation) -> None:
        """The student learns from the teacher."""
        cache = self.recipe.distill.cache if self.recipe.distill else None
        cached = self._cache(cache) if cache else None

        def work(folder: Path) -> StageRecord:
            judge = self._load(self.teacher, torch.bfloat16)
            teacher = judge if cached is None else TeacherCache(cached)
            student = self._load_student()
            figures = self._train("distill", student, teacher, settings, folder)
            student = whole(student)
            figures["held_out_divergence"] = held_out_divergence(student, judge, self._held_out())
            save_model(student, self.tokenizer, folder / "model", torch.float32)
            return _record("distill", settings, figures, tokens=settings.tokens)

        inputs = self._inputs(settings, "student") | {"cache": _plain(cache)["settings"]}
        folder, key = self.run.stage("distill", inputs, work, together=True)
        self._use_student(folder, key)

    def _cache(self, settings: CacheSettings) -> Path:
        """The teacher's predictions for all rows; by one process, since it is one file."""

        def work(folder: Path) -> StageRecord:
            teacher, data = self._load(self.teacher, torch.bfloat16), self._data()
            size = cache_bytes(data, teacher.config.vocab_size, settings)
            self.run.report(f"cache: the teacher's predictions will take {size / 1e6:,.0f} MB")

            def shown(rows: int) -> None:
                self.progress(f"cache: {rows} of {len(data)} rows")

            build_cache(teacher, self.teacher_key, data, settings, folder / "cache", shown)
            return _record("cache", settings, {"bytes": size}, tokens=data.tokens)

        folder, _ = self.run.stage("cache", self._inputs(settings, "teacher"), work)
        return folder / "cache"

    def qad(self, settings: Qad) -> None:
        """The student learns to live with rounded weights."""
        group = {"group_size": settings.group_size, "symmetric": settings.symmetric}
        layers = parse_precision(settings.precision, **group)  # type: ignore[arg-type]
        head = parse_precision(settings.head)
        assert isinstance(layers, Int4 | Int8)
        assert isinstance(head, Int4 | Int8)
        distillation = self._settings(settings, Distillation)

        def work(folder: Path) -> StageRecord:
            teacher = self._load(self.teacher, torch.bfloat16)
            student = self._load_student()
            figures = self._train("qad", student, teacher, distillation, folder, (layers, head))
            student = whole(student)
            figures["held_out_divergence"] = held_out_divergence(student, teacher, self._held_out())
            # In fp32, which alone holds four bits times an fp16 scale exactly.
            save_model(student, self.tokenizer, folder / "model", torch.float32)
            return _record("qad", settings, figures, tokens=distillation.tokens)

        folder, key = self.run.stage("qad", self._inputs(settings, "student"), work, together=True)
        self._use_student(folder, key)

    def align(self, settings: Align) -> None:
        """The student learns to answer."""
        from edgelm.compress.align import align
        from edgelm.compress.alignment import Dpo, Sft

        kind = {"sft": Sft, "dpo": Dpo}[settings.method]
        request = kind(
            learning_rate=settings.learning_rate, epochs=settings.epochs, seed=self.recipe.seed
        )
        context = self.source.spec.max_position_embeddings
        # A step's batch is the same however many processes share it.
        share = max(1, request.batch_size // processes())
        request = replace(request, max_length=min(request.max_length, context), batch_size=share)

        def work(folder: Path) -> StageRecord:
            student = self._load_student()
            # The first process makes the folder, which the others would take for a foreign one.
            while not is_first() and not (folder / "run" / "align.json").exists():
                time.sleep(0.1)
            done = align(student, self.tokenizer, request, Path(settings.data), folder / "run")
            save_model(student, self.tokenizer, folder / "model", torch.float32)
            figures = {"steps": done.steps, "examples": done.examples, "loss": done.loss}
            return _record("align", settings, figures)

        inputs = self._inputs(settings, "student") | {"data": file_hashes((settings.data,))}
        folder, key = self.run.stage("align", inputs, work, together=True)
        self._use_student(folder, key)

    def evaluate(self) -> dict[str, dict[str, Figure]]:
        """Figures of teacher, pruned model and student, by task."""
        from edgelm.compress.evaluate import evaluate, parse_tasks

        settings = self.recipe.evaluate
        assert settings is not None
        tasks = parse_tasks(settings.tasks)
        models: dict[str, Path | None] = {
            "teacher": self.original.path,
            "corrected": self.teacher.path if self.recipe.correct else None,
            "pruned": self.pruned,
            "student": self.student,
        }

        def work(folder: Path) -> StageRecord:
            teacher = self._load(self.teacher, torch.bfloat16)
            figures: dict[str, Any] = {}
            for name, path in models.items():
                if path is None:
                    continue
                model = self._load(open_checkpoint(path), torch.bfloat16)
                shown = partial(_show, self.progress, name)
                scores = evaluate(
                    model,
                    self.tokenizer,
                    tasks,
                    teacher=teacher if name in ("pruned", "student") else None,
                    limit=settings.limit,
                    progress=shown,
                )
                for task, one in scores.items():
                    figure = Figure(one.value, one.error, one.n, one.better)
                    figures.setdefault(task, {})[name] = json.loads(msgspec.json.encode(figure))
            return _record("evaluate", settings, figures)

        inputs = self._inputs(settings, "student")
        inputs["files"] = file_hashes(tuple(task.partition(":")[2] for task in settings.tasks))
        self.run.stage("evaluate", inputs, work)
        return msgspec.convert(self.run.records[-1].figures, dict[str, dict[str, Figure]])

    def _train(
        self,
        name: str,
        student: Model,
        teacher: Model | TeacherCache | None,
        settings: Distillation,
        folder: Path,
        precision: tuple[Int4 | Int8, Int4 | Int8] | None = None,
    ) -> dict[str, Any]:
        """Run a training and log every step; returns the figures of its end."""
        checkpoints = folder / "checkpoints"
        with Metrics(folder) as metrics:
            for step in distill(
                student, teacher, self._data(), settings, checkpoints, precision=precision
            ):
                metrics.write(step)
                minutes = step.eta_seconds / 60
                self.progress(
                    f"{name}: step {step.step}/{step.steps}, loss {step.loss:.3f}, "
                    f"{step.tokens_per_second:.0f} tokens/s, {minutes:.0f} min left"
                )
        # Read, since a run that was killed after its last step has no step left to do.
        rows = read_metrics(folder / METRICS)
        return {name: rows[-1][name] for name in ("loss", "tokens")} if rows else {}

    def _settings(self, settings: Any, kind: type[Distillation], **over: Any) -> Distillation:
        """A stage's table as settings of a training on this recipe's data."""
        values = msgspec.structs.asdict(settings)
        known = {field: values[field] for field in kind.__struct_fields__ if field in values}
        known |= {
            "sequence_length": self.recipe.sequence_length,
            "seed": self.recipe.seed,
            "bf16": bool(values.get("bf16", True)),
        }
        distillation = kind(**(known | over))
        distillation.check()
        return distillation

    def _asked_shape(self) -> Shape:
        assert self.recipe.prune is not None
        spec = self.teacher.spec
        shape = self.recipe.prune.shape(Shape.of(spec))
        shape.check_within(spec)
        Cost(spec, load_profile(self.recipe.target.name), self.recipe.target.budget).check_kernels(
            shape
        )
        return shape

    def _layers(self, model: Model, count: int) -> list[int] | None:
        """Which layers to keep so that `count` remain; None leaves it to block influence."""
        cut = self.teacher.spec.num_hidden_layers - count
        settings = self.recipe.importance
        if settings.layers != "block" or not cut:
            return None
        path = self.importance_folder / f"layers-{count}.json"
        if not path.exists():
            self.progress(f"importance: the loss without each block of {cut} layers")
            few = list(calibration_rows(self._data(), settings.layer_samples, _BATCH))
            kept = layers_without_best_block(model, cut, text_loss(few))
            replace_file(path, json.dumps(kept).encode())
        return list(json.loads(path.read_text()))

    def _documents(self) -> Iterator[Document]:
        for source in self.data_sources:
            yield from read_documents(source)

    def _text(self, document: Document) -> str:
        if not document.messages:
            return document.text
        return str(self.tokenizer.apply_chat_template(list(document.messages), tokenize=False))

    def _data_hashes(self) -> dict[str, str]:
        return file_hashes(self.data_sources)

    def _data(self) -> PackedTokens:
        """The rows to train on: all that are not held out."""
        data = PackedTokens.load(self.data_folder / _DATA_FILE)
        return data if self.recipe.held_out else PackedTokens(data.rows[self._apart(data) :])

    def _held_out(self) -> torch.Tensor:
        path = self.data_folder / "held_out.npy"
        if path.exists():
            held = PackedTokens.load(path)
            return torch.cat(list(calibration_rows(held, self._judged, self._judged)))
        data = PackedTokens.load(self.data_folder / _DATA_FILE)
        return data.batch(range(min(self._apart(data), self._judged)))

    def _apart(self, data: PackedTokens) -> int:
        return max(1, len(data) // 50)

    @property
    def _judged(self) -> int:
        return self.recipe.search.held_out_rows if self.recipe.search else 16

    def _importance(self) -> Importance:
        return Importance.load(self.importance_folder / "importance.safetensors")

    def _inputs(self, settings: Any, upstream: str) -> dict[str, Any]:
        keys = {
            "teacher": self.teacher_key,
            "student": self.student_key,
            "importance": getattr(self, "importance_key", ""),
        }
        chosen = {upstream: keys[upstream], "teacher": self.teacher_key, "data": self.data_key}
        return {**chosen, "seed": self.recipe.seed, **_plain(settings)}

    def _load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Model:
        model = load_model(checkpoint, dtype=dtype, device=self.device)
        check_vocabulary(model, self.tokenizer)
        return model

    def _load_student(self) -> Model:
        source = self.teacher if self.student is None else open_checkpoint(self.student)
        return self._load(source, torch.float32)

    def _use_teacher(self, folder: Path, key: str) -> None:
        self.teacher, self.teacher_key = open_checkpoint(folder), key
        if self.student is None:
            self.student_key = key

    def _use_student(self, folder: Path, key: str) -> None:
        self.student, self.student_key = folder / "model", key


def _show(progress: Progress, who: str, what: str) -> None:
    progress(f"evaluate: {who}, {what}")


def _record(name: str, settings: Any, figures: dict[str, Any], tokens: int = 0) -> StageRecord:
    return StageRecord(name, _plain(settings)["settings"] or {}, tokens, 0.0, figures)


def _plain(settings: Any) -> dict[str, Any]:
    """A record in JSON's types."""
    return {"settings": json.loads(msgspec.json.encode(settings))}
