"""``pocketport devices``: what is known about chips and phones, figure by figure, and devices that a user measured."""

from pathlib import Path
from typing import Annotated

import typer

from pocketport.commands.console import out, print_json, table
from pocketport.commands.options import Json
from pocketport.profiles.device import DeviceProfile, find_device, profiles, slug
from pocketport.profiles.prediction.devices import borrowed
from pocketport.profiles.prediction.features import GraphFeatures
from pocketport.profiles.prediction.local import fit_local, fitted_devices, read_anchors, save_local
from pocketport.profiles.prediction.parameters import parameters

devices = typer.Typer(help="Chips and phones: what is known, compare them, add one's own.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command group."""
    app.add_typer(devices, name="devices")


@devices.command("list")
def list_devices(json_output: Json = False) -> None:
    """All profiles, and how latency on them is predicted."""
    local = fitted_devices()
    every = [*profiles(), *(d.profile for d in local.values())]
    if json_output:
        listed = [{"target": p.target, "name": p.name, "phones": list(p.phones), "latency": _basis(p)} for p in every]
        print_json({"schema": "pocketport.devices/1", "devices": listed})
        return
    shown = table("Devices", "target", "name", "accelerator", "latency from", "phones")
    for p in every:
        shown.add_row(p.target, p.name, p.npu, _basis(p), ", ".join(p.phones[:3]))
    out.print(shown)


@devices.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A phone, a chip or a target: galaxy-s25, snapdragon-8-elite, sm8750.")],
    json_output: Json = False,
) -> None:
    """One profile: every figure with its source and certainty."""
    profile = _profile(name)
    if json_output:
        print_json({"schema": "pocketport.device/1", **profile.model_dump(mode="json"), "latency": _basis(profile)})
        return
    shown = table(f"{profile.name} ({profile.target})", "figure", "value", "certainty", "source", right=(1,))
    for key, figure in profile.figures.items():
        shown.add_row(key, f"{figure.value:g}", figure.certainty, figure.source)
    out.print(shown)
    out.print(
        f"{profile.npu}; {profile.kind}; latency from {_basis(profile)}; phones: {', '.join(profile.phones) or 'none'}"
    )


@devices.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(help="Two or more devices.")], json_output: Json = False
) -> None:
    """Figures side by side, and how much longer matrices, vectors, memory and overheads take than on the reference."""
    found = [_profile(name) for name in names]
    rows = {key: [_figure(p, key) for p in found] for key in dict.fromkeys(k for p in found for k in p.figures)}
    for precision, model in parameters().graph.items():
        for factor in ("matrix", "vector", "memory", "overhead"):
            known = [model.devices.get(p.target) for p in found]
            if any(known):
                rows[f"{precision} {factor}"] = [f"{getattr(k, factor):.2f}x" if k else "" for k in known]
    if json_output:
        listed = {p.target: {key: values[i] for key, values in rows.items()} for i, p in enumerate(found)}
        print_json({"schema": "pocketport.device-comparison/1", "devices": listed})
        return
    shown = table("Devices", "", *(p.name for p in found), right=tuple(range(1, len(found) + 1)))
    for key, values in rows.items():
        shown.add_row(key, *values)
    out.print(shown)


@devices.command("fit")
def fit(
    name: Annotated[str, typer.Argument(help="How the device will be called.")],
    measurements: Annotated[
        Path, typer.Option(help="CSV with the columns model,precision,ms: at least five ONNX files of one precision.")
    ],
    like: Annotated[
        str | None, typer.Option(help="A device with the same chip; default: the one that fits best.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Add a device from a few models that were measured on it."""
    from pocketport.compress.ingest import ingest  # which, as all that reads models, takes a second to import
    from pocketport.profiles.prediction.extraction import graph_features

    def features(path: Path) -> GraphFeatures:
        return graph_features(next(iter(ingest(path, keep_rows=False))).graph)

    device = fit_local(name, read_anchors(measurements), features, like=find_device(like) if like else None)
    path = save_local(name, device)
    if json_output:
        print_json({"schema": "pocketport.fitted-device/1", "file": str(path), **device.model_dump(mode="json")})
        return
    shown = table(name, "precision", "models", "matrix", "vector", "memory", "overhead", right=(1, 2, 3, 4, 5))
    for precision, f in device.factors.items():
        shown.add_row(precision, str(f.n), *(f"{v:.2f}x" for v in (f.matrix, f.vector, f.memory, f.overhead)))
    out.print(shown)
    out.print(f"Written to {path}; use it as --device {slug(name)}")


def _profile(name: str) -> DeviceProfile:
    local = fitted_devices()
    return local[slug(name)].profile if slug(name) in local else find_device(name)


def _figure(profile: DeviceProfile, key: str) -> str:
    figure = profile.figures.get(key)
    return "" if figure is None else f"{figure.value:g}{'' if figure.certainty == 'certain' else ' ?'}"


def _basis(profile: DeviceProfile) -> str:
    """How latency on it is predicted, in words."""
    model, anchors = parameters().graph["float"], parameters().anchors.get(profile.target, {})
    if profile.target.startswith("local/"):
        return "its own anchors"
    if profile.target in model.devices or any(profile.target in m.devices for m in parameters().graph.values()):
        return "measurements"
    lent = borrowed(profile, model.devices)
    if lent is not None:
        return f"like {lent[2]}"
    if anchors:
        count = max(a.n for a in anchors.values())
        return f"{count} published times" if count else "published figures alone"
    return "nothing"
