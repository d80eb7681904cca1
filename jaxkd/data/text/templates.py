"""Chat templates of Hugging Face folders, rendered in a sandbox.

A template is a program in Jinja's language that someone else wrote: it reads the
conversation and writes a text, and reaches nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxkd.arguments import checked
from jaxkd.hub import model_folder
from jaxkd.untrusted import json_file, read_bytes, shown

LARGEST, LONGEST = 2**20, 2**24
"""Bytes of a template, and characters of a text that it writes."""

BEGIN, END = "\ue000", "\ue001"
"""What stands around what the assistant says while a text is rendered; both are private
to Unicode's users, and are taken out of messages."""


@checked()
@dataclass(frozen=True)
class JinjaTemplate:
    """A folder's own chat template, as transformers applies it.

    Attributes:
        source: the template, in Jinja's language.
        tokens: what it may write by name, such as ``bos_token``.
        name: of the file, for messages.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    name: str = "the template"

    def render(self, messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
        """Return a conversation as one text.

        Args:
            messages: dicts of ``role``, ``content`` and whatever else the template
                reads.
            answer: whether it is to end where the assistant's next answer begins.

        Raises:
            ValueError: the template refuses the conversation, or cannot be rendered.
        """
        return _unmarked(self._rendered(messages, answer))

    def stretches(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> list[tuple[str, bool]]:
        """Return the text's stretches, and whether each is what the assistant says.

        A template says so itself by ``{% generation %}``; of others it is what stands
        after the text that asks for the answer.

        Args:
            messages: as `render` takes them.

        Raises:
            ValueError: from `render`, or the template writes what came before otherwise
                once an answer follows.
        """
        whole = self._rendered(messages, answer=False)
        if BEGIN in whole:
            return list(_marked(whole))
        found, done = [], 0
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            asked = self.render(messages[:i], answer=True)
            answered = self.render(messages[: i + 1], answer=False)
            if not answered.startswith(asked) or not whole.startswith(answered):
                raise ValueError(
                    f"{self.name} writes message {i} or what came before it otherwise "
                    "once more follows, so that no stretch of text is its answer: mark "
                    "answers by {% generation %} … {% endgeneration %} in the template"
                )
            found += [(asked[done:], False), (answered[len(asked) :], True)]
            done = len(answered)
        return [
            (text, learnt) for text, learnt in (*found, (whole[done:], False)) if text
        ]

    def _rendered(self, messages: Sequence[Mapping[str, Any]], answer: bool) -> str:
        from jinja2 import TemplateError

        parts, length = [], 0
        try:
            for part in self._template.generate(
                messages=_plain(messages), add_generation_prompt=answer, **self.tokens
            ):
                length += len(part)
                if length > LONGEST:
                    raise ValueError(f"its text has more than {LONGEST:,} characters")
                parts.append(part)
        except (TemplateError, ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(
                f"{self.name} does not take the conversation: {shown(str(error))}"
            ) from None
        except (LookupError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.name} cannot be rendered: {shown(repr(error))}"
            ) from None
        return "".join(parts)

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_generation(), "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        try:
            return environment.from_string(self.source)
        except (TemplateError, RecursionError) as error:
            raise ValueError(
                f"{self.name} is no template of Jinja ({shown(str(error))}): fetch it "
                "again"
            ) from None


@checked()
def load_chat_template(
    folder: str | Path,
    file: str | Path | None = None,
    *,
    revision: str | None = None,
) -> JinjaTemplate:
    """Return the chat template of a Hugging Face folder.

    It is in ``chat_template.jinja``, or in ``tokenizer_config.json``, as one text or as
    several with names, of which ``default`` is taken.

    Args:
        folder: of the tokenizer, which is often the model's, or a model's name on the
            Hugging Face hub.
        file: of a template that takes the place of the folder's own.
        revision: of the hub's model; None for the newest.

    Raises:
        FileNotFoundError: it has none.
        ValueError: a file that is damaged.
    """
    folder = model_folder(folder, revision)
    config = folder / "tokenizer_config.json"
    file = folder / "chat_template.jinja" if file is None else Path(file)
    said = json_file(config) if config.is_file() else {}
    if not isinstance(said, dict):
        raise ValueError(f"{config} holds a {type(said).__name__}, not an object")
    source, path = said.get("chat_template"), config
    if file.is_file():
        try:
            source, path = read_bytes(file, LARGEST).decode(), file
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text ({error}): fetch it again") from None
    if isinstance(source, list):
        named = [
            x for x in source if isinstance(x, dict) and x.get("name") == "default"
        ]
        source = named[0].get("template") if named else None
    if source is None:
        raise FileNotFoundError(
            f"{folder} has no chat template, neither in {file.name} nor in "
            f"{config.name}: write it as a ChatTemplate, such as CHATML"
        )
    if not isinstance(source, str) or len(source) > LARGEST:
        raise ValueError(
            f"{path}: chat_template is no text of up to {LARGEST:,} letters"
        )
    tokens = {}
    for name, token in said.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            tokens[name] = token
    return JinjaTemplate(source, tokens, str(path))


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    import json

    # Jinja's own writes <, > and & as for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _generation() -> type:
    """Return Jinja's extension for ``{% generation %}``, which marks answers."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (Jinja's)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            marked = self.call_method("mark")
            return nodes.CallBlock(marked, [], [], body).set_lineno(line)

        def mark(self, caller: Any) -> str:
            return f"{BEGIN}{caller()}{END}"

    return Generation


def _plain(value: Any) -> Any:
    """Return messages without the marks, which only the template may write."""
    if isinstance(value, str):
        return _unmarked(value)
    if isinstance(value, Mapping):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value


def _unmarked(text: str) -> str:
    return text.replace(BEGIN, "").replace(END, "")


def _marked(text: str) -> Iterator[tuple[str, bool]]:
    for i, part in enumerate(text.split(BEGIN)):
        said, _, after = part.partition(END) if i else ("", "", part)
        for stretch, learnt in ((said, True), (after, False)):
            if stretch:
                yield stretch, learnt
