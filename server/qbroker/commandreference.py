"""The reference of all commands, as Markdown, from the commands themselves."""

from collections.abc import Collection, Iterator

import click

SETTINGS_ROW = "| a flag for each setting |  | See [Settings](README.md#settings). |"


def markdown(root: click.Group, name: str, settings: Collection[str]) -> str:
    """A section for each command of ``root``: its usage, what it does, and its options.

    The options of a command that takes all ``settings`` are one row, that says where they are
    explained. Hidden commands and options are left out.
    """
    context = click.Context(root, info_name=name)
    return "\n".join(_sections(context, settings))


def _sections(context: click.Context, settings: Collection[str]) -> Iterator[str]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.commands[name]
        if command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _sections(inner, settings)
        else:
            yield _section(inner, settings)


def _section(context: click.Context, settings: Collection[str]) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    paragraphs = [f"### {context.command_path}", f"`{usage}`", *_prose(command.help or "")]
    options = [each for each in command.params if isinstance(each, click.Option)]
    takes_all = {each.name for each in options}.issuperset(settings)
    told = [x for x in options if not x.hidden and not (takes_all and x.name in settings)]
    rows = [_row(option) for option in told] + [SETTINGS_ROW] * takes_all
    if rows:
        paragraphs.append(
            "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])
        )
    return "\n\n".join(paragraphs) + "\n"


def _prose(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; those that keep their lines are code."""
    for paragraph in text.replace("\f", "").strip().split("\n\n"):
        lines = paragraph.strip().splitlines()
        if lines and lines[0].strip() == "\b":
            yield "\n".join(["```", *(line.rstrip() for line in lines[1:]), "```"])
        else:
            yield " ".join(line.strip() for line in lines)


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    choices = getattr(option.type, "choices", ())
    kind = "/".join(map(str, choices)) or option.metavar or option.type.name
    first = names if option.is_flag else f"{names} {kind}"
    words = [option.help or "", *_remarks(option)]
    cells = (first, _default(option), " ".join(filter(None, words)))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _remarks(option: click.Option) -> Iterator[str]:
    if option.required:
        yield "Required."
    if option.multiple and "more than once" not in (option.help or ""):
        yield "May be given more than once."
    variable = option.envvar
    if isinstance(variable, str) and variable not in (option.help or ""):
        yield f"Also `{variable}` in the environment."


def _default(option: click.Option) -> str:
    default = option.to_info_dict()["default"]
    if option.is_flag or callable(default) or default in (None, "", ()):
        return ""
    return f"`{default}`"
