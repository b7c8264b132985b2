"""A page of results as one HTML file that needs no other."""

import html
from collections.abc import Sequence


def page(title: str, paragraphs: Sequence[str], body: str) -> str:
    """Returns a page.

    Args:
      title: plain text, as are the paragraphs under it. body: HTML.
    """
    told = "".join(f"<p>{html.escape(each)}</p>\n" for each in paragraphs)
    return _PAGE.format(title=html.escape(title), paragraphs=told, body=body)


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Returns a table that scrolls where it is wider than the page; `head` and `rows` are HTML of cells."""
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{"".join(head)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }}
img {{ max-width: 100%; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 0.25rem 0.7rem; border-bottom: 1px solid #d1d9e0; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0.2rem 1rem; font-size: 0.9rem; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0; }}
.answers {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0.5rem 1.5rem; }}
.answers figure {{ margin: 0; }}
.answers figcaption {{ font-weight: 600; }}
.answers pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; font-size: 0.9rem; margin: 0.2rem 0; }}
summary {{ cursor: pointer; }}
.bar {{ width: 14rem; padding-right: 0; }}
.bar div {{ height: 0.8rem; background: #2da44e; }}
</style>
</head>
<body>
<h1>{title}</h1>
{paragraphs}{body}
</body>
</html>
"""
