"""How the site is built: `make docs`."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "mesaopt"
author = "The mesaopt developers"
copyright = author
version = release = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"][
    "version"
]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mesaopt_site",  # ours: what is written from the code, and Markdown beside each page
]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
highlight_language = "text"
default_role = "code"
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"mesaopt {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = html_domain_indices = False  # the search has all of it
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1557c0",
        "color-brand-content": "#1557c0",
        "color-foreground-primary": "#1b1f24",
        "font-stack": 'system-ui, -apple-system, "Segoe UI", sans-serif',
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb0ff",
        "color-brand-content": "#6cb0ff",
        "color-background-primary": "#111418",
        "color-foreground-primary": "#e6e9ed",
    },
}
