"""Trees of LightLLM that nobody wrote: a few lines each, or one in which exactly the rows of one version fit."""

from __future__ import annotations

import textwrap

from lightllm_source.tree import Tree

from lightllm_otel.patch.contracts import ENVIRONMENT, OPTIONS, VERSIONS, Hook

BASE = "lightllm.common.basemodel"


def tree(**modules):
    """Return a tree; each keyword is a module below ``lightllm``, with ``__`` for a dot."""
    return Tree({f"lightllm/{name.replace('__', '/')}.py": textwrap.dedent(text) for name, text in modules.items()})


def version(name, rows):
    """Return a tree in which the rows that were seen in this version fit, and no other."""
    place = VERSIONS.index(name)
    modules: dict[str, dict[str, dict[str, set[str]]]] = {}
    for row in rows:
        found = modules.setdefault(row.module, {})
        if not VERSIONS.index(row.since) <= place <= VERSIONS.index(row.until):
            continue
        if isinstance(row, Hook):
            owner, _, method = row.place.partition(".")
            words = {word for each in row.reads for word in each}
            found.setdefault(owner, {}).setdefault(method or "()", set()).update(words)
        elif row.owner in (ENVIRONMENT, OPTIONS):
            prefix = "--" if row.owner == OPTIONS else ""
            found.setdefault("WORDS", {}).setdefault("words", set()).update(
                f"{prefix}{word}" for word in row.attributes
            )
        elif not row.owner:
            for word in row.attributes:
                found.setdefault(word, {}).setdefault("()", set())
        else:
            owner, _, method = row.owner.partition(".")
            found.setdefault(owner, {}).setdefault(method or "fields", set()).update(row.attributes)
    modules.setdefault("lightllm.server.api_cli", {}).setdefault("WORDS", {}).setdefault("words", set())
    if place >= VERSIONS.index("v1.2.0"):
        modules["lightllm.server.api_cli"]["WORDS"]["words"].add("--enable_prefill_cudagraph")
    return Tree({f"{module.replace('.', '/')}.py": _module(owners) for module, owners in modules.items() if owners})


def _module(owners):
    lines = []
    for owner, parts in owners.items():
        if "words" in parts:
            lines += [f"{owner} = {sorted(parts['words'])!r}"]
        elif set(parts) == {"()"} and owner[0].islower():  # behind a first parameter, as sample has them
            lines += [f"def {owner}(first, {', '.join(sorted(parts['()']))}): pass"]
        else:
            lines += [f"class {owner}:", "    pass"]
            for method, names in parts.items():
                if method == "fields":
                    lines += [f"    {name}: object = None" for name in sorted(names)]
                elif method != "()":
                    lines += [f"    def {method}(self, {', '.join(sorted(names))}): pass"]
    return "\n".join(lines) + "\n"
