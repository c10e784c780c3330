"""Sphinx builds these pages: ``make docs``. Nothing is loaded from elsewhere, neither at the build nor by a reader."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

import names  # noqa: E402
from shown import GalleryScraper, settle  # noqa: E402

project = "losscope"
copyright = "the losscope authors, MIT licence"
version = release = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.duration",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "case_studies",
    "executed",
    "formulas",
    "help_texts",
    "names",
]
exclude_patterns = ["_build", "_digits.md", "gallery", "**sg_execution_times.rst"]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 4
suppress_warnings = ["config.cache"]  # the scraper is an object: Sphinx cannot compare it with the last build's

# In docstrings a name in single backticks is a link where a page knows it, and code where none does.
default_role = "name"
autosummary_generate = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False

# `make docs` is nitpicky: every reference must lead somewhere. There are no inventories of other projects (no network),
# so that what is theirs leads nowhere.
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(names.ELSEWHERE)})(\..*)?"),
    (
        "py:class",
        "Direction|Grid|Index|Memory|Metrics|Room|Span|Store|Path|Figure|dict.str|tuple.float",
    ),  # types by short names
]

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "figures",
    "filename_pattern": r"/gallery/",
    "image_scrapers": (GalleryScraper(),),
    "reset_modules": (settle,),
    "matplotlib_animations": False,
    "show_memory": False,
    "capture_repr": (),
    "show_signature": False,
    "min_reported_time": 1e9,
    "download_all_examples": False,
    "remove_config_comments": True,
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("losscope",),
    "backreferences_dir": "api/examples",
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
    "nested_sections": False,
}

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = f"losscope {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
