"""What can be configured, one frozen dataclass per concern.

Each field is declared with `options.option`: its name gives the option's name on the command line, its type
says how text becomes a value and in which unit (`values.Size`, `values.Seconds`), its default is the option's
default. `pahq_server.cli.flags` derives the options of the commands from that, so a new option is one field
here and the place that uses it.

Read `options` first, then `values`, `server` (all that ``pahq-server serve`` takes) and `access` (who may
call, and which settings would leave a server open to everybody).
"""
