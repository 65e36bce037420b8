"""`replidict`: the group of all commands."""

from __future__ import annotations

from collections.abc import Sequence

import click
from typing_extensions import override

from replidict.command.backup import backup
from replidict.command.bench import bench
from replidict.command.cluster import add, members, remove, status, transfer
from replidict.command.disks import inspect_node, recover, restore
from replidict.command.keys import delete, get, keys, set_value
from replidict.command.serve import serve


class _InOrder(click.Group):
    """Commands are listed as they were added: those used together stand together."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="replidict", message="replidict %(version)s")
def main() -> None:
    """A dict that survives the loss of the machine it runs on."""


_COMMANDS: Sequence[click.Command] = [
    serve, status, get, set_value, delete, keys, members, add, remove, transfer, backup, restore, recover, inspect_node,
    bench,
]  # fmt: skip
for _command in _COMMANDS:
    main.add_command(_command)
