"""The operators' status page: server-rendered pages on the admin listener, beside the JSON API, with the same functions behind them.

How a page is added, without touching the frame:

1. A room of this package, `halo/net/status/<noun>.py`, with one function `<noun>_section(desk: Desk) -> Section`, which declares
   its pages and actions (`halo/net/status/section.py` has the words) and is listed in `halo/net/status/contents.py`.
2. Its templates in `templates/<noun>/…html` (Jinja2, `{% extends "base.html" %}`, blocks `main` and `scripts`), its scripts and
   styles in `static/`. Everything is shipped inside the package; no build step, nothing from the internet.

The rules, which the frame enforces for all of them:

- `section.page` answers GET and changes nothing. Whoever is signed in may see it; everybody else is sent to sign in.
- `section.action` answers POST and changes something. Only operators may (viewers are refused), only with the form's CSRF token,
  only from this very page (Origin, Sec-Fetch-Site). It gives `Done(to)`, a redirect, so that a reload repeats nothing; or `Shown`,
  a page made for this one answer. A `Refusal` that it raises becomes an error page.
- What an action changes goes through `halo/net/operations.py`, as the JSON API does, with `visit.operator` as the name that is audited.
- Forms: `{% from "forms.html" import action_form, hidden_token %}`. Never a form without the token; never a GET that changes.
- CSP is `default-src 'none'` with 'self' for script, style, image, connect and form: no inline script, no `style=` attribute, no
  `<style>`, no data: images. A value that changes how something looks is a class, or an SVG presentation attribute.
- Live parts: an element with `id` and `data-live="5"` is fetched anew every five seconds from the page's own address by
  `static/status.js`, without scripts of its own. Such a fetch does not keep an idle operator signed in.
- Everything is escaped by Jinja2; `|safe` and `Markup` are for nobody. Text of messages is shown by one action alone.

It must never change anything by GET, let anything through that its table does not name, or leave a page in a cache. Read next:
`halo/net/status/section.py`, `halo/net/status/frame.py`.
"""
