"""Settings of the documentation site: `make docs`. Nothing is fetched; the examples are executed."""

import re
from importlib.util import find_spec

import flatwise

project = "flatwise"
author = copyright = "The flatwise authors"
release = version = flatwise.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
suppress_warnings = ["sphinx_gallery.space_in_filename"]  # it looks at the whole path, and the project may lie anywhere

# --- pages: Markdown that reads on its own as well --------------------------------------------------------------------

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]

# What a page links to as a file of the project is a page of its own here. Other files outside of this folder become downloads.
PAGES_OF_FILES = {
    r"examples/(\w+)\.py": r"/gallery/\1.rst",
    r"examples/(?=\))": "/gallery/index.rst",
    r"README\.md(#[\w-]*)?": "/index.md",
    r"CONTRIBUTING\.md": "/contributing.md",
    r"CHANGELOG\.md": "/changelog.md",
}


def link_pages(app, docname, source):
    """Lead links to files of the project to the pages made of them."""
    for file, page in PAGES_OF_FILES.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{file}", rf"]({page}", source[0])


# --- the public interface, from its docstrings ------------------------------------------------------------------------

default_role = "code"  # docstrings put code between single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = [name for name in ("accelerate", "lightning", "skorch", "transformers") if not find_spec(name)]
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")


def read_docstring(app, what, name, obj, options, lines):
    """Make reStructuredText of a docstring: what is indented after an empty line is code, the rest is plain text."""
    if what == "property":  # napoleon takes what stands before a colon for the type
        lines[:1] = re.split("(?<=:) ", lines[0], maxsplit=1)
    found, code, section = [], False, False
    for line, before in zip(lines, ["", *lines]):
        indented = line.startswith("    ")
        if not indented and line.strip():
            code, section = False, SECTION.fullmatch(line) is not None
        if indented and not (code or section or before.strip()):
            code = True
            found += [".. code-block:: python", ""]
        found.append(line if code else escaped(line))
    lines[:] = found


def escaped(line):
    """Bars, and the stars of **kwargs, as they are, but between backticks, where they are so already."""
    return re.sub(r"(`[^`]*`)|\||\*\*(?=kwargs)", lambda m: m[1] or "\\" + "\\".join(m[0]), line)


# --- the examples -----------------------------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py",  # all are executed
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": None,
    "doc_module": ("flatwise",),
    "image_srcset": ["2x"],
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
}

# --- the look ---------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"flatwise {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1c64a6", "color-brand-content": "#1c64a6"},
    "dark_css_variables": {"color-brand-primary": "#7fb8ea", "color-brand-content": "#7fb8ea"},
}
pygments_style = "friendly"
pygments_dark_style = "native"


def setup(app):
    """Connect both functions."""
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", read_docstring, priority=100)  # before napoleon
