"""The metadata of the output: the input's, and what was done to it."""

from gguf import GGML_QUANT_VERSION

from tqgguf.models import Model
from tqgguf.models.metadata import Value
from tqgguf.models.metadata import encode as value
from tqgguf.planning.plan import Plan
from tqgguf.rotation.padding import is_record as is_padding
from tqgguf.rotation.rotation import PREFIX, Rotation


def output_metadata(
    model: Model, plan: Plan, rotation: Rotation, rounded_by: str = "", weighed_by: str = ""
) -> dict[str, Value]:
    """The input's metadata, with the file's type, the rotation and what its rounding minded."""
    metadata = dict(model.metadata)
    if rotation.mode != "none" or f"{PREFIX}version" not in metadata:
        metadata = {k: v for k, v in metadata.items() if is_padding(k) or not k.startswith(PREFIX)}
        metadata |= rotation.metadata()
    minded = {f"{PREFIX}calibration": rounded_by, f"{PREFIX}imatrix": weighed_by}
    minded[f"{PREFIX}measured_on"] = plan.measured_on
    return (
        metadata
        | {key: value(text) for key, text in minded.items() if text}
        | {
            "general.file_type": value(int(plan.recipe.file_type)),
            "general.quantization_version": value(int(GGML_QUANT_VERSION)),
            f"{PREFIX}recipe": value(plan.recipe.name),
        }
    )
