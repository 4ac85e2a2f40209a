"""`attvae import-official`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def import_official(
    weights: Annotated[Path, typer.Argument(metavar="FINAL_MODEL.H5", help="Weights that the authors' code saved.")],
    command: Annotated[Path, typer.Option(help="The command line that lies beside them, such as eval_command.sh.")],
    out: Annotated[Path, typer.Option(help="Export folder to write.")],
    data_spec: Annotated[
        Path | None,
        typer.Option(
            help="JSON of height, width, channels, num_bits, binary, pad: in place of what --dataset implies."
        ),
    ] = None,
) -> None:
    """Turn weights of the authors' TensorFlow code into an export folder."""
    from attvae.export import ExportConfig, check_absent, write
    from attvae.model.official import count_parameters
    from attvae.model.official_command import parse_command, read_data_spec
    from attvae.model.official_h5 import read_h5
    from attvae.model.vae import DeepVAE
    from attvae.model_card import model_card

    with bad_input(found_by_all=True):
        check_absent(out)
        try:
            text = command.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the command line {command}: {error}") from error
        config, spec = parse_command(text, read_data_spec(data_spec) if data_spec else None)
        model = DeepVAE(config, spec)
        read_h5(weights, model)
        stated = ExportConfig(model=config, spec=spec, weights="parameters")  # the authors do not average
        card = model_card(stated, model, origin="of the authors' code, read by attvae import-official")
        write(out, model, stated, card)
    print(f"{out}: {count_parameters(model):,} parameters as the authors count; attvae.load takes this folder")
