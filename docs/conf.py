"""Sphinx builds the documentation: `make docs`. What a docstring shows is read from the package itself."""

from revcol_mm import __version__

project = 'revcol_mm'
release = __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
html_theme = 'furo'
html_title = f'revcol_mm {release}'
html_theme_options = dict(top_of_page_buttons=[])
html_show_sphinx = False
html_copy_source = False
exclude_patterns = ['trainings/*']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_default_options = {'members': True, 'show-inheritance': False}
napoleon_include_special_with_doc = False
