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


def table(head: Sequence[str], *groups: Sequence[str], above: Sequence[str] = ()) -> str:
    """Returns a table that scrolls where it is wider than the page, but for its first column.

    Args:
      head: HTML of cells. groups: of rows, HTML of the cells of each; a line stands between groups. above: a second
        line of headings, above the other.
    """
    heads = "".join(f"<tr>{''.join(each)}</tr>\n" for each in (above, head) if each)
    bodies = "".join("<tbody>\n" + "".join(f"<tr>{row}</tr>\n" for row in rows) + "</tbody>\n" for rows in groups)
    return f'<div class="wide"><table>\n<thead>\n{heads}</thead>\n{bodies}</table></div>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328;
  background: #fff; }}
p, dl {{ max-width: 50rem; }}
img {{ max-width: 100%; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: separate; border-spacing: 0; font-size: 0.9rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 0.3rem 0.6rem; border-bottom: 1px solid #eaeef2; white-space: nowrap;
  background: #fff; }}
th {{ white-space: normal; vertical-align: bottom; max-width: 9rem; }}
thead tr:last-child > *, tbody tr:last-child > * {{ border-bottom-color: #afb8c1; }}
th[colspan] {{ text-align: center; border-bottom-color: #afb8c1; max-width: none; }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0; z-index: 1; padding-left: 0.7rem;
  border-right: 1px solid #eaeef2; }}
td small {{ display: block; color: #59636e; font-size: 0.78rem; }}
.point {{ display: flex; justify-content: space-between; gap: 1rem; }}
tr:has(> .best:first-child) > td {{ background: #eefbf1; }}
.best {{ font-weight: 600; }}
.best small {{ font-weight: normal; }}
.best:first-child {{ box-shadow: inset 0.25rem 0 #2da44e; }}
dl {{ display: grid; grid-template-columns: fit-content(16rem) 1fr; gap: 0.2rem 1rem; font-size: 0.9rem; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
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
