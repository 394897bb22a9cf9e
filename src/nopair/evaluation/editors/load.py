"""Which editor a user names."""

from typing import Final

from nopair.evaluation.editors.base import Contestant
from nopair.evaluation.specs import parse_spec

KINDS: Final = ("nopair", "diffusers", "endpoint", "outputs")


def load_contestant(text: str, device: str) -> Contestant:
    """`nopair:MODEL`, `diffusers:FOLDER`, `endpoint:URL,model=NAME` or `outputs:FOLDER`, each with its own options.

    Raises:
        ConfigError: another kind, or an unknown option.
        ModelError, DataError: the model or the folder cannot be used.
    """
    spec = parse_spec(text, KINDS)
    if spec.kind == "nopair":
        from nopair.evaluation.editors.ours import OurEditor

        return OurEditor.load(spec, device)
    if spec.kind == "diffusers":
        from nopair.evaluation.editors.stock import StockEditor  # imports diffusers

        return StockEditor.load(spec, device)
    if spec.kind == "endpoint":
        from nopair.evaluation.editors.endpoint import EndpointEditor

        return EndpointEditor.load(spec)
    from nopair.evaluation.editors.made import MadeOutputs

    return MadeOutputs.load(spec)
