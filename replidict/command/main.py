"""The command group `replidict`."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import click
from typing_extensions import override

from replidict.command.backup import backup
from replidict.command.bench import bench
from replidict.command.cluster_admin import add, members, remove, status, transfer
from replidict.command.exit_status import Failure
from replidict.command.keys import delete, get, increment, keys, set_value
from replidict.command.locks import break_lock, locks
from replidict.command.offline import inspect_node, recover, restore
from replidict.command.output import require_stdout
from replidict.command.serve import serve
from replidict.command.watch import watch
from replidict.errors import ReplidictError

SILENT = {"set", "delete", "serve"}
"""Commands that print nothing, unless they are told to."""


class _Commands(click.Group):
    """Lists commands in the order in which they were added, so that related ones stand together."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if isinstance(error, ReplidictError) or error.errno == errno.EPIPE:  # of which click makes a quiet end
                raise
            raise Failure(f"{error.filename or 'standard output'}: {error.strerror or error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="replidict", message="replidict %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """A dict that survives the loss of the machine it runs on."""
    if ctx.invoked_subcommand not in SILENT:
        require_stdout()


_COMMANDS: Sequence[click.Command] = [
    serve, status, get, set_value, increment, delete, keys, watch, locks, break_lock, members, add, remove, transfer,
    backup, restore, recover, inspect_node, bench,
]  # fmt: skip
for _command in _COMMANDS:
    main.add_command(_command)
