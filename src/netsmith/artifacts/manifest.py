"""What every manifest may hold, with its types: whoever wrote it, what reads it meets nothing else."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from netsmith import limits
from netsmith.errors import ArtifactError
from netsmith.files.document import faults_of
from netsmith.files.yaml_text import Document

M = TypeVar("M", bound=BaseModel)

Text = Annotated[str, Field(max_length=10_000)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Fields(BaseModel):
    """Keys that are known have their types; others are left alone."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class ImageFields(Fields):
    """How images become inputs; mean and std may be of other channels than the input has, or not known."""

    mean: Annotated[list[float], Field(min_length=1, max_length=limits.CHANNELS)] | None
    std: Annotated[list[Positive], Field(min_length=1, max_length=limits.CHANNELS)] | None
    input_size: list[int]
    interpolation: Text = "bilinear"

    @field_validator("input_size")
    @classmethod
    def _bounded(cls, value: list[int]) -> list[int]:
        fault = limits.input_fault(value)
        if fault is not None:
            raise ValueError(fault)
        return value

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (self.input_size[0], self.input_size[1], self.input_size[2])


class PreprocessFields(ImageFields):
    """How images become inputs, with a mean and a deviation for each channel."""

    @model_validator(mode="after")
    def _one_a_channel(self) -> PreprocessFields:
        counts = [len(values) for values in (self.mean, self.std) if values is not None]
        if set(counts) - {self.input_size[0]}:
            raise ValueError(
                f"mean and std need one number for each of {self.input_size[0]} channels, not "
                f"{' and '.join(map(str, counts))}"
            )
        return self


class ProvenanceFields(Fields):
    """Where weights come from."""

    source: Text
    weights: Text | None = None
    sha256: Text | None = None
    licence: Text | None = None
    url: Text | None = None
    commercial: bool | None = None


class ManifestFields(Fields):
    """Of any kind."""

    name: Text = ""
    source: Text = ""
    options: dict[str, Any] = {}
    licence: Text | None = None
    commercial: bool | None = None
    task: Text = "classification"
    num_classes: Annotated[int, Field(ge=0, le=limits.CLASSES)] | None = None
    classes: Annotated[list[Text], Field(max_length=limits.CLASSES)] = []
    preprocess: PreprocessFields | None = None
    provenance: list[ProvenanceFields] = []
    params: Count | None = None
    macs: Count | None = None
    metrics: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    validation_images: Count | None = None
    config: dict[str, Any] = {}


def check_fields(values: Any, model: type[M], where: object) -> M:
    """Values of a manifest as a model; raises ArtifactError with every fault and its place."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, Document(values), model)
        lines = [f"  {fault}" for fault in faults[:8]]
        more = [f"  and {len(faults) - 8} more"] if len(faults) > 8 else []
        raise ArtifactError(
            f"The manifest of {where} lacks or spoils what it is read for:\n" + "\n".join([*lines, *more])
        ) from error
