"""The frame of every page that is written: one file, no script, no request."""

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --text: #1f2328; --soft: #57606a;
  --line: #e3e6e9; --link: #2f5f9e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --card: #171b21; --text: #e4e8ec; --soft: #a0a9b4;
    --line: #2c323a; --link: #8ab4f0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; padding: 2.5rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI",
    Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
main, header { max-width: 62rem; margin: 0 auto; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.25; font-weight: 650;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 .9rem; font-size: 1.15rem; font-weight: 650;
  overflow-wrap: anywhere; }
header p { margin: .35rem 0 0; color: var(--soft); }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin: 0 0 1.25rem; padding: 1.4rem 1.5rem 1.5rem;
  background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
figure { margin: 0; }
table { width: 100%; border-collapse: collapse; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums lining-nums; }
@media (max-width: 40rem) {
  body { padding: 1.5rem .75rem 3rem; }
  section { padding: 1.1rem 1rem 1.2rem; }
}
"""


def frame(title: str, style: str, body: str) -> str:
  """Returns a page as HTML that is complete in itself.

  The content policy forbids the browser any script and any request; pictures
  are data URIs. Light and dark follow the reader's settings.

  Args:
    title: HTML, escaped.
    style: rules besides those that all pages share.
    body: HTML, escaped.

  Example:
    >>> 'default-src' in frame('Empty', '', '<main></main>')
    True
  """
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
{body}</body>
</html>
"""
