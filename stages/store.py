"""Commands on the stores: what lies there, whether it is whole, to the team and back, and what can go.

A command works on the stores of a configuration, given as Snakemake has it: ``--configfile FILE [--config KEY=VALUE]``;
none is the demo's. ``ls``, ``verify`` and ``stats`` take the place of a store instead.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.config import Config, load
from pipeline.lock import hold
from pipeline.stores import audit, exchange, garbage, listing, statistics, transfer
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.feature_needs import feature_needs
from pipeline.stores.inventory import (
    LocalStore,
    Need,
    list_local,
    list_shared,
    needs,
    objects,
    open_store,
    presence,
    quarantined,
    select,
)
from pipeline.stores.listing import size_text, table
from pipeline.stores.shared import SharedStore

DEMO = Path(__file__).resolve().parent.parent / "config" / "demo.yaml"
NAMED = 5
"""Videos that are named where many are counted."""


def ls(arguments: argparse.Namespace) -> int:
    """What lies in the stores: number, bytes and parameters, and the datasets that refer to it."""
    configs = [] if arguments.store else _configs(arguments)
    referred = {config.name: _planned(config) for config in configs}
    features = {config.name: feature_needs(config) for config in configs}
    shared = {config.store.shared for config in configs if config.store.shared and not arguments.shared}
    for store in (*_places(arguments, configs), *map(SharedStore, sorted(shared))):
        if isinstance(store, LocalStore):
            title, entries = f"local store {store.arrays.parent}", list_local(store)
        else:
            title = f"shared store {store.url}"
            entries = list_shared(store, of=[need for found in referred.values() for need in found])
        print(title)
        print(listing.text(entries, {name: [*found, *features[name]] for name, found in referred.items()}))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check every byte against its checksum; exit status 1 if something is damaged."""
    config = None if arguments.store else _config(arguments)
    found = _planned(config) if config else []
    features = feature_needs(config) if config else []
    if config is not None and arguments.remove and not arguments.shared:
        hold(config.work_dir / ".lock")
    pieces: list[audit.Piece] = []
    for store in _places(arguments, [config] if config else [], writable=arguments.remove):
        if not isinstance(store, LocalStore):
            pieces += audit.of_shared(store, found=found)
        elif config is None and arguments.remove:
            raise ValueError("--remove needs the configuration of a local store, whose receipts go too: --configfile")
        else:
            pieces += audit.of_local(store, config)
    checked = audit.verify(pieces, threads=arguments.threads, scheduler=arguments.scheduler)
    return _tell_damage(checked, config, [*found, *features], remove=arguments.remove)


def _tell_damage(
    checked: Iterable[audit.Checked], config: Config | None, found: Sequence[Need], *, remove: bool
) -> int:
    videos, size, count, damaged, whole, start = _videos(found), 0, 0, 0, 0, time.monotonic()
    for one in checked:
        size, count, damaged = size + one.bytes, count + 1, damaged + bool(one.wrong)
        for text in one.told(videos):
            print(f"damaged: {text}", flush=True)
        if one.wrong and remove:
            whole += not audit.remove(one.piece, config=config)
    seconds = time.monotonic() - start
    print(f"{count} arrays, tars and objects, {size_text(size)} in {seconds:.1f} s: {damaged or 'none'} damaged")
    if whole:
        _say(f"{whole} of them stay, because they are whole here; see whether all workers have the same paths")
    if damaged > whole:
        done = "it is deleted" if remove else "with --remove it is deleted"
        _say(f"{done}, and the next run that needs it makes it anew")
    return int(bool(damaged))


def pull(arguments: argparse.Namespace) -> int:
    """Copy from the shared store to the local one; exit status 1 if something that was asked for is not there."""
    config = _config(arguments)
    shared, found = _shared(config), _selected(config, arguments)
    hold(config.work_dir / ".lock")
    return _tell_moved("pull", "in the shared store", config, transfer.pull, found, shared, arguments.threads)


def push(arguments: argparse.Namespace) -> int:
    """Copy from the local store to the shared one; exit status 1 if something that was asked for is not there."""
    config = _config(arguments)
    shared, found = _shared(config, writable=True), _selected(config, arguments)
    return _tell_moved("push", "in the local store", config, transfer.push, found, shared, arguments.threads)


def _tell_moved(
    label: str,
    where: str,
    config: Config,
    move: Callable[..., list[transfer.Moved]],
    found: Sequence[Need],
    shared: SharedStore,
    threads: int | None,
) -> int:
    unusable, failed = quarantined(config), 0
    by_stage: dict[str, list[transfer.Moved]] = defaultdict(list)
    for one in move(config, found, shared=shared, threads=threads):
        by_stage[one.need.stage].append(one)
    for stage, moved in by_stage.items():
        counts, size = Counter(one.outcome for one in moved), sum(one.bytes for one in moved)
        print(
            f"{label} {stage}: {len(moved)} videos, {counts['copied']} copied ({size_text(size)}), {counts['there']} "
            f"there already, {counts['absent']} not {where}, {counts['damaged']} damaged"
        )
        absent = [one.need.video for one in moved if one.outcome == "absent"]
        lacking = [video for video in absent if (stage, video) not in unusable]
        if lacking:
            _say(f"{stage}: not {where}: {_names(lacking)}")
        for one in moved:
            if one.outcome == "damaged":
                _say(f"damaged: video {one.need.video!r}: {one.reason}")
        failed += len(lacking) + counts["damaged"]
    return int(bool(failed))


def diff(arguments: argparse.Namespace) -> int:
    """What the configuration still lacks, by stage; exit status 1 if that is anything."""
    config = _config(arguments)
    shared = SharedStore(config.store.shared) if config.store.shared else None
    found = presence(config, needs(config), shared=shared)
    rows: list[tuple[str, ...]] = [("stage", "videos", "local", "shared", "neither", "quarantined")]
    lacking: dict[str, list[str]] = {}
    for stage in config.stores:
        own = [one for one in found if one.need.stage == stage]
        out = [one for one in own if not one.local and not one.shared]
        lacking[stage] = [one.need.video for one in out if not one.quarantined]
        counts = (len(own), sum(one.local for one in own), sum(one.shared for one in own), len(lacking[stage]))
        rows.append((stage, *map(str, counts), str(len(out) - len(lacking[stage]))))
    print(table(rows))
    for stage, names in lacking.items():
        if names:
            print(f"{stage} lacks {', '.join(names) if arguments.all else _names(names)}")
    return int(any(lacking.values()))


def gc(arguments: argparse.Namespace) -> int:
    """List what none of the configurations refers to, and old temporary files; with --delete, delete them.

    What is younger than an hour stays, temporary files younger than a day, and everything while a run is active in one
    of the work folders.
    """
    if not arguments.configfile:
        raise ValueError("gc deletes what the given configurations do not refer to, so all must be given: --configfile")
    configs = _configs(arguments)
    for work in sorted({config.work_dir for config in configs}) if arguments.delete else ():
        hold(work / ".lock")
    store = _one_shared(configs, writable=arguments.delete) if arguments.shared else None
    found = garbage.shared_garbage(configs, store) if store else garbage.local_garbage(configs)
    going, young = [one for one in found if one.old_enough], [one for one in found if not one.old_enough]
    for one in going:
        print(f"{size_text(one.bytes):>9}  {one.what:<9}  {one.where}")
    if arguments.delete:
        garbage.delete_shared(found, store) if store else garbage.delete_local(found, configs)
    size = size_text(sum(one.bytes for one in going))
    done = "deleted" if arguments.delete else "would be deleted; --delete does it"
    print(f"{len(going)} files and folders, {size}, {done}; {len(young)} are too young")
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Clipped vectors, magnitudes and sizes of all flow."""
    config = None if arguments.store else _config(arguments)
    found = [need for need in _planned(config) if need.kind == "flow"] if config else []
    arrays = [one for store in _places(arguments, [config] if config else []) for one in _arrays(store, found)]
    groups, damaged = statistics.flow_statistics(arrays, threads=arguments.threads, scheduler=arguments.scheduler)
    print("\n".join(listing.statistics_text(one, _videos(found)) for one in groups) or "there is no flow")
    for text in damaged:
        _say(text)
    return int(bool(damaged))


def _arrays(store: LocalStore | SharedStore, found: Sequence[Need]) -> list[statistics.FlowArray]:
    """Of a configuration's flow those that are there; without one all."""
    if isinstance(store, LocalStore):
        here = store.array_keys()
        root, shared = store.arrays.absolute(), None
    else:
        here = [key for kind, key, _ in objects(store, of=found) if kind == "flow"]
        root, shared = Path(os.devnull), audit.anywhere(store)
    wanted = {need.key for need in found} or set(here)
    return [statistics.FlowArray(root, key, shared) for key in here if key in wanted]


def import_(arguments: argparse.Namespace) -> int:
    """Take folders of flow that another tool has computed into the store."""
    return exchange.import_folders(_config(arguments), root=arguments.root, stage=arguments.stage, jobs=arguments.jobs)


def export(arguments: argparse.Namespace) -> int:
    """Write folders of flow and frames as another tool reads them."""
    return exchange.export_folders(
        _config(arguments),
        root=arguments.root,
        tool=arguments.tool,
        what=arguments.what,
        images=arguments.images,
        jobs=arguments.jobs,
    )


def _configs(arguments: argparse.Namespace) -> list[Config]:
    """One for each ``--configfile``, whose files are merged as Snakemake merges them; the demo's if there is none."""
    return [_merged(files, arguments.config) for files in arguments.configfile or [[DEMO]]]


def _merged(files: Sequence[Path], settings: Sequence[str]) -> Config:
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError
    from snakemake.utils import update_config

    merged: dict[str, object] = {}
    try:
        for file in files:
            update_config(merged, load_configfile(str(file)))
        if settings:
            from snakemake.cli import parse_config  # takes a second to import

            update_config(merged, parse_config(settings))
    except WorkflowError as error:
        raise ValueError(" ".join(str(error).split())) from None
    try:
        return load(merged)
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, files))}: {error}") from None


def _config(arguments: argparse.Namespace) -> Config:
    configs = _configs(arguments)
    if len(configs) > 1:
        raise ValueError("this command takes one --configfile; several files after it are merged")
    return configs[0]


def _shared(config: Config, *, writable: bool = False) -> SharedStore:
    if config.store.shared is None:
        raise ValueError(f"the configuration of {config.name} has no shared store; set store.shared")
    if writable and config.store.mode != "read-write":
        raise ValueError(f"{config.store.shared} is opened to be read only; set store.mode to read-write")
    return SharedStore(config.store.shared, writable=writable)


def _one_shared(configs: Sequence[Config], *, writable: bool) -> SharedStore:
    stores = {store.url: store for store in (_shared(config, writable=writable) for config in configs)}
    if len(stores) > 1:
        raise ValueError(f"the configurations have several shared stores, {' and '.join(stores)}; give those of one")
    return next(iter(stores.values()))


def _places(
    arguments: argparse.Namespace, configs: Sequence[Config], *, writable: bool = False
) -> list[LocalStore | SharedStore]:
    """The stores that a command was given: by place, or by configuration, each once."""
    if arguments.store:
        if arguments.configfile or arguments.config or arguments.shared:
            raise ValueError("give the place of a store or a configuration, not both")
        stores = [open_store(place) for place in arguments.store]
        return [SharedStore(one.url, writable=writable) if isinstance(one, SharedStore) else one for one in stores]
    if arguments.shared:
        return [_one_shared(configs, writable=writable)]
    return list(dict.fromkeys(LocalStore.of(config) for config in configs))


def _planned(config: Config) -> list[Need]:
    """What the configuration refers to; nothing, and a remark, if it has no plan yet."""
    try:
        return needs(config)
    except ValueError as error:
        _say(f"{config.name}: {error}")
        return []


def _selected(config: Config, arguments: argparse.Namespace) -> list[Need]:
    videos = arguments.videos
    if arguments.list is not None:
        videos = [*(videos or ()), *filter(None, arguments.list.read_text().splitlines())]
    if unknown := set(arguments.stage or ()) - set(config.stores):
        raise ValueError(f"the configuration keeps no {min(unknown)}; it keeps {', '.join(config.stores)}")
    return select(config, needs(config, stages=arguments.stage), split=arguments.split, videos=videos)


def _videos(found: Iterable[Need]) -> dict[str, list[str]]:
    """Ids by artifact key."""
    videos: dict[str, list[str]] = defaultdict(list)
    for need in found:
        videos[need.key].append(need.video)
    return videos


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; give 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stages.store", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").split("\n")[0]
        own = commands.add_parser(name, help=text, description=run.__doc__)
        own.add_argument("--configfile", nargs="+", action="append", type=Path, metavar="FILE", help="configuration")
        own.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings in place of the file's")
        own.set_defaults(run=run)
        return own

    for name, run in (("ls", ls), ("verify", verify), ("stats", stats)):
        own = command(name, run)
        own.add_argument("store", nargs="*", metavar="STORE", help="folder or URL, in place of a configuration's")
        own.add_argument("--shared", action="store_true", help="the configuration's shared store, not its local one")
        if name != "ls":
            own.add_argument("--threads", type=_count, default=os.cpu_count() or 1, help="of this process")
            own.add_argument("--scheduler", metavar="ADDRESS", help="of a running dask scheduler, tcp://host:8786")
        if name == "verify":
            own.add_argument("--remove", action="store_true", help="delete what is damaged; the next run makes it anew")
    for name, run in (("pull", pull), ("push", push)):
        own = command(name, run)
        own.add_argument("--split", metavar="NAME[:PART]", help="only videos of a split, or of a part: split1:test")
        own.add_argument("--videos", nargs="+", metavar="ID", help="only these")
        own.add_argument("--list", type=Path, metavar="FILE", help="only these, one id a line")
        own.add_argument("--stage", nargs="+", metavar="STAGE", help="only frames, flow or warped_flow")
        own.add_argument("--threads", type=_count, help="artifacts copied at a time; else as suits the store")
    command("diff", diff).add_argument("--all", action="store_true", help=f"name every video, not {NAMED}")
    own = command("gc", gc)
    own.add_argument("--delete", action="store_true", help="delete; without it nothing is changed")
    own.add_argument("--shared", action="store_true", help="of the configurations' shared store, not the local ones")
    exchange.add_import(command("import", import_))
    exchange.add_export(command("export", export))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
    except BrokenPipeError:  # `ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (OSError, ValueError, DamagedArtifact) as error:
        sys.exit(f"store: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main()
