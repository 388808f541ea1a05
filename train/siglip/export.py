"""A tuned SigLIP as a plain folder of Hugging Face weights: a checkpoint of a run, loaded and exported with its card."""

from pathlib import Path

from transformers import SiglipModel

from eval.atomic import replace_files
from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.encoder.hub import model_folder
from eval.files import read_text
from eval.report.calibration import FILE as CALIBRATION
from train.config.export import ExportConfig
from train.config.job import JobConfig
from train.engine.card import CARD, shown_name
from train.engine.checkpoint import State
from train.engine.export_folder import load_chosen, plain_state, replaced_export, report_on, write_card, write_plain
from train.export.forms import write_forms
from train.model.siglip import TunedModel, build_model
from train.siglip.card import limits, model_card, usage
from train.siglip.sentence_encoder import write_sentence_encoder


def export_model(tuned: TunedModel, folder: Path, card: str, forms: ExportConfig = ExportConfig()) -> None:
    """Write a plain SiglipModel + processor folder, whole or not at all; an earlier export there is replaced.

    Args:
        forms: what is written in it besides, from the same weights.

    Raises:
        UserError: the folder holds something else, which would be lost; or as `train.export.forms.write_forms`.
        OSError: it cannot be written.
    """
    weights = plain_state(tuned.siglip)
    with replaced_export(folder, sum(tensor.nbytes for tensor in weights.values())) as temporary:
        write_plain(SiglipModel, tuned.siglip.config, weights, temporary)
        tuned.inputs.save(temporary)
        write_sentence_encoder(temporary, tuned.siglip.config.text_config.max_position_embeddings)
        write_forms(forms, tuned.siglip.config, weights, tuned.inputs, temporary)
        (temporary / CARD).write_text(card, encoding="utf-8")


def load_checkpoint(config: JobConfig, which: str, tuned: TunedModel | None = None) -> tuple[TunedModel, int, State]:
    """The best, the last or a numbered checkpoint of a run, in `tuned` where it is given; returns and raises as `load_chosen`."""
    return load_chosen(config, which, config.base, lambda: tuned or build_model(config.model, config.base))


def export_checkpoint(config: JobConfig, which: str, folder: Path, tuned: TunedModel | None = None) -> int:
    """Export one checkpoint of a run. Returns its step.

    Its card has the figures of the run's final report where that is on these very weights.

    Args:
        tuned: the model that the run holds in memory, on the CPU; its weights are replaced. None: it is built from the base.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged; or the base has changed.
        OSError: the export cannot be written.
    """
    tuned, step, newest = load_checkpoint(config, which, tuned)
    export_model(tuned, folder, model_card(config, newest, step, tuned.inputs), config.export)
    if (report := report_on(config, folder)) is not None:
        write_card(folder, model_card(config, newest, step, tuned.inputs, report=report))
    return step


def export_again(model: str, folder: Path, forms: ExportConfig) -> None:
    """Write a SigLIP once more with other forms, such as the export of a soup; it keeps its card and its calibration.

    Args:
        model: folder, or id of the hub.

    Raises:
        UserError: it is no SigLIP that can be read; or as `export_model`.
        OSError: the export cannot be written.
    """
    siglip, inputs = load_siglip(model)
    files = model_folder(model)
    card = f"# {shown_name(model)}\n\n{usage(inputs)}{limits(inputs)}"
    card = read_text(files / CARD) if (files / CARD).is_file() else card
    calibration = read_text(files / CALIBRATION) if (files / CALIBRATION).is_file() else None
    export_model(TunedModel(siglip, inputs, hash_weights(siglip)), folder, card, forms)
    if calibration is not None:
        replace_files({folder / CALIBRATION: calibration})
