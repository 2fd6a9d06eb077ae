"""``bench report``: what was measured as HTML, Markdown and pictures."""
