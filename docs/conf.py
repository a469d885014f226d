"""The documentation site: `make docs` builds it into site/html from README.md, docs/ and the docstrings.

The sources are the repository itself, so that a link works on the site as it does where files are read one by one.
"""

from importlib import import_module
from pathlib import Path
from shutil import copyfile
from typing import Any

from numpydoc.xref import DEFAULT_LINKS
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parent.parent

#: The packages whose `__all__` is public, each with a page in docs/reference.
FACES = [
    "secagg",
    "secagg.site",
    "secagg.server",
    "secagg.shards",
    "secagg.protocol",
    "secagg.setup",
    "secagg.trust",
    "secagg.integrations.flower",
    "secagg.integrations.grpc",
    "secagg.integrations.lightning",
    "secagg.integrations.monai",
    "secagg.integrations.nvflare",
    "secagg.integrations.ray",
    "secagg.integrations.transformers",
]

#: What the sidebar shows; a page that it leaves out is a warning, and so an error.
NAVIGATION = {
    "Start": {
        "Overview": "self",
        "Tutorial": "docs/tutorial",
        "Your task or loop": "docs/own-task",
        "Your images": "docs/own-data",
        "MONAI bundles": "docs/bundles",
        "Other frameworks, other transports": "docs/integrating",
        "Flower": "docs/flower",
        "Flower: an app": "docs/examples/flower/README",
        "NVFlare": "docs/nvflare",
    },
    "Operate": {
        "Operators": "docs/operators",
        "Beyond one machine": "docs/beyond-one-machine",
        "Ray and Kubernetes": "docs/ray",
        "Backends": "docs/backends",
        "Precision": "docs/precision",
        "Benchmarks": "docs/benchmarks",
        "Costs in frameworks": "docs/frameworks",
    },
    "Understand": {
        "Threat model": "docs/threat-model",
        "What updates leak": "docs/leakage",
        "What was found": "docs/what-was-found",
        "Wire format": "docs/wire-format",
        "Wire format: vectors": "tests/vectors/README",
    },
    "Extend": {
        "A backend": "docs/adding-a-backend",
        "Contributing": "CONTRIBUTING",
        "Changes": "CHANGELOG",
    },
    "Reference": {name: f"docs/reference/{name}" for name in [FACES[0], "secagg.errors", *FACES[1:]]},
}

project = "secagg"
copyright = "the secagg authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "tests/vectors/README.md"]
exclude_patterns = [".*"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
suppress_warnings = ["misc.highlighting_failure"]  # examples have … where readers put something of theirs

# Markdown as GitHub reads it.
myst_heading_anchors = 4
myst_linkify_fuzzy_links = False
highlight_language = "none"
smartquotes = False  # -- is an option's

# Notebooks as they are kept, with the pictures in them; nothing is fetched to show them.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

# Docstrings: NumPy's style, checked; a name in `backticks` is a link where it is public.
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
numpydoc_show_class_members = False
numpydoc_xref_param_type = True  # as are types that are
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    **{name: name for name in DEFAULT_LINKS},  # those of Python and NumPy are no links: their pages are elsewhere
    **{name: f"{face}.{name}" for face in reversed(FACES) for name in import_module(face).__all__},
    **{name: f"secagg.errors.{name}" for name in vars(import_module("secagg.errors")) if name.endswith("Error")},
}
numpydoc_validation_checks = {"PR02"}  # parameters that there are not

html_theme = "furo"
html_title = "secagg"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
toc_object_entries_show_parents = "hide"
html_show_sphinx = False


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the tables of contents that make the sidebar behind README.md."""
    if docname != root_doc:
        return
    there = {"self", *app.env.found_docs}
    for caption, pages in NAVIGATION.items():
        entries = [
            f"{title} <{page if page == 'self' else '/' + page}>" for title, page in pages.items() if page in there
        ]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


def load_faces(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Load what the faces would load when it is first used: autodoc sees what is there."""
    for name in FACES:
        if NAVIGATION["Reference"][name] not in docnames:
            continue
        module = import_module(name)
        vars(module).update({public: getattr(module, public) for public in module.__all__})


def skip_field(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what Python says of a named tuple's fields, which the docstring of the tuple tells."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """Let the folder open on README.md."""
    if exception is None and app.builder.format == "html":
        copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what Sphinx has no setting for."""
    app.connect("env-before-read-docs", load_faces)
    app.connect("source-read", add_navigation)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("build-finished", add_index)
    return {"parallel_read_safe": True}
